//! A child's life: started below its supervisor, watched, stopped, reported.

use std::io;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::family::Place;
use super::report::ExitReport;
use super::stderr::Tail;
use super::workdir::WorkDir;
use crate::shim::{EOF_GRACE, KILL_GRACE, LEFTOVER_GRACE, TERM_GRACE};
use crate::upstream::transport::pipe::{Lost, Table};

/// How long a child whose pipe broke may take to be seen dead, so that its requests can be told
/// how it ended. Its supervisor may have leftovers to tidy up first.
const END_WAIT: Duration = LEFTOVER_GRACE.saturating_add(Duration::from_secs(1));

/// How long a supervisor may take after SIGTERM, when everything below it resists.
const SHIM_WAIT: Duration =
    TERM_GRACE.saturating_add(KILL_GRACE).saturating_add(Duration::from_secs(2));

/// How long the pipes of a dead child are still read. They end with its last descendant; only
/// one that could not be killed holds them open.
const PIPE_WAIT: Duration = Duration::from_secs(1);

/// Starts that may wait for the thread that does them.
const STARTS_MAX: usize = 64;

/// A supervisor. Dropped while it lives, it is told to end the child.
pub(super) struct Shim(Child);

impl Shim {
    pub(super) fn pipes(&mut self) -> io::Result<(Stdin, Stdout, Stderr)> {
        let missing = || io::Error::other("a pipe is missing");
        Ok((
            self.0.stdin.take().ok_or_else(missing)?,
            self.0.stdout.take().ok_or_else(missing)?,
            self.0.stderr.take().ok_or_else(missing)?,
        ))
    }

    /// Its process id; 0, which no child has, once it was waited for.
    pub(super) fn number(&self) -> u32 {
        self.0.id().unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        // It has a number until it was waited for, so the number is still its own.
        if let Some(pid) = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
    }
}

type Stdin = tokio::process::ChildStdin;
type Stdout = tokio::process::ChildStdout;
type Stderr = tokio::process::ChildStderr;

struct Start {
    command: Command,
    runtime: Handle,
    reply: oneshot::Sender<io::Result<Shim>>,
}

/// Start a supervisor, on a thread that never ends: the kernel tells a supervisor of the end of
/// the thread that started it, and threads of a runtime come and go.
pub(super) async fn spawn(mut command: Command) -> io::Result<Shim> {
    static STARTER: OnceLock<mpsc::Sender<Start>> = OnceLock::new();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let starter = STARTER.get_or_init(|| {
        let (tx, mut rx) = mpsc::channel::<Start>(STARTS_MAX);
        std::thread::Builder::new()
            .name("weir-starter".into())
            .spawn(move || {
                while let Some(start) = rx.blocking_recv() {
                    let _runtime = start.runtime.enter();
                    let started = tokio::process::Command::from(start.command).spawn().map(Shim);
                    // Nobody waits any more: the dropped supervisor ends the child.
                    let _ = start.reply.send(started);
                }
            })
            .expect("a thread can be started");
        tx
    });
    let (reply, started) = oneshot::channel();
    let gone = || io::Error::other("the starting thread is gone");
    starter.send(Start { command, runtime: Handle::current(), reply }).await.map_err(|_| gone())?;
    started.await.map_err(|_| gone())?
}

/// The task that owns a child until it is gone.
pub(super) struct Warden {
    pub(super) shim: Shim,
    pub(super) upstream: Arc<str>,
    pub(super) place: Place,
    pub(super) started: Instant,
    pub(super) workdir: Option<WorkDir>,
    pub(super) table: Arc<Table>,
    pub(super) tail: Arc<Mutex<Tail>>,
    pub(super) reader: JoinHandle<()>,
    pub(super) writer: JoinHandle<()>,
    pub(super) relay: JoinHandle<()>,
    pub(super) closing: CancellationToken,
    pub(super) broken: CancellationToken,
    pub(super) ended: watch::Sender<Option<Lost>>,
    pub(super) doomed: watch::Sender<Option<Lost>>,
    pub(super) report: watch::Sender<Option<Arc<ExitReport>>>,
}

impl Warden {
    pub(super) async fn watch(mut self) {
        let mut asked = false;
        let mut over = None;
        let status = tokio::select! {
            status = self.shim.0.wait() => status,
            () = self.closing.cancelled() => {
                asked = true;
                self.stop().await
            }
            () = self.broken.cancelled() => self.end().await,
            lost = self.place.over() => {
                asked = true;
                tracing::warn!(upstream = %self.upstream, reason = %lost.reason, "{}", lost.text);
                self.table.fail_unsent(lost.clone());
                self.doomed.send_replace(Some(lost.clone()));
                over = Some(lost);
                // As any stop: what it is at it may finish while it ends.
                self.closing.cancel();
                self.stop().await
            }
        };
        // No new message goes out, and the pipes end now that all who had them are gone.
        self.closing.cancel();
        for task in [&mut self.reader, &mut self.relay, &mut self.writer] {
            if timeout(PIPE_WAIT, &mut *task).await.is_err() {
                task.abort();
            }
        }
        let report = self.made(status, asked);
        let lost = over.unwrap_or_else(|| report.lost());
        self.table.fail_all(lost.clone());
        tracing::info!(upstream = %self.upstream, asked, "{}", report.detail());
        if let Some(dir) = self.workdir.take() {
            let removed = tokio::task::spawn_blocking(|| dir.remove()).await;
            if let Ok(Err(error)) = removed {
                tracing::warn!(upstream = %self.upstream, %error, "its directory stays");
            }
        }
        drop(self.place);
        // Last: whoever waits for the end finds everything done.
        self.report.send_replace(Some(Arc::new(report)));
        self.ended.send_replace(Some(lost));
    }

    /// A pipe broke: wait for the end that most likely is the cause, or bring it about. A child
    /// that cannot be talked to is of no use.
    async fn end(&mut self) -> io::Result<ExitStatus> {
        if let Ok(status) = timeout(END_WAIT, self.shim.0.wait()).await {
            return status;
        }
        self.table.fail_all(Lost::new("the server process closed a pipe while still running"));
        self.closing.cancel();
        self.stop().await
    }

    /// Stdin is closed by the writer, which hears the same signal. Then SIGTERM; the supervisor
    /// sees to the rest.
    async fn stop(&mut self) -> io::Result<ExitStatus> {
        if let Ok(status) = timeout(EOF_GRACE, self.shim.0.wait()).await {
            return status;
        }
        self.shim.signal(Signal::TERM);
        if let Ok(status) = timeout(SHIM_WAIT, self.shim.0.wait()).await {
            return status;
        }
        self.shim.signal(Signal::KILL);
        self.shim.0.wait().await
    }

    fn made(&self, status: io::Result<ExitStatus>, asked: bool) -> ExitReport {
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let tail = std::mem::take(&mut *tail);
        ExitReport::new(status.ok(), tail, self.started.elapsed(), asked, self.table.saw_output())
    }
}
