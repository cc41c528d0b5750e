//! A child process that speaks over its stdin and stdout, one message a line
//! (2026-07-28 basic/transports/stdio).
//!
//! Each child has four tasks: `writer` and `lines`+`table` move messages and never wait for each
//! other, `stderr` drains what it has to say, `child` owns its life. The child itself runs below
//! a supervisor ([`crate::shim`]), so that nothing it starts outlives it or us.

mod child;
mod counters;
mod env;
mod glance;
mod lines;
mod report;
mod slot;
mod stderr;
mod table;
mod workdir;
mod writer;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use counters::StdioCounters;
pub use env::BASE_ENV;
pub use report::ExitReport;

use child::{Shim, Warden};
use counters::add;
use lines::Lines;
use slot::Lost;
use stderr::Tail;
use table::Table;
use workdir::WorkDir;
use writer::{ASIDES_MAX, Outgoing, QUEUE_MAX};

use super::{OnNotice, UNASKED_MAX, Unasked};
use crate::config::secret::Scrubber;
use crate::config::{Program, StdioConfig};
use crate::failure::{Delivery, Fault, Reason};
use crate::package;
use crate::protocol::message::{Frame, one_line};
use crate::shim;

/// What a child is started with.
pub struct Launch {
    /// The upstream's name, for the log and the directory.
    pub upstream: Arc<str>,
    /// What to run.
    pub config: Arc<StdioConfig>,
    /// The program that supervises: normally ourselves, `/proc/self/exe`.
    pub shim: PathBuf,
    /// Below it, working directories.
    pub state_dir: PathBuf,
    /// Below it, packages.
    pub cache_dir: PathBuf,
    /// Takes the secrets out of what is logged.
    pub scrubber: Scrubber,
    /// Largest message in bytes that the child may send.
    pub max_message: usize,
    /// Where to count.
    pub counters: Arc<StdioCounters>,
}

/// The way to one running child. Cloning shares it; when the last clone is dropped, the child is
/// stopped as by [`StdioWire::close`].
#[derive(Clone)]
pub struct StdioWire(Arc<Shared>);

struct Shared {
    table: Arc<Table>,
    queue: mpsc::Sender<Outgoing>,
    closing: CancellationToken,
    report: watch::Receiver<Option<Arc<ExitReport>>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl StdioWire {
    /// Start the child, after installing its package where it is one. Says nothing to it.
    ///
    /// # Errors
    /// [`Reason::ConnectFailed`]; nothing was sent. A program that turns out to be no program
    /// only once it is executed ends at once instead, and [`ExitReport::never_ran`] says so.
    pub async fn start(launch: Launch) -> Result<(StdioWire, mpsc::Receiver<Unasked>), Fault> {
        let environment = env::environment(&launch.config, &|name| std::env::var_os(name));
        let (program, args) = program(&launch).await?;
        let program = find_program(&launch.config, &program).map_err(|e| not_started(&e))?;

        let workdir = workdir(&launch).await?;
        let cwd = workdir.as_ref().map(WorkDir::path).or(launch.config.cwd.as_deref());
        let mut command = shim::command(&launch.shim, program.as_os_str(), &args);
        command.env_clear().envs(&environment);
        if let Some(cwd) = cwd {
            command.current_dir(cwd);
        }
        let started = Instant::now();
        let shim = child::spawn(command)
            .await
            .map_err(|e| not_started(&format!("{}: {e}", launch.shim.display())))?;
        StdioWire::over(launch, shim, workdir, started).map_err(|e| not_started(&e))
    }

    fn over(
        launch: Launch,
        mut shim: Shim,
        workdir: Option<WorkDir>,
        started: Instant,
    ) -> std::io::Result<(StdioWire, mpsc::Receiver<Unasked>)> {
        let (stdin, stdout, stderr) = shim.pipes()?;
        let Launch { upstream, config, scrubber, max_message, counters, .. } = launch;
        let (unasked, to_owner) = mpsc::channel(UNASKED_MAX);
        let (asides, asides_end) = mpsc::channel(ASIDES_MAX);
        let (queue, queue_end) = mpsc::channel(QUEUE_MAX);
        let (report, reported) = watch::channel(None);
        let (closing, broken) = (CancellationToken::new(), CancellationToken::new());
        let tail = Arc::new(Mutex::new(Tail::default()));
        let table = Arc::new(Table::new(
            upstream.clone(),
            max_message,
            scrubber.clone(),
            counters.clone(),
            unasked,
            asides,
        ));

        let reader = tokio::spawn(read(stdout, max_message, table.clone(), broken.clone()));
        let writer = tokio::spawn(writer::write(
            stdin,
            queue_end,
            asides_end,
            table.clone(),
            closing.clone(),
            broken.clone(),
        ));
        let relay = tokio::spawn(stderr::relay(
            stderr,
            upstream.clone(),
            config.stderr_per_minute,
            scrubber,
            counters,
            tail.clone(),
        ));
        let warden = Warden {
            shim,
            upstream,
            started,
            workdir,
            table: table.clone(),
            tail,
            reader,
            writer,
            relay,
            closing: closing.clone(),
            broken,
            report,
        };
        tokio::spawn(warden.watch());
        Ok((StdioWire(Arc::new(Shared { table, queue, closing, report: reported })), to_owner))
    }

    /// Send the request `message`, whose id is `id`, and wait for its answer: a result or an
    /// error of the upstream's. `on_notice` gets, before that, each notification that names the
    /// request (progress whose token is `id`, what belongs to its subscription).
    ///
    /// Dropping the future before the answer forgets the request. If it was sent and is
    /// `cancellable` (everything but `initialize`), the upstream is told.
    ///
    /// Waits without a limit of its own for a child that does not read or answer.
    ///
    /// # Errors
    /// [`Reason::ConnectionLost`] and [`Reason::ConnectFailed`] when the child is gone,
    /// [`Reason::TooLarge`] and [`Reason::Garbled`] when its answer is no use. `NotSent` only if
    /// not a byte of the message was written.
    pub async fn request(
        &self,
        id: u64,
        message: Bytes,
        cancellable: bool,
        on_notice: OnNotice<'_>,
    ) -> Result<Frame, Fault> {
        let ticket = self.0.table.enter(id, cancellable)?;
        let outgoing = Outgoing { line: one_line(&message), slot: Some(ticket.slot.clone()) };
        if self.0.queue.send(outgoing).await.is_err() {
            // The writer fails what it leaves behind, so the outcome is there or comes at once.
            self.0.table.fail_unsent(stopped());
        }
        ticket.slot.outcome(on_notice).await
    }

    /// Send a notification or a response. Returns once it waits to be written, which may take as
    /// long as a child that does not read.
    ///
    /// # Errors
    /// The child is gone or being stopped; nothing was sent.
    pub async fn notify(&self, message: Bytes) -> Result<(), Fault> {
        self.0.table.check()?;
        let outgoing = Outgoing { line: one_line(&message), slot: None };
        self.0
            .queue
            .send(outgoing)
            .await
            .map_err(|_| self.0.table.check().err().unwrap_or_else(|| stopped().fault(false)))
    }

    /// Whether anything at all came on stdout: a sign of life of a slow starter.
    pub fn saw_output(&self) -> bool {
        self.0.table.saw_output()
    }

    /// Wait until the child and all it started are gone.
    pub async fn exited(&self) -> ExitReport {
        let mut report = self.0.report.clone();
        match report.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(report)) => (**report).clone(),
            // The runtime that watched it is being torn down, and the child with it.
            _ => ExitReport::new(None, Tail::default(), std::time::Duration::ZERO, true, true),
        }
    }

    /// Stop the child: its stdin is closed, after three seconds it gets SIGTERM and after five
    /// more SIGKILL. Returns when it and all it started are gone and its directory is removed.
    pub async fn close(&self) {
        self.0.closing.cancel();
        self.exited().await;
    }
}

