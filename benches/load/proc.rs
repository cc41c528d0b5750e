//! Processes: where they run, what they use.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long a process may take to end before it is killed.
const END_TIME: Duration = Duration::from_secs(5);

/// Which processors who may use.
#[derive(Clone, Debug)]
pub struct Places {
    /// The proxy; empty: anywhere.
    pub proxy: Vec<usize>,
    /// Everything else; empty: anywhere.
    pub others: Vec<usize>,
}

impl Places {
    /// The proxy on the first processor, everything else on the second; on the third and fourth
    /// where there are so many, which leaves the second for a proxy on two.
    pub fn pinned() -> Places {
        let others = if processors() >= 4 { vec![2, 3] } else { vec![1] };
        Places { proxy: vec![0], others }
    }

    /// Nobody anywhere in particular.
    pub fn free() -> Places {
        Places { proxy: vec![], others: vec![] }
    }
}

/// How many processors there were for us before anything was pinned.
pub fn processors() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

/// Let this thread, and what it starts from now on, run on these processors only.
pub fn pin(cpus: &[usize]) {
    if cpus.is_empty() {
        return;
    }
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu);
    }
    // A machine with one processor measures badly, but it can.
    let _ = sched_setaffinity(None, &set);
}

/// A process that ends when this is dropped.
pub struct Process {
    child: Child,
    /// What it is called in reports.
    pub name: String,
}

impl Process {
    /// Start on these processors, from its first instruction on.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(name: &str, command: &mut Command, cpus: &[usize]) -> Result<Process, String> {
        let before = sched_getaffinity(None);
        pin(cpus);
        let child = command.spawn();
        if let Ok(before) = before {
            let _ = sched_setaffinity(None, &before);
        }
        let child = child.map_err(|e| format!("{name} cannot be started: {e}"))?;
        Ok(Process { child, name: name.into() })
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Use of the processor by it and its descendants so far.
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(tree(self.id()).into_iter().map(cpu_of).sum())
    }

    /// Resident memory of it and its descendants in KiB.
    pub fn rss(&self) -> u64 {
        tree(self.id()).into_iter().map(rss_of).sum()
    }

    /// Resident memory of it alone in KiB: quick to read.
    pub fn rss_alone(&self) -> u64 {
        rss_of(self.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let end = Instant::now() + END_TIME;
        while Instant::now() < end {
            if self.has_ended() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// It and its descendants, without mock servers: they are copies of this program.
fn tree(root: u32) -> Vec<u32> {
    let own = std::env::current_exe().ok();
    let mut all: Vec<(u32, u32)> = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|s| s.parse().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) else { continue };
        // The name may hold anything; what follows its parenthesis does not.
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let parent = rest.split_whitespace().nth(1).and_then(|s| s.parse().ok());
        all.extend(parent.map(|parent| (id, parent)));
    }
    let mut out = vec![root];
    let mut at = 0;
    while at < out.len() {
        let parent = out[at];
        let children = all.iter().filter(|(_, p)| *p == parent).map(|(id, _)| *id);
        let foreign = |id: &u32| fs::read_link(format!("/proc/{id}/exe")).ok() != own;
        out.extend(children.filter(foreign).collect::<Vec<_>>());
        at += 1;
    }
    out
}

// Nanoseconds of all its threads. Threads that have ended are not in it: those of a runtime stay.
fn cpu_of(id: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let ran = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    threads.filter_map(ran).sum()
}

fn rss_of(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Time that a processor was busy or taken away, for anybody, in ticks of 10 ms.
pub fn busy(cpu: usize) -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let name = format!("cpu{cpu} ");
    let line = stat.lines().find_map(|l| l.strip_prefix(&name)).unwrap_or_default();
    let fields: Vec<u64> = line.split_whitespace().filter_map(|s| s.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let ticks: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|n| fields.get(*n)).sum();
    Duration::from_millis(ticks * 10)
}

/// A copy of this program in another role, spoken to over its pipes.
pub struct Role {
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    /// The process.
    pub process: Process,
}

impl Role {
    /// Start it on these processors.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(role: &str, arguments: &[String], cpus: &[usize]) -> Result<Role, String> {
        let own = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut command = Command::new(own);
        command.arg(role).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(role, &mut command, cpus)?;
        let to = process.child.stdin.take().ok_or("no pipe")?;
        let from = BufReader::new(process.child.stdout.take().ok_or("no pipe")?);
        Ok(Role { to, from, process })
    }

    /// What it says next.
    ///
    /// # Errors
    /// When it has ended, or says something else.
    pub fn hear<T: DeserializeOwned>(&mut self) -> Result<T, String> {
        let mut line = String::new();
        self.from.read_line(&mut line).map_err(|e| e.to_string())?;
        serde_json::from_str(&line).map_err(|e| format!("{}: {e}: {line}", self.process.name))
    }

    /// Tell it something that has no answer.
    ///
    /// # Errors
    /// That it has ended.
    pub fn tell(&mut self, word: &str) -> Result<(), String> {
        self.to.write_all(format!("{word}\n").as_bytes()).map_err(|e| e.to_string())
    }

    /// Tell it something and hear the answer.
    ///
    /// # Errors
    /// What it says, or that it has ended.
    pub fn ask<Q: Serialize, T: DeserializeOwned>(&mut self, word: &Q) -> Result<T, String> {
        let mut line = serde_json::to_string(word).map_err(|e| e.to_string())?;
        line.push('\n');
        self.to.write_all(line.as_bytes()).map_err(|e| e.to_string())?;
        self.hear::<Result<T, String>>()?
    }
}
