//! The supervisor of one child process: no descendant outlives the gateway.
//!
//! A child's own children may leave its process group and its session, and the gateway may be
//! killed without a chance to tidy up. So each program runs below a small supervisor, which is
//! this same executable started anew:
//!
//! ```text
//! gateway ── weir __shim GATEWAY-PID -- PROGRAM ARGS…        the supervisor
//!              └─ weir __exec SHIM-PID -- PROGRAM ARGS…      becomes PROGRAM
//!                   └─ whatever PROGRAM starts
//! ```
//!
//! - The supervisor adopts every orphan below it, so that nothing can leave its tree.
//! - It is told by the kernel when the gateway dies, and looks for itself every few seconds.
//! - The program is killed by the kernel when the supervisor dies. Only what the program itself
//!   had started can then be left over; that needs somebody to kill the supervisor on purpose.
//! - The three pipes belong to the program; the supervisor is not on the path of any message.
//! - The program's exit code becomes the supervisor's. What a code cannot say (a signal, a
//!   program that could not be started) is told in a [`Told`] line on stderr.
//!
//! That holds on Linux. Elsewhere there is no adoption and no word of the gateway's death: the
//! supervisor ends the program's process group only, and looks for its parent by the clock.

mod lookup;
mod tree;
mod usage;

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

pub use lookup::{NotFound, find_program};
pub use usage::{Usage, resident_kib, usage};

/// How long a program may take to end by itself once its input is closed, before it is asked to
/// with SIGTERM. Most servers end within a second; this leaves room for one open call.
pub const EOF_GRACE: Duration = Duration::from_secs(3);

/// How long a program may take to end after SIGTERM, before SIGKILL.
pub const TERM_GRACE: Duration = Duration::from_secs(5);

/// How long what a program left running may take to end after SIGTERM: its user is gone already.
pub const LEFTOVER_GRACE: Duration = Duration::from_secs(1);

/// How long processes may take to vanish after SIGKILL. What is left then cannot be killed by
/// us at all (another user's, or stuck in the kernel), and waiting longer would only hang a stop.
pub const KILL_GRACE: Duration = Duration::from_secs(5);

/// How often the supervisor looks whether its gateway is still there, in case the kernel's word
/// was lost: it is forgotten when credentials change.
const PARENT_POLL: Duration = Duration::from_secs(2);

/// Pause between two rounds of SIGKILL, for processes that were forked during the round.
const KILL_ROUND: Duration = Duration::from_millis(20);

/// The program was not found, as a shell would say it.
const EXIT_NOT_FOUND: u8 = 127;
/// The program was found and could not be started.
const EXIT_NOT_STARTED: u8 = 126;
/// The supervisor itself failed.
const EXIT_SHIM_FAILED: u8 = 125;

const SHIM_VERB: &str = "__shim";
const EXEC_VERB: &str = "__exec";

/// What a supervisor tells its gateway beyond the exit code, as one line on stderr.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The program was ended by this signal.
    Signal(i32),
    /// The program could not be started; why.
    NotStarted(String),
    /// These processes could not be killed.
    LeftBehind(String),
    /// The supervisor could not do its work; why.
    Failed(String),
}

impl Told {
    /// Every such line starts with this; a control character that no sane program's line starts
    /// with. A program that forges one only lies about its own end.
    const MARK: &str = "\u{1e}weir ";

    /// Read a line of stderr, without its line break.
    pub fn read(line: &[u8]) -> Option<Told> {
        let line = std::str::from_utf8(line).ok()?.strip_prefix(Told::MARK)?;
        let (word, rest) = line.split_once(' ')?;
        match word {
            "signal" => rest.parse().ok().map(Told::Signal),
            "not-started" => Some(Told::NotStarted(rest.to_owned())),
            "left-behind" => Some(Told::LeftBehind(rest.to_owned())),
            "failed" => Some(Told::Failed(rest.to_owned())),
            _ => None,
        }
    }

    fn line(&self) -> String {
        // The break in front ends a line that the program left open.
        let mark = Told::MARK;
        match self {
            Told::Signal(n) => format!("\n{mark}signal {n}\n"),
            Told::NotStarted(why) => format!("\n{mark}not-started {why}\n"),
            Told::LeftBehind(pids) => format!("\n{mark}left-behind {pids}\n"),
            Told::Failed(why) => format!("\n{mark}failed {why}\n"),
        }
    }

