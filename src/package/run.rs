//! One step of an installer: bounded in time and output, and gone with us.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use std::os::unix::process::CommandExt as _;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::{Instant, timeout_at};

use crate::shim;

/// Most bytes of an installer's output that are kept: the end, where the reason stands.
const KEPT: usize = 16 * 1024;

/// Most lines of it that are shown.
const SHOWN_LINES: usize = 6;

/// Most characters of a line that are shown.
const SHOWN_CHARS: usize = 200;

/// Beginnings of npm's advice, which goes over several lines and comes last.
const ADVICE: &[&str] = &[
    "Note that you can",
    "In most cases you or",
    "A complete log of",
    "This is a problem related to",
];

/// Variables that installers need: where programs and homes are, how to reach a registry, and
/// with what. None of what upstreams are configured with.
const ENV: &[&str] = &[
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "USER",
    "LOGNAME",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "NPM_TOKEN",
    "NODE_AUTH_TOKEN",
];

/// Beginnings of further such variables.
const ENV_PREFIXES: &[&str] = &["npm_config_", "NPM_CONFIG_", "PIP_"];

/// How a step failed.
#[derive(Debug)]
pub(super) enum StepError {
    /// It ended with an error; the end of what it said.
    Said(String),
    /// It was stopped at the deadline.
    TooSlow,
}

/// Run a program to its end in `cwd`, below the supervisor `shim`, so that nothing of it outlives
/// us, however we end.
pub(super) async fn step(
    shim: Option<&Path>,
    program: PathBuf,
    args: Vec<OsString>,
    cwd: &Path,
    deadline: Instant,
) -> Result<(), StepError> {
    let shown = program.display().to_string();
    let failed = |e: io::Error| StepError::Said(format!("{shown}: {e}"));
    let mut command = match shim {
        Some(shim) => shim::command(shim, program.as_os_str(), &args),
        None => {
            let mut command = std::process::Command::new(program);
            command.args(args).process_group(0);
            command
        }
    };
    command
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| wanted(name.to_str())))
        .current_dir(cwd)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = Command::from(command).spawn().map_err(failed)?;
    let signal = if shim.is_some() { Signal::TERM } else { Signal::KILL };
    let group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())), signal);
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let ended = timeout_at(deadline, async {
        let (out, err, status) = tokio::join!(end_of(out), end_of(err), child.wait());
        status.map(|status| (status, out, err))
    });
    let (status, out, err) = match ended.await {
        Err(_) => return Err(StepError::TooSlow), // dropping the group ends it
        Ok(ended) => ended.map_err(failed)?,
    };
    group.done();
    if status.success() {
        return Ok(());
    }
    let said = excerpt(&err);
    let said = if said.is_empty() { excerpt(&out) } else { said };
    Err(StepError::Said(if said.is_empty() { format!("{shown}: {status}") } else { said }))
}

fn wanted(name: Option<&str>) -> bool {
    name.is_some_and(|n| ENV.contains(&n) || ENV_PREFIXES.iter().any(|p| n.starts_with(p)))
}

/// A process group that is told to end when this is dropped: its leader is the supervisor, which
/// sees to all below it.
struct Group(Option<Pid>, Signal);

impl Group {
    /// Its leader was waited for: the number may be somebody else's now.
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = kill_process_group(pid, self.1);
        }
    }
}

