//! How a child ended.

use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use super::stderr::Tail;
use crate::failure::Reason;
use crate::shim::Told;
use crate::upstream::transport::pipe::Lost;

/// Most characters of stderr in a sentence; the log has the rest.
const QUOTED: usize = 300;

/// How a child ended, and what it said last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitReport {
    /// Its exit code, if it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The program could not be started: nothing was read and nothing was done.
    pub never_ran: bool,
    /// We stopped it.
    pub asked: bool,
    /// How long it ran.
    pub ran: Duration,
    /// The last lines of stderr, scrubbed.
    pub stderr: Vec<String>,
    /// How it ended, in a sentence for anybody: holds no secret and nothing of the machine.
    pub text: String,
    /// What only the log may say: the system's words.
    cause: String,
}

impl ExitReport {
    pub(super) fn new(
        status: Option<ExitStatus>,
        tail: Tail,
        ran: Duration,
        asked: bool,
        spoke: bool,
    ) -> ExitReport {
        let mut report = ExitReport {
            code: status.and_then(|s| s.code()),
            signal: status.and_then(|s| s.signal()),
            never_ran: false,
            asked,
            ran,
            stderr: tail.lines.into(),
            text: String::new(),
            cause: String::new(),
        };
        for told in tail.told {
            let cause = match told {
                Told::Signal(signal) => {
                    (report.code, report.signal) = (None, Some(signal));
                    continue;
                }
                Told::NotStarted(why) => {
                    // The supervisor's words come on the program's stderr, where the program, and
                    // through it a caller, could put the same. What has spoken has run.
                    report.never_ran = !spoke && matches!(report.code, Some(125..=127));
                    format!("{why}: is the program installed, executable, and its interpreter too?")
                }
                Told::LeftBehind(pids) => {
                    format!("processes {pids} were left behind and could not be killed")
                }
                Told::Failed(why) => format!("the supervisor failed: {why}"),
            };
            report.cause = cause;
        }
        report.text = report.sentence();
        report
    }

    fn sentence(&self) -> String {
        let after = format!("after {:.1} s", self.ran.as_secs_f64());
        match (self.code, self.signal) {
            _ if self.never_ran => "the server program could not be started".to_owned(),
            _ if self.asked => format!("the gateway stopped the server process {after}"),
            (_, Some(signal)) => {
                format!("the server process was killed by {} {after}", name(signal))
            }
            (Some(code), None) => format!("the server process ended with code {code} {after}"),
            (None, None) => format!("the server process ended {after}"),
        }
    }

    /// The sentence with its causes and the last words on stderr, for the log and for operators.
    pub fn detail(&self) -> String {
        let mut out = self.text.clone();
        let cause = self.causes();
        if !cause.is_empty() {
            let _ = write!(out, ": {cause}");
        }
        out
    }

    fn causes(&self) -> String {
        let mut out = self.cause.clone();
        if !self.asked && !self.stderr.is_empty() {
            // The end of it: that is where the reason stands.
            let all = self.stderr.join(" | ");
            let skip = all.chars().count().saturating_sub(QUOTED);
            let cut = if skip > 0 { "…" } else { "" };
            let quoted: String = all.chars().skip(skip).collect();
            let sep = if out.is_empty() { "" } else { "; " };
            let _ = write!(out, "{sep}stderr: {cut}{quoted}");
        }
        out
    }

    pub(super) fn lost(&self) -> Lost {
        Lost {
            reason: if self.never_ran { Reason::ConnectFailed } else { Reason::ConnectionLost },
            text: self.text.clone(),
            cause: self.causes(),
            never_ran: self.never_ran,
        }
    }
}

/// The usual name of a signal; numbers as on Linux.
fn name(signal: i32) -> String {
    let word = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        other => return format!("signal {other}"),
    };
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(raw: i32, told: &[Told], asked: bool) -> ExitReport {
        let tail = Tail { lines: ["one".into(), "two".into()].into(), told: told.to_vec() };
        let status = Some(ExitStatus::from_raw(raw));
        ExitReport::new(status, tail, Duration::from_millis(1234), asked, false)
    }

    #[test]
    fn ends_are_told_in_words() {
        insta::assert_snapshot!(
            report(3 << 8, &[], false).detail(),
            @"the server process ended with code 3 after 1.2 s: stderr: one | two"
        );
        let killed = report(139 << 8, &[Told::Signal(11)], false);
        assert_eq!((killed.code, killed.signal), (None, Some(11)));
        insta::assert_snapshot!(killed.text, @"the server process was killed by SIGSEGV after 1.2 s");
        insta::assert_snapshot!(
            report(0, &[], true).detail(),
            @"the gateway stopped the server process after 1.2 s"
        );
        // A program that says so of itself has run.
        for (raw, spoke) in [(127 << 8, true), (1 << 8, false), (9, false)] {
            let told = Told::NotStarted("No such file".into());
            let tail = Tail { told: vec![told], ..Tail::default() };
            let status = Some(ExitStatus::from_raw(raw));
            let forged = ExitReport::new(status, tail, Duration::ZERO, false, spoke);
            assert_eq!(forged.lost().fault(true).delivery, crate::failure::Delivery::Unknown);
        }
        let never =
            report(127 << 8, &[Told::NotStarted("No such file or directory".into())], false);
        assert_eq!(never.lost().reason, Reason::ConnectFailed);
        assert_eq!(never.lost().fault(true).delivery, crate::failure::Delivery::NotSent);
        insta::assert_snapshot!(never.text, @"the server program could not be started");
        insta::assert_snapshot!(
            never.lost().fault(true).cause,
            @"the server program could not be started: No such file or directory: is the program installed, executable, and its interpreter too?; stderr: one | two"
        );
        insta::assert_snapshot!(
            report(9, &[Told::LeftBehind("7".into())], true).detail(),
            @"the gateway stopped the server process after 1.2 s: processes 7 were left behind and could not be killed"
        );
    }
}
