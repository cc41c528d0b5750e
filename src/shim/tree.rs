//! The processes below the supervisor: adopt, find, signal.

use rustix::process::{Pid, Signal};

/// Become the parent of every orphan below us, instead of `init`.
#[cfg(target_os = "linux")]
pub(super) fn adopt_orphans() {
    // Kernels since 3.4 have it; without it the process group is all that can be ended.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

/// Have the kernel send us `signal` when our parent dies. The caller then checks that the parent
/// had not died before.
#[cfg(target_os = "linux")]
pub(super) fn die_with_parent(signal: Signal) {
    let _ = rustix::process::set_parent_process_death_signal(Some(signal));
}

#[cfg(not(target_os = "linux"))]
pub(super) fn adopt_orphans() {}

#[cfg(not(target_os = "linux"))]
pub(super) fn die_with_parent(_: Signal) {}

/// Signal everything below us: the program's process group, and what has left it.
///
/// `gone`: the program itself is dead and reaped. Its number may then belong to a group that is
/// none of ours, so each process is looked for instead.
pub(super) fn signal_all(main: Pid, gone: bool, signal: Signal) {
    // The group in one step first: nothing in it can fork past a walk. Where there is no walk,
    // the group is all there is.
    let group = (!gone || cfg!(not(target_os = "linux"))).then_some(main);
    if let Some(group) = group {
        let _ = rustix::process::kill_process_group(group, signal);
    }
    #[cfg(target_os = "linux")]
    linux::signal_outside(group, signal);
}

/// The pids of all that is below us, for a message.
pub(super) fn pids() -> String {
    #[cfg(target_os = "linux")]
    let all = linux::descendants();
    #[cfg(not(target_os = "linux"))]
    let all: Vec<Process> = Vec::new();
    all.iter().map(|p| p.pid.to_string()).collect::<Vec<_>>().join(" ")
}

/// One line of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) parent: i32,
    group: i32,
    /// Processor time in ticks: its own, and what its ended children used that it waited for.
    pub(super) ticks: u64,
    pub(super) waited_ticks: u64,
    /// In clock ticks since boot; with the pid it names one process for good.
    started: u64,
}

#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
impl Process {
    fn read(stat: &str) -> Option<Process> {
        // The second field is the program's name in brackets and may hold anything at all.
        let (pid, rest) = stat.split_once(" (")?;
        let rest = &rest[rest.rfind(')')? + 1..];
        let mut fields = rest.split_ascii_whitespace(); // from the third field on
        let (parent, group) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        fields.nth(7)?; // up to the fault counts
        let mut times = [0i64; 4];
        for time in &mut times {
            *time = fields.next()?.parse().ok()?;
        }
        let [user, system, waited_user, waited_system] = times.map(|t| t.max(0).cast_unsigned());
        Some(Process {
            pid: pid.parse().ok()?,
            parent,
            group,
            ticks: user.saturating_add(system),
            waited_ticks: waited_user.saturating_add(waited_system),
            started: fields.nth(4)?.parse().ok()?,
        })
    }
}

/// Every process that we can see, up to `most`.
#[cfg(target_os = "linux")]
pub(super) fn processes(most: usize) -> Vec<Process> {
    linux::all(most)
}

/// Of `all`, those below `root`.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
fn below(root: i32, mut all: Vec<Process>) -> Vec<Process> {
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        let (children, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|p| p.parent == parent && p.pid != parent);
        parents.extend(children.iter().map(|p| p.pid));
        found.extend(children);
        all = others;
    }
    found
}

#[cfg(target_os = "linux")]
mod linux {
    use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

    use super::{Process, below};

    pub(super) fn descendants() -> Vec<Process> {
        below(getpid().as_raw_nonzero().get(), all(usize::MAX))
    }

    pub(super) fn all(most: usize) -> Vec<Process> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse().ok())
            .take(most)
            .filter_map(look)
            .collect()
    }

    fn look(pid: i32) -> Option<Process> {
        // A name need not be UTF-8.
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        Process::read(&String::from_utf8_lossy(&stat))
    }

    pub(super) fn signal_outside(group: Option<Pid>, signal: Signal) {
        let done = group.map(|g| g.as_raw_nonzero().get());
        for process in descendants() {
            if Some(process.group) == done {
                continue;
            }
            let Some(pid) = Pid::from_raw(process.pid) else { continue };
            // Between the walk and the signal the pid may have got a new owner, which is none of
            // ours: hold on to the process first, then look whether it is still the same.
            let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            if look(process.pid).is_some_and(|p| p.started == process.started) {
                let _ = pidfd_send_signal(&held, signal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32) -> Process {
        Process { pid, parent, group: pid, ticks: 0, waited_ticks: 0, started: 0 }
    }

    #[test]
    fn a_stat_line_is_read_past_a_hostile_name() {
        let line = "77 (a) R 1 (b) S 5 70 60 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 12345 9 9";
        let times = (11, 15);
        assert_eq!(
            Process::read(line),
            Some(Process {
                pid: 77,
                parent: 5,
                group: 70,
                ticks: times.0,
                waited_ticks: times.1,
                started: 12345
            })
        );
        assert_eq!(Process::read("77 (a"), None);
        assert_eq!(Process::read(""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn our_own_stat_line_reads() {
        let line = std::fs::read_to_string("/proc/self/stat").expect("Linux has it");
        let me = Process::read(&line).expect("a stat line");
        assert_eq!(me.pid.cast_unsigned(), std::process::id());
        assert!(me.started > 0);
    }

    #[test]
    fn only_what_is_below_is_found() {
        let all = vec![
            process(1, 0),
            process(10, 1),
            process(11, 10),
            process(12, 11),
            process(20, 1),
            process(13, 10),
        ];
        let mut found: Vec<_> = below(10, all).iter().map(|p| p.pid).collect();
        found.sort_unstable();
        assert_eq!(found, [11, 12, 13]);
    }
}
