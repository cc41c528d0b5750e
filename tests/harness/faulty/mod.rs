//! An MCP server that fails as a small table says, over HTTP or stdio, and writes down each arrival
//! before it does anything else. It is a process of its own, so that it can be killed.
//!
//! A row is `WHEN => FAULT, FAULT…`; the first row that fits counts. `WHEN` is `*`, a method, a
//! method with the name of a tool, or `GET`, the stream of an HTTP client:
//!
//! ```text
//! tools/call pay  => as-asked
//! tools/list      => delay 200ms
//! GET             => flood 10000
//! *               => fine
//! ```
//!
//! | fault | does |
//! |---|---|
//! | `fine` | answers |
//! | `delay 50ms` | waits before it answers |
//! | `stall` | never answers |
//! | `cut 17` | sends 17 bytes of the answer, then ends the connection (stdio: the process) |
//! | `cut-request 17` | takes 17 bytes of the request, then the same |
//! | `reset` | with one of these: resets the connection, and does not just close it |
//! | `crash` | with one of these: kills the whole process; alone: kills it without an answer |
//! | `duplicate` | answers twice |
//! | `garble` | answers with what is no message |
//! | `line 100000000` | answers with so many bytes in one line |
//! | `crawl 100` | sends so many bytes a second |
//! | `flood 10000` | sends so many notifications a second, besides |
//! | `status 503` | answers with this status (stdio: an error with this code) |
//! | `first` | with others: only when this write comes for the first time |
//! | `as-asked` | does what `arguments.fault` of the call says |
//!
//! The table is read again when its file changes.
//!
//! `pay` knows a call again by its argument `key`, also after a crash, and carries it out once.
#![allow(dead_code, clippy::unwrap_used, missing_docs, clippy::print_stderr)]

mod http;
mod stdio;
mod table;
mod words;

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use table::{Fault, Tables};

/// How one is started: `peer http|stdio KEY=VALUE…`.
#[derive(Clone, Debug)]
pub struct Peer {
    /// `http` or `stdio`.
    pub wire: String,
    /// Where it listens; several are several servers that fail alike.
    pub ports: Vec<u16>,
    /// The file with the table; none: everything is fine.
    pub table: Option<PathBuf>,
    /// Where arrivals are written down.
    pub log: Option<PathBuf>,
    /// So many tools: `echo`, `pay`, then `t2`, `t3`…
    pub tools: usize,
    /// It ends by itself after so many milliseconds.
    pub lives: Option<u64>,
    /// How nice it is to others; 19 takes only what nobody else wants.
    pub nice: i32,
    /// The processor that it stays on.
    pub cpu: Option<usize>,
}

/// Be such a server if the arguments of this program say so (`peer …`).
pub fn main_if_asked(arguments: &[String]) -> Option<ExitCode> {
    let ("peer", rest) = arguments.split_first().map(|(a, b)| (a.as_str(), b))? else {
        return None;
    };
    let Some(peer) = Peer::read(rest) else { return Some(ExitCode::FAILURE) };
    peer.run();
    Some(ExitCode::SUCCESS)
}

impl Peer {
    /// One with nothing wrong.
    pub fn new(wire: &str) -> Peer {
        Peer {
            wire: wire.to_owned(),
            ports: Vec::new(),
            table: None,
            log: None,
            tools: 2,
            lives: None,
            nice: 0,
            cpu: None,
        }
    }

    /// The arguments that start it.
    pub fn arguments(&self) -> Vec<String> {
        let mut all = vec!["peer".to_owned(), self.wire.clone(), format!("tools={}", self.tools)];
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        all.push(format!("ports={}", ports.join("+")));
        let path = |p: &PathBuf| p.display().to_string();
        all.extend(self.table.as_ref().map(|p| format!("table={}", path(p))));
        all.extend(self.log.as_ref().map(|p| format!("log={}", path(p))));
        all.extend(self.lives.map(|n| format!("lives={n}")));
        all.extend(self.cpu.map(|n| format!("cpu={n}")));
        all.push(format!("nice={}", self.nice));
        all
    }

    /// The peer of these arguments, those behind `peer`.
    pub fn read(arguments: &[String]) -> Option<Peer> {
        let (wire, rest) = arguments.split_first()?;
        let mut peer = Peer::new(wire);
        for argument in rest {
            let (key, value) = argument.split_once('=')?;
            match key {
                "ports" => {
                    let ports = value.split('+').filter(|p| !p.is_empty());
                    peer.ports = ports.map(str::parse).collect::<Result<_, _>>().ok()?;
                }
                "table" => peer.table = Some(value.into()),
                "log" => peer.log = Some(value.into()),
                "tools" => peer.tools = value.parse().ok()?,
                "lives" => peer.lives = Some(value.parse().ok()?),
                "nice" => peer.nice = value.parse().ok()?,
                "cpu" => peer.cpu = Some(value.parse().ok()?),
                _ => return None,
            }
        }
        Some(peer)
    }

    /// Be it, until killed.
    pub fn run(self) {
        if self.nice != 0 {
            let _ = rustix::process::nice(self.nice);
        }
        if let Some(cpu) = self.cpu {
            let mut set = rustix::thread::CpuSet::new();
            set.set(cpu);
            let _ = rustix::thread::sched_setaffinity(None, &set);
        }
        if let Some(lives) = self.lives {
            std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(lives));
                die();
            });
        }
        let tables = Tables::watch(self.table.clone());
        let log = self.log.as_ref().map(Log::open);
        match self.wire.as_str() {
            "http" => http::run(&self, tables, log),
            _ => stdio::run(&self, tables, log),
        }
    }
}

/// SIGKILL to itself: nothing is flushed, nothing is said.
fn die() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort()
}

/// The file of arrivals: `MICROSECONDS METHOD TOOL ID`, a line each, written at once, with ` KEY`
/// where there is one. What was carried out under a key is told too, with `done` for a method.
#[derive(Debug)]
struct Log {
    file: File,
    // What arrived and what was done, by this process and those before it.
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    writes: HashSet<String>,
    keys: HashSet<String>,
}

impl Log {
    fn open(path: &PathBuf) -> Log {
        let mut seen = Seen::default();
        for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                [_, "done", _, _, key] => seen.keys.insert(key.to_owned()),
                [_, _, _, write, ..] => seen.writes.insert(write.to_owned()),
                _ => false,
            };
        }
        let file = OpenOptions::new().create(true).append(true).open(path);
        Log { file: file.expect("a log of arrivals"), seen: Mutex::new(seen) }
    }

    /// Whether this write has arrived before.
    fn knows(&self, asked: &words::Asked) -> bool {
        self.seen.lock().unwrap().writes.contains(&asked.write)
    }

    /// What goes wrong with what has arrived, which is written down.
    fn arrival(&self, asked: &words::Asked, fault: Fault) -> Fault {
        self.line(&asked.method, asked);
        let again = !self.seen.lock().unwrap().writes.insert(asked.write.clone());
        if again && fault.first { Fault::default() } else { fault }
    }

    /// It is carried out, if it has a key under which it was not before.
    fn carry_out(&self, asked: &words::Asked) {
        if !asked.key.is_empty() && self.seen.lock().unwrap().keys.insert(asked.key.clone()) {
            self.line("done", asked);
        }
    }

    fn line(&self, what: &str, asked: &words::Asked) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let (tool, id, key) = (dash(&asked.tool), dash(&asked.write), &asked.key);
        let space = if key.is_empty() { "" } else { " " };
        let line = format!("{now} {what} {tool} {id}{space}{key}\n");
        let _ = (&self.file).write_all(line.as_bytes());
    }
}

fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}
