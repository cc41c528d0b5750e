//! A gateway as its users have it: the built program, a file, sockets. And a bare MCP client that
//! sees every byte.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub mod peer;
pub mod scripted;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{HeaderMap, Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

/// Patience for things that take as long as the machine lets them; never a measurement.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A stdio server in Python whose one tool, `pid`, tells its process id.
pub const PID_SERVER: &str = r"
import json, os, sys
for line in sys.stdin:
    m = json.loads(line)
    if 'id' not in m: continue
    k = m['method']
    if k == 'initialize': r = {'protocolVersion': '2025-06-18', 'capabilities': {'tools': {}}, 'serverInfo': {'name': 'p', 'version': '1'}}
    elif k == 'tools/list': r = {'tools': [{'name': 'pid', 'inputSchema': {'type': 'object'}}]}
    elif k == 'tools/call': r = {'content': [{'type': 'text', 'text': str(os.getpid())}]}
    else:
        print(json.dumps({'jsonrpc': '2.0', 'id': m['id'], 'error': {'code': -32601, 'message': 'no'}}), flush=True); continue
    print(json.dumps({'jsonrpc': '2.0', 'id': m['id'], 'result': r}), flush=True)
";

/// The folder with the installed real peers (see `tests/peers/install`), installed on first use.
pub fn peers() -> PathBuf {
    static PEERS: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    PEERS
        .get_or_init(|| {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let dir = root.join("target/peers");
            let status = Command::new(root.join("tests/peers/install")).arg(&dir).status();
            assert!(
                status.is_ok_and(|s| s.success()),
                "tests/peers/install failed: node >= 20, npm and python3 >= 3.11 are needed"
            );
            dir
        })
        .clone()
}

/// A server that is a program listening on a loopback port; ended when dropped.
pub struct Program(Child);

impl Program {
    /// Start it and wait until somebody answers at the port.
    pub fn start(command: &mut Command, port: u16) -> Program {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let program = Program(child);
        let end = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "{command:?} does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        program
    }

    /// `server-everything` in this mode.
    pub fn everything(mode: &str, port: u16) -> Program {
        let servers = peers().join("servers");
        let main = "node_modules/@modelcontextprotocol/server-everything/dist/index.js";
        let mut command = Command::new("node");
        command.arg("--require").arg(servers.join("loopback.cjs"));
        command.arg(servers.join(main)).arg(mode).env("PORT", port.to_string());
        Program::start(&mut command, port)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that was free just now.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A running gateway; stopped when dropped.
pub struct Weir {
    pub url: String,
    pub admin: String,
    pub dir: tempfile::TempDir,
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Weir {
    /// Start with `upstreams` appended to a `[gateway]` section on free ports. `gateway` holds
    /// more lines of that section.
    pub fn start(gateway: &str, upstreams: &str) -> Weir {
        Weir::start_with(gateway, upstreams, &[])
    }

    /// The same with variables in its environment.
    pub fn start_with(gateway: &str, upstreams: &str, env: &[(&str, &str)]) -> Weir {
        let dir = tempfile::tempdir().unwrap();
        let weir = Weir::start_in(dir, gateway, upstreams, env);
        weir.unwrap_or_else(|log| panic!("the gateway did not start:\n{log}"))
    }

    /// The same in a folder; the log if it does not start.
    pub fn start_in(
        dir: tempfile::TempDir,
        gateway: &str,
        upstreams: &str,
        env: &[(&str, &str)],
    ) -> Result<Weir, String> {
        std::fs::write(dir.path().join("upstreams.toml"), text(dir.path(), gateway, upstreams))
            .unwrap();
        Weir::start_at(dir, &["serve"], env)
    }

    /// The same with the file that is there, and arguments.
    pub fn start_at(
        dir: tempfile::TempDir,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> Result<Weir, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command.stdin(Stdio::null());
        Weir::start_as(command, dir, args, env)
    }

    /// Start with a listening socket that is handed over, as systemd does: descriptor 3, and whom
    /// it is for. `count` is how many it says there are.
    pub fn start_on(
        socket: &std::net::TcpListener,
        count: usize,
        gateway: &str,
        upstreams: &str,
    ) -> Result<Weir, String> {
        let mut command = Command::new("/bin/sh");
        let script = "exec 3<&0 0</dev/null; LISTEN_PID=$$ exec \"$0\" \"$@\"";
        command.args(["-c", script, env!("CARGO_BIN_EXE_weir")]);
        command.env("LISTEN_FDS", count.to_string());
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(socket.try_clone().unwrap())));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("upstreams.toml"), text(dir.path(), gateway, upstreams))
            .unwrap();
        Weir::start_as(command, dir, &["serve"], &[])
    }