    fn tell(&self) {
        // If nobody reads any more there is nobody to tell.
        let _ = std::io::stderr().write_all(self.line().as_bytes());
    }
}

/// The command that runs `program` with `args` below a supervisor. The caller sets pipes,
/// environment and working directory; they become the program's.
///
/// Spawn it from a thread that lives as long as the process: the kernel takes the end of the
/// *thread* that started a supervisor for the end of the gateway.
pub fn command(shim: &Path, program: &OsStr, args: &[OsString]) -> Command {
    let mut command = Command::new(shim);
    command
        .arg(SHIM_VERB)
        .arg(std::process::id().to_string())
        .arg("--")
        .arg(program)
        .args(args)
        // Not in our group: a Ctrl-C at our terminal is for us to handle, not for children.
        .process_group(0);
    command
}

/// Be the supervisor, or become the program, if the command line says so; the first thing that
/// `main` does. `None`: this is an ordinary start.
pub fn main_if_asked(args: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut args = args.into_iter().skip(1);
    let verb = args.next()?;
    let run = match verb.to_str()? {
        SHIM_VERB => supervise,
        EXEC_VERB => become_program,
        _ => return None,
    };
    let parent = args.next()?.to_str()?.parse().ok().and_then(Pid::from_raw)?;
    if args.next()? != "--" {
        return None;
    }
    let program = args.next()?;
    Some(run(parent, &program, &args.collect::<Vec<_>>()))
}

fn become_program(shim: Pid, program: &OsStr, args: &[OsString]) -> ExitCode {
    tree::die_with_parent(Signal::KILL);
    if rustix::process::getppid() != Some(shim) {
        return ExitCode::from(EXIT_SHIM_FAILED); // it died first; there is nobody to run for
    }
    let error = Command::new(program).args(args).exec();
    Told::NotStarted(error.to_string()).tell();
    ExitCode::from(match error.kind() {
        std::io::ErrorKind::NotFound => EXIT_NOT_FOUND,
        _ => EXIT_NOT_STARTED,
    })
}

fn supervise(gateway: Pid, program: &OsStr, args: &[OsString]) -> ExitCode {
    tree::adopt_orphans();
    // What the gateway forbids itself it does not forbid its children, who would inherit it.
    let _ = rustix::thread::disable_transparent_huge_pages(false);
    // Not SIGTERM: that is how the living gateway asks for a stop, without the grace.
    tree::die_with_parent(Signal::HUP);
    if rustix::process::getppid() != Some(gateway) {
        return ExitCode::from(EXIT_SHIM_FAILED);
    }
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(watch(gateway, program, args)));
    outcome.unwrap_or_else(|e| {
        Told::Failed(e.to_string()).tell();
        ExitCode::from(EXIT_SHIM_FAILED)
    })
}

/// How far the end has come.
#[derive(Clone, Copy)]
enum Phase {
    Running,
    /// The gateway is gone, and so the input is closed: SIGTERM at that time.
    Closed(Instant),
    /// SIGTERM was sent: SIGKILL at that time.
    Asked(Instant),
    /// SIGKILL is being sent, until that time.
    Killing(Instant),
}

