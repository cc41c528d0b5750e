//! A gateway under drill: the built program, its file, its process.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::client;
use crate::faulty::Peer;
use crate::promise::Promises;

/// How long a start may take.
const START: Duration = Duration::from_secs(60);
/// Lines of the log that are kept, to be shown when something goes wrong.
const LINES: usize = 200;

/// Panics of all gateways so far: each has cost somebody an answer.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Make the promise that there was none.
pub fn judge_panics(promises: &mut Promises) {
    let panics = PANICS.load(Ordering::Relaxed);
    promises.keep("all", "no gateway panicked", &format!("{panics}"), panics == 0);
}

/// The program that is drilled: `WEIR_BIN`, or the one built beside the drill.
pub fn program() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let beside = own.parent().and_then(Path::parent).map(|dir| dir.join("weir"));
    // A test knows its program.
    let built = option_env!("CARGO_BIN_EXE_weir").map(PathBuf::from);
    let named = built.or(std::env::var_os("WEIR_BIN").map(PathBuf::from)).or(beside);
    let found = named.filter(|p| p.is_file());
    found
        .ok_or("no `weir` beside the drill: `cargo build --release`, or name it in WEIR_BIN".into())
}

/// What a gateway is started with.
#[derive(Default)]
pub struct Setup {
    pub dir: PathBuf,
    /// Lines of `[gateway]`.
    pub gateway: String,
    /// Sections.
    pub rest: String,
    /// A listening socket that is handed over, as systemd does.
    pub socket: Option<OwnedFd>,
    /// The processors it may use; all if none.
    pub cpus: Vec<usize>,
}

/// A running gateway; killed when dropped.
pub struct Gate {
    pub at: SocketAddr,
    pub admin: SocketAddr,
    pub dir: PathBuf,
    child: Child,
    log: Arc<Mutex<VecDeque<String>>>,
}