async fn read(
    stdout: tokio::process::ChildStdout,
    max_message: usize,
    table: Arc<Table>,
    broken: CancellationToken,
) {
    // Also when this task is aborted or panics.
    let _broken = broken.drop_guard();
    let mut lines = Lines::new(stdout, max_message);
    loop {
        let next = lines.next().await;
        add(&table.counters.bytes_in, lines.take_bytes());
        match next {
            Ok(Some(line)) => table.take(line),
            Ok(None) | Err(_) => return,
        }
    }
}

/// Where a child looks for programs.
pub fn search_path(config: &StdioConfig) -> Option<OsString> {
    env::environment(config, &|name| std::env::var_os(name)).remove(std::ffi::OsStr::new("PATH"))
}

/// Where `program` is for this child: bare names are looked for on the `PATH` that it gets.
///
/// # Errors
/// There is none that can be started.
pub fn find_program(config: &StdioConfig, program: &str) -> Result<PathBuf, shim::NotFound> {
    shim::find_program(program, search_path(config).as_deref())
}

async fn program(launch: &Launch) -> Result<(String, Vec<OsString>), Fault> {
    let own = launch.config.args.iter().map(|arg| OsString::from(arg.expose()));
    match &launch.config.program {
        Program::Command(command) => Ok((command.clone(), own.collect())),
        Program::Package(spec) => {
            let installed = package::ensure(spec, &launch.cache_dir, Some(&launch.shim))
                .await
                .map_err(|e| not_started(&launch.scrubber.scrub(&e.to_string())))?;
            let program = installed.program.to_string_lossy().into_owned();
            Ok((program, installed.args.into_iter().chain(own).collect()))
        }
    }
}

async fn workdir(launch: &Launch) -> Result<Option<WorkDir>, Fault> {
    if let Some(cwd) = &launch.config.cwd {
        if !cwd.is_dir() {
            return Err(not_started(&format!(
                "working directory {} does not exist",
                cwd.display()
            )));
        }
        return Ok(None);
    }
    let (state_dir, upstream) = (launch.state_dir.clone(), launch.upstream.clone());
    let made = tokio::task::spawn_blocking(move || WorkDir::make(&state_dir, &upstream)).await;
    let made = made.unwrap_or_else(|e| Err(std::io::Error::other(e)));
    let place = launch.state_dir.display();
    made.map(Some).map_err(|e| not_started(&format!("no working directory below {place}: {e}")))
}

fn not_started(cause: &dyn std::fmt::Display) -> Fault {
    Fault::new(Reason::ConnectFailed, Delivery::NotSent, "the server program could not be started")
        .because(cause)
}

fn stopped() -> Lost {
    Lost::new("the server process is being stopped")
}