async fn watch(gateway: Pid, program: &OsStr, args: &[OsString]) -> std::io::Result<ExitCode> {
    // Handlers first: from here on no signal ends us while a program runs.
    let mut died = signal(SignalKind::child())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut poll = tokio::time::interval(PARENT_POLL);

    let child = Command::new(own_executable())
        .arg(EXEC_VERB)
        .arg(std::process::id().to_string())
        .arg("--")
        .arg(program)
        .args(args)
        .process_group(0)
        .spawn()?;
    let main = Pid::from_raw(child.id().cast_signed()).expect("a child has a pid");
    // The program's pipes must end when the program ends. Stderr stays, for `Told`.
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;

    let mut phase = Phase::Running;
    let mut ended: Option<WaitStatus> = None;
    loop {
        let none_left = reap(main, &mut ended);
        if let (Some(status), true) = (ended, none_left) {
            return Ok(report(status));
        }
        let now = Instant::now();
        if ended.is_some() {
            // What the program left running has lost its user: it need not be waited for long.
            phase = match phase {
                Phase::Running | Phase::Closed(_) => {
                    tree::signal_all(main, true, Signal::TERM);
                    Phase::Asked(now + LEFTOVER_GRACE)
                }
                Phase::Asked(at) => Phase::Asked(at.min(now + LEFTOVER_GRACE)),
                killing @ Phase::Killing(_) => killing,
            };
        }
        let wake = match phase {
            Phase::Running => None,
            Phase::Closed(at) | Phase::Asked(at) => Some(at),
            Phase::Killing(_) => Some(now + KILL_ROUND),
        };
        let gone = ended.is_some();
        let due = tokio::select! {
            _ = died.recv() => false,
            () = sleep_until(wake) => true,
            _ = terminate.recv() => { phase = ask(main, gone, phase); false }
            _ = interrupt.recv() => { phase = ask(main, gone, phase); false }
            _ = hangup.recv() => { phase = look_up(gateway, phase); false }
            _ = poll.tick() => { phase = look_up(gateway, phase); false }
        };
        if !due {
            continue;
        }
        phase = match phase {
            Phase::Closed(_) => ask(main, gone, phase),
            Phase::Asked(_) => {
                tree::signal_all(main, gone, Signal::KILL);
                Phase::Killing(Instant::now() + KILL_GRACE)
            }
            Phase::Killing(until) if Instant::now() >= until => {
                reap(main, &mut ended);
                Told::LeftBehind(tree::pids()).tell();
                return Ok(ended.map_or(ExitCode::from(EXIT_SHIM_FAILED), report));
            }
            Phase::Killing(until) => {
                tree::signal_all(main, gone, Signal::KILL);
                Phase::Killing(until)
            }
            Phase::Running => Phase::Running,
        };
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn ask(main: Pid, gone: bool, phase: Phase) -> Phase {
    match phase {
        Phase::Running | Phase::Closed(_) => {
            tree::signal_all(main, gone, Signal::TERM);
            Phase::Asked(Instant::now() + TERM_GRACE)
        }
        later => later,
    }
}

fn look_up(gateway: Pid, phase: Phase) -> Phase {
    match phase {
        Phase::Running if rustix::process::getppid() != Some(gateway) => {
            Phase::Closed(Instant::now() + EOF_GRACE)
        }
        same => same,
    }
}

/// Collect every dead child, adopted ones too. Whether none is left; then nothing below us is.
fn reap(main: Pid, ended: &mut Option<WaitStatus>) -> bool {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == main => *ended = Some(status),
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Ok(None) => return false,
            Err(_) => return true,
        }
    }
}

fn report(status: WaitStatus) -> ExitCode {
    if let Some(signal) = status.terminating_signal() {
        Told::Signal(signal).tell();
        return ExitCode::from(128u8.saturating_add(signal as u8));
    }
    ExitCode::from(status.exit_status().unwrap_or_default() as u8)
}

#[cfg(target_os = "linux")]
fn own_executable() -> std::path::PathBuf {
    // Not its path: after an update of the file that would be another program, or none.
    "/proc/self/exe".into()
}

#[cfg(not(target_os = "linux"))]
fn own_executable() -> std::path::PathBuf {
    std::env::current_exe().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_supervisor_tells_reads_back() {
        for told in [
            Told::Signal(11),
            Told::NotStarted("Permission denied (os error 13)".into()),
            Told::LeftBehind("7 8".into()),
            Told::Failed("no".into()),
        ] {
            assert_eq!(Told::read(told.line().trim_matches('\n').as_bytes()), Some(told));
        }
        assert_eq!(Told::read(b"weir signal 9"), None);
        assert_eq!(Told::read("\u{1e}weir other 9".as_bytes()), None);
        assert_eq!(Told::read(b"\x1eweir \xff"), None);
    }

    #[test]
    fn an_ordinary_command_line_is_not_ours() {
        for line in ["weir", "weir serve", "weir __shim", "weir __shim x -- a", "weir __shim 1 a"] {
            assert!(main_if_asked(line.split(' ').map(OsString::from)).is_none(), "{line}");
        }
    }
}