async fn end_of(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else { return String::new() };
    let mut kept = Vec::new();
    let mut chunk = vec![0; 4096];
    while let Ok(n @ 1..) = from.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..n]);
        if kept.len() > 2 * KEPT {
            kept.drain(..kept.len() - KEPT);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// The lines that say why, on one line.
fn excerpt(output: &str) -> String {
    let lines: Vec<_> = output.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
    // npm and pip mark what went wrong; npm then adds where in its own code, and advice.
    let marked = |l: &&str| {
        let text = ["npm error", "npm ERR!", "ERROR:"].iter().find_map(|m| l.strip_prefix(m));
        text.is_some_and(|t| !t.starts_with("  ") && !t.trim().is_empty())
    };
    let all: Vec<_> = lines.iter().copied().filter(marked).collect();
    let errors: Vec<_> = all
        .iter()
        .copied()
        // npm's empty line is a mark alone (`npm error 404`), the beginning of its other lines.
        .filter(|l| !all.iter().any(|other| other.len() > l.len() && other.starts_with(l)))
        .take_while(|l| !ADVICE.iter().any(|a| l.contains(a)))
        .take(SHOWN_LINES)
        .collect();
    let last = lines[lines.len().saturating_sub(SHOWN_LINES)..].to_vec();
    let shown = if errors.is_empty() { last } else { errors };
    shown
        .iter()
        .map(|l| {
            let line = without_credentials(l);
            let mut chars = line.chars().filter(|c| !c.is_control());
            let mut kept: String = chars.by_ref().take(SHOWN_CHARS).collect();
            if chars.next().is_some() {
                kept.push('…');
            }
            kept
        })
        .collect::<Vec<_>>()
        .join("; ")
}

/// A registry's address may hold a password.
fn without_credentials(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(|c: char| c == '/' || c.is_whitespace()).unwrap_or(after.len());
        rest = match after[..end].rfind('@') {
            Some(user_end) => {
                out.push_str("«secret»");
                &after[user_end..]
            }
            None => after,
        };
    }
    out + rest
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_reason_is_picked_out_of_the_output() {
        let npm = "npm warn Unknown user config\nnpm error code ECONNREFUSED\nnpm error FetchError: \
                   request to http://u:p@127.0.0.1:1/x failed\nnpm error     at Client.x (/usr/lib/a.js:1)\n\
                   npm error\n";
        insta::assert_snapshot!(
            excerpt(npm),
            @"npm error code ECONNREFUSED; npm error FetchError: request to http://«secret»@127.0.0.1:1/x failed"
        );
        insta::assert_snapshot!(
            excerpt("a\nb\n\n\x1b[31mc\x1b[0m\nd\ne\nf\ng\n"),
            @"b; [31mc[0m; d; e; f; g"
        );
        assert_eq!(excerpt(""), "");
        let absent = "npm error code E404\nnpm error 404 Not Found - GET https://r.example/@a%2fb - Not found\n\
                      npm error 404\nnpm error 404  '@a/b@1.2.3' is not in this registry.\n\
                      npm error 404\nnpm error 404 Note that you can also install from a\n\
                      npm error 404 tarball, folder, http url, or git folder.\n\
                      npm error A complete log of this run can be found in: /root/x.log\n";
        insta::assert_snapshot!(
            excerpt(absent),
            @"npm error code E404; npm error 404 Not Found - GET https://r.example/@a%2fb - Not found; npm error 404  '@a/b@1.2.3' is not in this registry."
        );
        let version = "npm error code ETARGET\nnpm error notarget No matching version found for a@9.9.9.\n\
                       npm error notarget In most cases you or one of your dependencies are requesting\n\
                       npm error notarget a package version that doesn't exist.\n";
        insta::assert_snapshot!(excerpt(version), @"npm error code ETARGET; npm error notarget No matching version found for a@9.9.9.");
        assert!(excerpt(&"x".repeat(500)).ends_with("x…"));
    }

    #[test]
    fn only_installers_variables_pass() {
        for (name, yes) in [
            ("PATH", true),
            ("npm_config_registry", true),
            ("PIP_INDEX_URL", true),
            ("STRIPE_KEY", false),
            ("AWS_SECRET_ACCESS_KEY", false),
        ] {
            assert_eq!(wanted(Some(name)), yes, "{name}");
        }
        assert!(!wanted(None));
    }

    async fn sh(script: &str, limit: Duration) -> Result<(), StepError> {
        let args = vec!["-c".into(), script.into()];
        step(None, "/bin/sh".into(), args, Path::new("/"), Instant::now() + limit).await
    }

    #[tokio::test]
    async fn output_is_bounded_and_the_end_is_told() {
        let minute = Duration::from_secs(60);
        sh("head -c 5000000 /dev/zero | tr '\\0' x; head -c 5000000 /dev/zero >&2", minute)
            .await
            .unwrap();
        let script = "head -c 5000000 /dev/zero | tr '\\0' '\\n' >&2; echo 'no space' >&2; exit 1";
        let Err(StepError::Said(why)) = sh(script, minute).await else { panic!("it fails") };
        assert_eq!(why, "no space");
    }

    #[tokio::test]
    async fn a_step_that_hangs_is_ended_with_all_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let slow = sh(&script, Duration::from_millis(500)).await;
        assert!(matches!(slow, Err(StepError::TooSlow)));
        let pid = std::fs::read_to_string(file).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        for _ in 0..100 {
            // An orphan's dead body stays until its new parent looks.
            match std::fs::read_to_string(&stat) {
                Ok(s) if !s.contains(") Z ") => tokio::time::sleep(Duration::from_millis(20)).await,
                _ => return,
            }
        }
        panic!("it lives on");
    }
}