    fn start_as(
        mut command: Command,
        dir: tempfile::TempDir,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> Result<Weir, String> {
        let mut child = command
            .args(args)
            .args(["--log-format", "json", "--config"])
            .arg(dir.path().join("upstreams.toml"))
            .envs(env.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (tx, rx) = std::sync::mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let sink = log.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if line.contains("\"message\":\"serving\"") {
                    let said: Value = serde_json::from_str(&line).unwrap();
                    let _ = tx.send(("at", said["url"].as_str().unwrap().to_owned()));
                    let _ = tx.send(("admin", said["admin"].as_str().unwrap().to_owned()));
                }
                let mut log = sink.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let (mut url, mut admin) = (None, None);
        while url.is_none() || admin.is_none() {
            match rx.recv_timeout(PATIENCE) {
                Ok(("at", at)) => url = Some(at),
                Ok((_, at)) => admin = Some(at),
                Err(_) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(log.lock().unwrap().clone());
                }
            }
        }
        Ok(Weir { url: url.unwrap(), admin: admin.unwrap(), dir, child, log })
    }

    /// SIGKILL, and start again in the same folder.
    pub fn again(mut self, gateway: &str, upstreams: &str, env: &[(&str, &str)]) -> Weir {
        self.kill();
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
        Weir::start_in(dir, gateway, upstreams, env)
            .unwrap_or_else(|log| panic!("the gateway did not start again:\n{log}"))
    }

    /// SIGKILL, and the folder that it leaves.
    pub fn into_dir(mut self) -> tempfile::TempDir {
        self.kill();
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    /// Replace the file, as an editor does: write beside it, rename over it.
    pub fn rewrite(&self, gateway: &str, upstreams: &str) {
        let path = self.dir.path().join("upstreams.toml");
        let new = self.dir.path().join("upstreams.toml.new");
        std::fs::write(&new, text(self.dir.path(), gateway, upstreams)).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("upstreams.toml")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything on stderr so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Wait until `/status` satisfies `ok`.
    pub async fn until(&self, what: &str, ok: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await;
            if ok(&status) {
                return status;
            }
            assert!(Instant::now() < end, "not seen: {what}\n{status:#}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Wait until these upstreams are ready.
    pub async fn ready(&self, names: &[&str]) {
        self.until(&format!("ready: {names:?}"), |s| {
            names.iter().all(|n| {
                upstream(s, n)["state"] == "ready" && upstream(s, n)["catalog"]["state"] == "live"
            })
        })
        .await;
    }

    /// Wait until the log holds `needle`.
    pub async fn logged(&self, needle: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.log().contains(needle) {
            assert!(Instant::now() < end, "not logged: {needle}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn status(&self) -> Value {
        serde_json::from_str(&get(&format!("{}/status", self.admin)).await.1).unwrap()
    }

    pub async fn metrics(&self) -> String {
        get(&format!("{}/metrics", self.admin)).await.1
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }

    /// SIGTERM, and wait for the end.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        self.terminate();
        self.child.wait().unwrap()
    }

    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// SIGKILL, and wait for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|s| s.is_none()) {
            self.stop();
        }
    }
}

/// The status of one upstream.
pub fn upstream<'a>(status: &'a Value, name: &str) -> &'a Value {
    static NULL: Value = Value::Null;
    status["upstreams"].as_array().unwrap().iter().find(|u| u["upstream"] == name).unwrap_or(&NULL)
}

fn text(dir: &Path, gateway: &str, upstreams: &str) -> String {
    let listen = if gateway.contains("listen =") { "" } else { "listen = \"127.0.0.1:0\"\n" };
    format!(
        "[gateway]\n{listen}state_dir = \"{0}/state\"\ncache_dir = \"{0}/cache\"\n{gateway}\n\
         [admin]\nlisten = \"127.0.0.1:0\"\n{upstreams}\n",
        dir.display()
    )
}

fn client() -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

/// GET: status and body.
pub async fn get(url: &str) -> (u16, String) {
    let response = client().get(url.parse().unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// A response with its body read.
pub struct Got {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Got {
    /// The JSON-RPC messages in the body, whether it is JSON or events.
    pub fn messages(&self) -> Vec<Value> {
        if self.headers.get("content-type").is_some_and(|t| t == "text/event-stream") {
            return self
                .body
                .split("\n\n")
                .filter_map(|event| {
                    let data: Vec<&str> =
                        event.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
                    (!data.is_empty()).then(|| serde_json::from_str(&data.join("\n")).unwrap())
                })
                .collect();
        }
        serde_json::from_str(&self.body).map(|v| vec![v]).unwrap_or_default()
    }

    /// The last message: the answer.
    pub fn answer(&self) -> Value {
        self.messages().pop().unwrap_or(Value::Null)
    }
}

/// POST with these headers besides the usual ones; the response with its body unread.
pub async fn send(
    url: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Response<Incoming> {
    let mut request = Request::post(url);
    for (k, v) in headers {
        request = request.header(*k, *v);
    }
    for (k, v) in
        [("content-type", "application/json"), ("accept", "application/json, text/event-stream")]
    {
        if !headers.iter().any(|(h, _)| h.eq_ignore_ascii_case(k)) {
            request = request.header(k, v);
        }
    }
    client().request(request.body(Full::new(body.into())).unwrap()).await.unwrap()
}

/// POST and read the whole response.
pub async fn post(url: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Got {
    let response = send(url, headers, body).await;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Got {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: String::from_utf8(body.to_vec()).unwrap(),
    }
}

/// A modern request with its mirrored headers (2026-07-28 basic/transports/streamable-http).
pub async fn modern(url: &str, key: Option<&str>, method: &str, params: Value) -> Got {
    let (headers, body) = modern_request(key, method, params);
    let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    post(url, &headers, body).await
}

/// The headers and body of a modern request.
pub fn modern_request(
    key: Option<&str>,
    method: &str,
    mut params: Value,
) -> (Vec<(&'static str, String)>, String) {
    let named = ["name", "uri", "taskId"].iter().find_map(|key| params.get(*key));
    let name = named.and_then(Value::as_str).map(str::to_owned);
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    });
    let own = params.as_object_mut().unwrap().entry("_meta").or_insert_with(|| json!({}));
    for (k, v) in meta.as_object().unwrap() {
        own.as_object_mut().unwrap().entry(k.clone()).or_insert(v.clone());
    }
    let mut headers =
        vec![("mcp-protocol-version", "2026-07-28".to_owned()), ("mcp-method", method.to_owned())];
    if let Some(name) = name {
        headers.push(("mcp-name", name));
    }
    if let Some(key) = key {
        headers.push(("authorization", format!("Bearer {key}")));
    }
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
    (headers, body)
}

/// Call a tool as a modern client: the answer message.
pub async fn call(url: &str, name: &str, arguments: Value) -> Value {
    modern(url, None, "tools/call", json!({"name": name, "arguments": arguments})).await.answer()
}

/// Names of the tools that a modern client sees.
pub async fn tool_names(url: &str, key: Option<&str>) -> Vec<String> {
    let answer = modern(url, key, "tools/list", json!({})).await.answer();
    answer["result"]["tools"]
        .as_array()
        .unwrap_or_else(|| panic!("no list: {answer}"))
        .iter()
        .map(|t| t["name"].as_str().unwrap().to_owned())
        .collect()
}

/// The reason code of a failed call, wherever it stands.
pub fn reason(answer: &Value) -> &str {
    answer["error"]["data"]["reason"]
        .as_str()
        .or(answer["result"]["_meta"]["io.weirkeeper/failure"]["reason"].as_str())
        .unwrap_or("")
}
