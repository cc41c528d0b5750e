//! The measured program: the built `weir` under callgrind, and a client that calls it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weirkeeper::config::secret::{ConsumerKey, Secret, new_key};

use super::http::{Heard, Wire};
use super::upstream::{self, Speaks};

/// How long the gateway may take to be ready: under callgrind everything takes fifty times as long.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the client waits before a phase is counted: what the phase before left to be done is
/// done by then.
const SETTLE: Duration = Duration::from_millis(300);

/// Why there is no figure. The text is for whoever runs the benchmark.
pub type Failure = Box<dyn std::error::Error>;

/// A running gateway. It ends when dropped.
pub struct Gateway {
    child: Child,
    dir: PathBuf,
    port: u16,
    key: Secret,
    dumps: usize,
}

impl Gateway {
    /// Start `weir`, with all that an operator would have on, and wait for its upstreams. What it
    /// spends is counted in instructions, or else as time.
    pub fn start(weir: &Path, counted: bool) -> Result<Gateway, Failure> {
        let dir = std::env::temp_dir().join(format!("weir-instructions-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let (key, ports) = (new_key(), free_ports()?);
        let config = configuration(&dir, &key, ports)?;
        fs::write(dir.join("upstreams.toml"), config)?;
        let mut command = Command::new(if counted { Path::new("valgrind") } else { weir });
        if counted {
            command.args(["--tool=callgrind", "--quiet"]);
            command.arg(format!("--callgrind-out-file={}", dir.join("out").display())).arg(weir);
        }
        let child = command
            .arg("--config")
            .arg(dir.join("upstreams.toml"))
            // One worker: two would share the work as the machine's mood has it.
            .env("TOKIO_WORKER_THREADS", "1")
            // Callgrind counts a copy by one `rep movsb` as an instruction for each byte.
            .env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-ERMS")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("{command:?} cannot be started: {e}"))?;
        let mut gateway = Gateway { child, dir, port: ports[0], key, dumps: 0 };
        gateway.until_ready(ports[1])?;
        Ok(gateway)
    }

    fn until_ready(&mut self, admin: u16) -> Result<(), Failure> {
        let end = Instant::now() + PATIENCE;
        loop {
            let said = status(admin).unwrap_or_default();
            let upstreams = said["upstreams"].as_array().map_or(&[][..], Vec::as_slice);
            if !upstreams.is_empty() && upstreams.iter().all(|u| u["state"] == "ready") {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("the gateway ended: {status}").into());
            }
            if Instant::now() > end {
                return Err(format!("the gateway is not ready: {said:#}").into());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// All instructions since the last time, or since the start, and the file that says where they
    /// were spent.
    pub fn spent(&mut self) -> Result<(u64, PathBuf), Failure> {
        thread::sleep(SETTLE);
        let done = Command::new("vgdb")
            .arg(format!("--pid={}", self.child.id()))
            .args(["--wait=10", "dump"])
            .output()
            .map_err(|e| format!("vgdb, which comes with valgrind, cannot be started: {e}"))?;
        self.dumps += 1;
        let file = self.dir.join(format!("out.{}", self.dumps));
        let text = fs::read_to_string(&file).map_err(|e| {
            let said = String::from_utf8_lossy(&done.stderr);
            format!("callgrind gave no figures: {e}\n{said}")
        })?;
        let total = text.lines().rev().find_map(|l| l.strip_prefix("totals: ")?.parse().ok());
        Ok((total.ok_or("callgrind's file has no total")?, file))
    }

    /// Processor time of all its threads until now, the system's part included, in nanoseconds.
    pub fn time(&self) -> Result<u64, Failure> {
        thread::sleep(SETTLE);
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            sum += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
        }
        Ok(sum)
    }

    /// A client of this era.
    pub fn client(&self, speaks: Speaks) -> Result<Client, Failure> {
        let wire = Wire::new(TcpStream::connect(("127.0.0.1", self.port))?)?;
        let mut client = Client { wire, key: self.key.clone(), speaks, session: None };
        if speaks == Speaks::Old {
            let hello = json!({"protocolVersion": "2025-11-25", "capabilities": {},
                "clientInfo": {"name": "bench", "version": "1"}});
            let got = client.round(&client.request("initialize", hello))?;
            let session = got.header("mcp-session-id").ok_or("no session was opened")?;
            client.session = Some(session.to_owned());
        }
        Ok(client)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

// Both are held until both are known, or they might be one.
fn free_ports() -> std::io::Result<[u16; 2]> {
    let (one, other) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    Ok([one.local_addr()?.port(), other.local_addr()?.port()])
}

fn status(admin: u16) -> Result<Value, Failure> {
    let mut wire = Wire::new(TcpStream::connect(("127.0.0.1", admin))?)?;
    wire.send(format!("GET /status HTTP/1.1\r\nhost: 127.0.0.1:{admin}\r\n\r\n").as_bytes())?;
    Ok(serde_json::from_slice(&wire.next()?.ok_or("closed")?.body)?)
}

// Everything on: a key, a view, a quota; a limiter, a breaker and a bound of concurrency each; log
// lines and metrics as they are by default.
fn configuration(dir: &Path, key: &Secret, ports: [u16; 2]) -> Result<String, Failure> {
    let (old, new) = (upstream::http(Speaks::Old)?, upstream::http(Speaks::New)?);
    let own = std::env::current_exe()?;
    let (own, dir) = (own.to_string_lossy(), dir.display());
    let digest = ConsumerKey::of(key.expose()).to_text();
    let rate = "{ per_second = 1000, burst = 10000 }";
    let guard = format!("rate = {rate}\nconcurrency = {{ max = 16, queue = 16 }}\n");
    Ok(format!(
        "[gateway]\nlisten = \"127.0.0.1:{}\"\nstate_dir = \"{dir}/state\"\n\
         cache_dir = \"{dir}/cache\"\n\
         [admin]\nlisten = \"127.0.0.1:{}\"\n\
         [upstreams.old]\nurl = {old:?}\n{guard}\
         [upstreams.new]\nurl = {new:?}\n{guard}\
         [upstreams.child]\ncommand = {own:?}\nargs = [\"--serve-stdio\"]\n{guard}\
         [views.team]\nupstreams = [\"old\", \"new\", \"child\"]\ndeny = [\"*__delete_*\"]\n\
         [consumers.bench]\nkey = {digest:?}\nview = \"team\"\nrate = {rate}\n",
        ports[0], ports[1],
    ))
}

/// A client with one connection, which it keeps.
pub struct Client {
    wire: Wire,
    key: Secret,
    speaks: Speaks,
    session: Option<String>,
}

impl Client {
    /// A whole request. Its id is always the same, so that its answer is, too.
    pub fn request(&self, method: &str, mut params: Value) -> Vec<u8> {
        let mut more = String::new();
        match self.speaks {
            Speaks::Old => {
                if let Some(session) = &self.session {
                    more = format!(
                        "mcp-protocol-version: 2025-11-25\r\nmcp-session-id: {session}\r\n"
                    );
                }
            }
            Speaks::New => {
                params["_meta"] = json!({
                    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
                    "io.modelcontextprotocol/clientCapabilities": {},
                });
                more = format!("mcp-protocol-version: 2026-07-28\r\nmcp-method: {method}\r\n");
                if let Some(name) = params["name"].as_str() {
                    more = format!("{more}mcp-name: {name}\r\n");
                }
            }
        }
        let body = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
        let (body, key) = (body.to_string(), self.key.expose());
        let length = body.len();
        format!(
            "POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\naccept: application/json, text/event-stream\r\n\
             {more}content-length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }

    /// Send a request and read its answer.
    pub fn round(&mut self, request: &[u8]) -> Result<Heard, Failure> {
        self.wire.send(request)?;
        let got = self.wire.next()?.ok_or("the gateway closed the connection")?;
        if !got.says("200") {
            let body = String::from_utf8_lossy(&got.body);
            return Err(format!("the gateway answers {}\n{body}", got.head).into());
        }
        Ok(got)
    }
}
