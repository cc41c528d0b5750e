//! A child process that speaks over its stdin and stdout, one message a line
//! (2026-07-28 basic/transports/stdio).
//!
//! Each child has four tasks: `writer` and `lines`+`table` move messages and never wait for each
//! other, `stderr` drains what it has to say, `child` owns its life. The child itself runs below
//! a supervisor ([`crate::shim`]), so that nothing it starts outlives it or us.

mod child;
mod env;
mod family;
mod lines;
mod report;
mod stderr;
mod workdir;
mod writer;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use env::BASE_ENV;
pub use family::{Children, Family, FamilyUsage};
pub use report::ExitReport;

use child::{Shim, Warden};
use lines::Lines;
use stderr::Tail;
use workdir::WorkDir;

use super::Unasked;
use super::pipe::{Inside, Pipe, PipeCounters, Table};
use crate::config::secret::Scrubber;
use crate::config::{Program, StdioConfig};
use crate::failure::{Delivery, Fault, Reason};
use crate::package;
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
    pub counters: Arc<PipeCounters>,
    /// All children, where it is one of.
    pub children: Arc<Children>,
    /// Those of its upstream.
    pub family: Arc<Family>,
}

/// The way to one running child: a pipe, and how the child ended. Cloning shares it; when the last
/// clone of the pipe is dropped, the child is stopped as by [`StdioWire::close`].
#[derive(Clone)]
pub struct StdioWire {
    pipe: Pipe,
    report: watch::Receiver<Option<Arc<ExitReport>>>,
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
        let Launch { upstream, config, scrubber, max_message, counters, children, family, .. } =
            launch;
        let place = children.enter(family, shim.number());
        let (report, reported) = watch::channel(None);
        let broken = CancellationToken::new();
        let tail = Arc::new(Mutex::new(Tail::default()));
        let (pipe, inside, unasked) =
            Pipe::new(upstream.clone(), max_message, scrubber.clone(), counters.clone());
        let Inside { table, outbox, closing, ended, doomed } = inside;

        let reader = tokio::spawn(read(stdout, max_message, table.clone(), broken.clone()));
        let writer = tokio::spawn(writer::write(
            stdin,
            outbox,
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
            place,
            started,
            workdir,
            table,
            tail,
            reader,
            writer,
            relay,
            closing,
            broken,
            ended,
            doomed,
            report,
        };
        tokio::spawn(warden.watch());
        Ok((StdioWire { pipe, report: reported }, unasked))
    }

    /// What carries its messages.
    pub fn pipe(&self) -> &Pipe {
        &self.pipe
    }

    /// Wait until the child and all it started are gone.
    pub async fn exited(&self) -> ExitReport {
        let mut report = self.report.clone();
        match report.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(report)) => (**report).clone(),
            // The runtime that watched it is being torn down, and the child with it.
            _ => ExitReport::new(None, Tail::default(), std::time::Duration::ZERO, true, true),
        }
    }

    /// Stop the child: its stdin is closed, after three seconds it gets SIGTERM and after five
    /// more SIGKILL. Returns when it and all it started are gone and its directory is removed.
    pub async fn close(&self) {
        self.pipe.begin_close();
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
    let mut lines = Lines::new(stdout, max_message, table.counters.clone());
    loop {
        match lines.next().await {
            Ok(Some(line)) => {
                if !table.take(line) {
                    lines.unasked();
                }
            }
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
