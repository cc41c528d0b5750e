//! What the processes below a supervisor use, as the kernel counts it.

/// What one child uses: the program and all that it started, without its supervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Living processes.
    pub processes: u64,
    /// Bytes of their memory that are in RAM. What they share counts in each of them.
    pub resident: u64,
    /// Milliseconds of processor time since the child was started, with those of its processes
    /// that have ended.
    pub cpu_ms: u64,
}

/// Most processes that are looked at. A machine has some hundreds; where there are more than this,
/// what is beyond is not counted, and a look still ends.
#[cfg(target_os = "linux")]
const PROCESSES_MAX: usize = 32_768;

/// Milliseconds of a tick of `/proc/PID/stat`: the kernel tells programs a hundred a second,
/// whatever it counts itself.
#[cfg(target_os = "linux")]
const TICK_MS: u64 = 10;

/// What is below each of these supervisors, which are children of ours. One walk for all of them.
/// `None`: it has ended, or the system does not tell. Blocks on `/proc`.
#[cfg(target_os = "linux")]
pub fn usage(supervisors: &[u32]) -> Vec<Option<Usage>> {
    use std::collections::HashMap;

    let all = super::tree::processes(PROCESSES_MAX);
    let us = std::process::id().cast_signed();
    let mut below: HashMap<i32, Vec<usize>> = HashMap::new();
    let mut at: HashMap<i32, usize> = HashMap::new();
    for (n, process) in all.iter().enumerate() {
        below.entry(process.parent).or_default().push(n);
        at.insert(process.pid, n);
    }
    let look = |supervisor: &u32| {
        let supervisor = all[*at.get(&supervisor.cast_signed())?];
        // Whoever else may have got its number in the meantime.
        if supervisor.parent != us {
            return None;
        }
        let mut ticks = supervisor.waited_ticks;
        let mut usage = Usage::default();
        let mut parents = vec![supervisor.pid];
        while let Some(parent) = parents.pop() {
            // Taken out, so that a walk over processes that change meanwhile ends all the same.
            for n in below.remove(&parent).unwrap_or_default() {
                let process = all[n];
                ticks += process.ticks + process.waited_ticks;
                // The dead that nobody has waited for yet have none.
                if let Some(resident) = resident(process.pid) {
                    usage.processes += 1;
                    usage.resident += resident;
                }
                parents.push(process.pid);
            }
        }
        usage.cpu_ms = ticks * TICK_MS;
        Some(usage)
    };
    supervisors.iter().map(look).collect()
}

/// Nothing is known here.
#[cfg(not(target_os = "linux"))]
pub fn usage(supervisors: &[u32]) -> Vec<Option<Usage>> {
    vec![None; supervisors.len()]
}

/// What the kernel says in `/proc/PID/status` of the memory that is in RAM, in KiB.
pub fn resident_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(target_os = "linux")]
fn resident(pid: i32) -> Option<u64> {
    let status = std::fs::read(format!("/proc/{pid}/status")).ok()?;
    Some(resident_kib(&String::from_utf8_lossy(&status))? * 1024)
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_measured_without_its_root() {
        // The shell stands for the supervisor; `read` is built in, so only `sleep`s are below.
        let mut shell = std::process::Command::new("/bin/sh")
            .args(["-c", "sleep 600 & a=$!; sleep 600 & b=$!; echo; read x; kill $a $b; wait"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = shell.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let seen = loop {
            // Between fork and exec they are shells, and then there for good.
            let [Some(seen), None] = usage(&[shell.id(), u32::MAX])[..] else { panic!() };
            if seen.processes == 2 && seen.resident > 0 {
                break seen;
            }
            assert!(std::time::Instant::now() < end, "{seen:?}");
        };
        assert!(seen.resident < 1 << 30 && seen.cpu_ms < 60_000, "{seen:?}");
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert_eq!(usage(&[shell.id()]), [None]);
    }
}
