//! The real peers of `tests/peers`: how their programs are started and spoken to.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{PATIENCE, peers};

/// Node.js 22, which some peers need; one was installed where the system's may be older.
pub fn newer_node() -> PathBuf {
    let dir = peers().join("conformance/node_modules");
    let own = std::fs::read_dir(&dir).unwrap().find_map(|entry| {
        let bin = entry.unwrap().path().join("bin/node");
        (bin.is_file() && !bin.components().any(|c| c.as_os_str() == "@modelcontextprotocol"))
            .then_some(bin)
    });
    own.unwrap_or_else(|| PathBuf::from("node"))
}

/// The section of an upstream whose script is among the installed servers.
pub fn node(name: &str, script: &str, args: &[&str], env: &[(&str, &str)]) -> String {
    let script = peers().join("servers/node_modules").join(script);
    let mut all = vec![script.to_str().unwrap()];
    all.extend(args);
    section(name, "node", &all, env)
}

/// The section of an upstream that is a program.
pub fn section(name: &str, command: &str, args: &[&str], env: &[(&str, &str)]) -> String {
    let mut out = format!("\n[upstreams.{name}]\ncommand = {command:?}\nargs = {args:?}\n");
    for (k, v) in env {
        writeln!(out, "env.{k} = {v:?}").unwrap();
    }
    // Eight interpreters start at once, on whatever machine this is.
    out + "connect_timeout = \"50s\"\nlist_timeout = \"50s\"\n"
}

/// The section of `mcp-server-time`.
pub fn time(name: &str) -> String {
    let python = peers().join("py2/bin/python");
    section(name, python.to_str().unwrap(), &["-m", "mcp_server_time"], &[])
}

/// The section of `server-everything` over stdio.
pub fn everything(name: &str) -> String {
    node(name, "@modelcontextprotocol/server-everything/dist/index.js", &["stdio"], &[])
}

/// The server with all that the conformance suite asks for; ended when dropped.
pub struct Fixture {
    child: Child,
    pub url: String,
}

impl Fixture {
    pub fn start(era: &str) -> Fixture {
        Fixture::of("fixture.py", &["--era", era])
    }

    /// Another of them.
    pub fn of(program: &str, args: &[&str]) -> Fixture {
        let dir = peers();
        let mut child = Command::new(dir.join("py2/bin/python"))
            .arg(dir.join("conformance").join(program))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        Fixture { child, url: url.trim().to_owned() }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a client script answers line by line.
pub struct Script {
    child: Child,
    lines: std::sync::mpsc::Receiver<Value>,
}

impl Script {
    pub fn start(
        program: &Path,
        script: &str,
        url: &str,
        plan: &Value,
        era: &str,
        key: &str,
    ) -> Script {
        let mut child = Command::new(program)
            .arg(peers().join("clients").join(script))
            .args([url, &plan.to_string(), era])
            .env("WEIR_KEY", key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (tx, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = tx.send(serde_json::from_str(&line).unwrap());
            }
        });
        Script { child, lines }
    }

    /// The line of the next step, which must be `op`.
    pub fn next(&self, op: &str) -> Value {
        let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no line for {op}"));
        assert_eq!(line["op"], op, "{line}");
        line
    }

    /// What the next step, `op`, gave.
    pub fn good(&self, op: &str) -> Value {
        let mut line = self.next(op);
        assert_eq!(line["ok"], true, "{line}");
        line["result"].take()
    }

    pub fn go_on(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a list has an item whose `field` says this.
pub fn has(list: &Value, kind: &str, field: &str, wanted: &str) -> bool {
    list[kind].as_array().unwrap().iter().any(|item| item[field] == wanted)
}