/// Ports that the system gives to nobody by itself: a client that connects to one of its own while
/// the server is away would be connected to itself, and the server could not come back.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A port that was free just now.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Two drills at once, whose numbers are neighbours, are not to meet.
    let from = (std::process::id() as u16).wrapping_mul(97);
    loop {
        let n = from.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + n % (PORTS.end - PORTS.start);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The sections of a file: what is good, and fast to come back.
pub fn section(name: &str, place: &str, more: &str) -> String {
    format!("\n[upstreams.{name}]\n{place}\nera = \"legacy\"\n{more}\n")
}

/// The place of an upstream over HTTP.
pub fn url(port: u16) -> String {
    format!("url = \"http://127.0.0.1:{port}/mcp\"")
}

/// The place of an upstream over stdio: a peer of the drill.
pub fn command(peer: &Peer) -> String {
    let own = std::env::current_exe().expect("this program has a path");
    format!("command = {:?}\nargs = {:?}", own.display().to_string(), peer.arguments())
}

fn file(setup: &Setup) -> String {
    let (dir, gateway) = (setup.dir.display(), &setup.gateway);
    let listen = if gateway.contains("listen =") { "" } else { "listen = \"127.0.0.1:0\"\n" };
    format!(
        "[gateway]\n{listen}state_dir = \"{dir}/state\"\ncache_dir = \"{dir}/cache\"\n{gateway}\n\
         [admin]\nlisten = \"127.0.0.1:0\"\n[log]\nlevel = \"warn,weirkeeper::app=info\"\n{}",
        setup.rest
    )
}

impl Gate {
    /// Start one and wait until it serves.
    pub fn start(setup: Setup) -> Result<Gate, String> {
        std::fs::create_dir_all(&setup.dir).map_err(|e| e.to_string())?;
        let path = setup.dir.join("upstreams.toml");
        std::fs::write(&path, file(&setup)).map_err(|e| e.to_string())?;
        let mut command = command_of(&program()?, setup.socket);
        command.args(["--log-format", "json", "--config"]).arg(&path);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| e.to_string())?;
        if !setup.cpus.is_empty() {
            // Its threads are made afterwards, mostly; those that are there are told one by one.
            pin(child.id(), &setup.cpus);
        }
        let log: Arc<Mutex<VecDeque<String>>> = Arc::default();
        let (tx, rx) = std::sync::mpsc::sync_channel(1);
        let stderr = BufReader::new(child.stderr.take().ok_or("no stderr")?);
        let sink = log.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if line.contains("\"message\":\"serving\"") {
                    let _ = tx.try_send(line.clone());
                }
                if line.contains("\"message\":\"panicked") {
                    PANICS.fetch_add(1, Ordering::Relaxed);
                    eprintln!("{line}");
                }
                let mut log = sink.lock().expect("no panic while held");
                if log.len() == LINES {
                    log.pop_front();
                }
                log.push_back(line);
            }
        });
        let Ok(line) = rx.recv_timeout(START) else {
            let _ = child.kill();
            let _ = child.wait();
            let log = log.lock().expect("no panic while held");
            return Err(format!(
                "the gateway did not start:\n{}",
                Vec::from(log.clone()).join("\n")
            ));
        };
        let said: Value = serde_json::from_str(&line).map_err(|e| e.to_string())?;
        let address = |key: &str| -> Result<SocketAddr, String> {
            let url = said[key].as_str().ok_or(format!("no {key}: {line}"))?;
            let host = url.trim_start_matches("http://").split('/').next().unwrap_or_default();
            host.parse().map_err(|_| format!("no address: {url}"))
        };
        Ok(Gate { at: address("url")?, admin: address("admin")?, dir: setup.dir, child, log })
    }

    /// Replace its file, as an editor does.
    pub fn rewrite(&self, gateway: &str, rest: &str) -> Result<(), String> {
        let (gateway, rest) = (gateway.to_owned(), rest.to_owned());
        let setup = Setup { dir: self.dir.clone(), gateway, rest, ..Setup::default() };
        let new = self.dir.join("upstreams.toml.new");
        std::fs::write(&new, file(&setup)).map_err(|e| e.to_string())?;
        std::fs::rename(new, self.dir.join("upstreams.toml")).map_err(|e| e.to_string())
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Send it a signal.
    pub fn signal(&self, signal: Signal) {
        signal_to(self.pid(), signal);
    }

    /// Wait for the end; killed after `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus, String> {
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().map_err(|e| e.to_string())? {
                return Ok(status);
            }
            if Instant::now() > end {
                self.kill();
                return Err(format!("did not end within {patience:?}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Wait until these upstreams are ready with what they have.
    pub async fn ready(&self, names: &[&str]) -> Result<(), String> {
        let end = Instant::now() + START;
        loop {
            let status = self.status().await;
            let all = status["upstreams"].as_array().cloned().unwrap_or_default();
            let good = |name: &&str| {
                all.iter().any(|u| {
                    u["upstream"] == **name
                        && u["state"] == "ready"
                        && u["catalog"]["state"] == "live"
                })
            };
            if names.iter().all(good) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("not ready: {names:?}\n{status:#}\n{}", self.log()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What `/status` says.
    pub async fn status(&self) -> Value {
        let got = client::get(self.admin, "/status").await;
        got.ok().and_then(|a| serde_json::from_slice(&a.body).ok()).unwrap_or(Value::Null)
    }

    /// What a metric says, all its series added up.
    pub async fn metric(&self, name: &str, with: &str) -> f64 {
        let Ok(got) = client::get(self.admin, "/metrics").await else { return f64::NAN };
        let text = String::from_utf8_lossy(&got.body).into_owned();
        let lines = text.lines().filter(|l| {
            l.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && l.contains(with)
        });
        lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        let log = self.log.lock().expect("no panic while held");
        let mut out = String::new();
        for line in log.iter().rev().take(20).rev() {
            let _ = writeln!(out, "    {line}");
        }
        out
    }

    /// Memory that it has, in KiB.
    pub fn rss(&self) -> u64 {
        rss(self.pid())
    }

    /// Open descriptors.
    pub fn fds(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // Stopped ones must be woken to be killed in order.
        self.signal(Signal::CONT);
        self.kill();
    }
}

fn command_of(program: &Path, socket: Option<OwnedFd>) -> Command {
    let Some(socket) = socket else {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        return command;
    };
    // As systemd does it: descriptor 3, and whom it is for.
    let mut command = Command::new("/bin/sh");
    command.arg("-c");
    command.arg("exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"");
    command.arg(program).stdin(Stdio::from(socket));
    command
}

/// Memory of a process, in KiB.
pub fn rss(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Nanoseconds of processor time that a process has had, and that its threads have waited for some.
pub fn processor(pid: u32) -> (f64, f64) {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return (0.0, 0.0) };
    let mut sum = (0.0, 0.0);
    for task in tasks.filter_map(Result::ok) {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let mut numbers = text.split_whitespace().map(|n| n.parse::<f64>().unwrap_or(0.0));
        sum.0 += numbers.next().unwrap_or(0.0);
        sum.1 += numbers.next().unwrap_or(0.0);
    }
    sum
}

/// Processes whose command line holds this text, the drill itself and its gateways not.
pub fn processes(text: &str) -> Vec<u32> {
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = all.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains(text) && line.contains("peer\0stdio")
    })
    .collect()
}

/// Send a process a signal.
pub fn signal_to(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Keep all threads of a process on these processors.
pub fn pin(pid: u32, cpus: &[usize]) {
    let mut set = rustix::thread::CpuSet::new();
    for cpu in cpus {
        set.set(*cpu);
    }
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return };
    for task in tasks.filter_map(|t| t.ok()?.file_name().to_str()?.parse::<i32>().ok()) {
        let _ = rustix::thread::sched_setaffinity(Pid::from_raw(task), &set);
    }
}

/// A peer of the drill that is a process of its own; killed when dropped.
pub struct Running {
    child: Child,
    peer: Peer,
}

fn spawn(peer: &Peer) -> Result<Child, String> {
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new(own);
    command.args(peer.arguments()).stdin(Stdio::null()).stdout(Stdio::null());
    command.spawn().map_err(|e| e.to_string())
}

impl Running {
    /// Start it and wait until it listens.
    pub fn start(peer: Peer) -> Result<Running, String> {
        let mut running = Running { child: spawn(&peer)?, peer };
        let end = Instant::now() + START;
        for port in running.peer.ports.clone() {
            while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
                if Instant::now() > end || running.has_ended() {
                    return Err(format!("a peer does not listen at {port}"));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(running)
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Start it again where it was. Not waited for: it may be killed before it is seen to listen.
    pub fn again(&mut self) -> Result<(), String> {
        self.kill();
        self.child = spawn(&self.peer)?;
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        signal_to(self.pid(), Signal::CONT);
        self.kill();
    }
}
