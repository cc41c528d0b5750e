//! `weir stdio --connect`: a host's pipe and a gateway that runs elsewhere, which comes and goes.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../harness/mod.rs"]
mod harness;

mod ends;
mod faults;
mod gateway;
mod sessions;

use std::process::Stdio;
use std::sync::{Arc, Mutex};

use harness::PATIENCE;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

/// A host and the bridge that it started.
pub struct Host {
    pub child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    // What came while something else was waited for, in its order.
    aside: Vec<String>,
    log: Arc<Mutex<String>>,
}

impl Host {
    pub fn start(url: &str) -> Host {
        Host::start_with(url, &[], &[])
    }

    pub fn start_with(url: &str, args: &[&str], env: &[(&str, &str)]) -> Host {
        let mut child = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["stdio", "--connect", url])
            .args(args)
            .env_remove("WEIR_TOKEN")
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (tx, lines) = mpsc::channel(4096);
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        tokio::spawn(async move {
            while let Ok(Some(line)) = stdout.next_line().await {
                let _ = tx.send(line).await;
            }
        });
        let log: Arc<Mutex<String>> = Arc::default();
        let (mut stderr, sink) = (child.stderr.take().unwrap(), log.clone());
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Host { stdin: child.stdin.take(), child, lines, aside: Vec::new(), log }
    }

    pub async fn write(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        stdin.flush().await.unwrap();
    }

    pub async fn send(&mut self, message: Value) {
        self.write(&message.to_string()).await;
    }

    /// The first line that is `wanted`; those before it stay for later.
    pub async fn line(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        if let Some(at) = self.aside.iter().position(|l| wanted(l)) {
            return self.aside.remove(at);
        }
        loop {
            let Ok(Some(line)) = tokio::time::timeout(PATIENCE, self.lines.recv()).await else {
                panic!("not seen: {what}\nbesides: {:?}\n{}", self.aside, self.log());
            };
            if wanted(&line) {
                return line;
            }
            self.aside.push(line);
        }
    }

    pub async fn message(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let line = self.line(what, |l| wanted(&serde_json::from_str(l).unwrap())).await;
        serde_json::from_str(&line).unwrap()
    }

    /// The answer to the request with this id.
    pub async fn answer(&mut self, id: Value) -> Value {
        let what = format!("the answer to {id}");
        self.message(&what, |m| m["id"] == id && m.get("method").is_none()).await
    }

    /// A notification, or a question.
    pub async fn told(&mut self, method: &str) -> Value {
        self.message(method, |m| m["method"] == method).await
    }

    /// What was seen and not waited for.
    pub fn aside(&self) -> &[String] {
        &self.aside
    }

    pub async fn ask(&mut self, id: impl Into<Value>, method: &str, params: Value) -> Value {
        let id = id.into();
        self.send(json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})).await;
        self.answer(id).await
    }

    /// Send a modern request.
    pub async fn send_modern(&mut self, id: impl Into<Value>, method: &str, params: Value) {
        let (_, body) = harness::modern_request(None, method, params);
        let mut message: Value = serde_json::from_str(&body).unwrap();
        message["id"] = id.into();
        self.send(message).await;
    }

    pub async fn modern(&mut self, id: impl Into<Value>, method: &str, params: Value) -> Value {
        let id = id.into();
        self.send_modern(id.clone(), method, params).await;
        self.answer(id).await
    }

    /// The old handshake; returns the result.
    pub async fn hello(&mut self, revision: &str) -> Value {
        let params = json!({"protocolVersion": revision,
            "capabilities": {"elicitation": {}, "roots": {}}, "clientInfo": {"name": "host", "version": "1"}});
        let answer = self.ask("hello", "initialize", params).await;
        self.send(json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
        answer["result"].clone()
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub async fn logged(&self, needle: &str) {
        until(needle, || self.log().contains(needle)).await;
    }

    /// Say no more.
    pub fn hang_up(&mut self) {
        self.stdin = None;
    }

    /// Wait for the end; the exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        status.expect("the bridge ends").unwrap().code()
    }
}

/// Wait until this holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(std::time::Instant::now() < end, "not seen: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
