//! An installation: made once, seen only when complete.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::sync::watch;
use tokio::time::Instant;

use super::run::StepError;
use super::{INSTALL_LIMIT, PackageError, cache, label, npm, pypi};
use crate::config::{PackageSpec, Registry};

/// How often the lock of another gateway is tried. A waiting thread per try would cost more.
const LOCK_POLL: Duration = Duration::from_millis(200);

type Outcome = Result<(), PackageError>;
type Running = HashMap<PathBuf, watch::Receiver<Option<Outcome>>>;

/// The installations that go on in this process. One for each configured package at most.
static RUNNING: LazyLock<Mutex<Running>> = LazyLock::new(Mutex::default);

fn running() -> MutexGuard<'static, Running> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Out of the table, also when the task ends before its time.
struct Entry(PathBuf);

impl Drop for Entry {
    fn drop(&mut self) {
        running().remove(&self.0);
    }
}

/// Whether an installation into `home` goes on.
pub(super) fn is_running(home: &Path) -> bool {
    running().contains_key(home)
}

/// Install into `home`, or wait for the installation that goes on already.
pub(super) async fn once(spec: &PackageSpec, home: &Path, shim: Option<&Path>) -> Outcome {
    let (tx, rx) = watch::channel(None);
    let joined = {
        let mut running = running();
        let joined = running.get(home).cloned();
        if joined.is_none() {
            running.insert(home.to_owned(), rx.clone());
        }
        joined
    };
    let mut outcome = if let Some(joined) = joined {
        joined
    } else {
        // Outside the lock: a runtime that is going down drops the task, and with it the entry,
        // at once.
        let (entry, spec) = (Entry(home.to_owned()), spec.clone());
        let shim = shim.map(Path::to_owned);
        tokio::spawn(async move {
            let outcome = install(&spec, &entry.0, shim.as_deref()).await;
            drop(entry);
            tx.send_replace(Some(outcome));
        });
        rx
    };
    match outcome.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(outcome)) => outcome.clone(),
        _ => Err(PackageError::Failed {
            package: label(spec),
            why: "the installation was broken off".to_owned(),
        }),
    }
}

async fn install(spec: &PackageSpec, home: &Path, shim: Option<&Path>) -> Outcome {
    let deadline = Instant::now() + INSTALL_LIMIT;
    let package = label(spec);
    let on_disk = |e: io::Error| cache(spec, home, &e);
    let (Some(folder), Some(name)) = (home.parent(), home.file_name().and_then(|n| n.to_str()))
    else {
        return Err(PackageError::BadSpec(package));
    };
    fs::create_dir_all(folder).map_err(on_disk)?;
    // Stays there: who removes a lock file can no longer tell who holds it.
    let lock = File::create(folder.join(format!(".{name}.lock"))).map_err(on_disk)?;
    while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= deadline {
            return Err(PackageError::TooSlow { package });
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
    if home.is_dir() {
        return Ok(()); // another gateway was first
    }
    let begun = format!(".{name}.new-");
    // Not by our number alone: in a container every gateway has the same.
    let mut chance = [0u8; 8];
    getrandom::fill(&mut chance).expect("the operating system gives random bytes");
    let fresh = folder.join(format!("{begun}{:016x}", u64::from_ne_bytes(chance)));
    let made = {
        let (folder, begun, fresh) = (folder.to_owned(), begun.clone(), fresh.clone());
        tokio::task::spawn_blocking(move || {
            remove_begun(&folder, &begun)?;
            fs::create_dir(&fresh)
        })
    };
    made.await.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(on_disk)?;

    tracing::info!(%package, "installing");
    let outcome = match spec.registry {
        Registry::Npm => npm::install(spec, &fresh, shim, deadline).await,
        Registry::Pypi => pypi::install(spec, &fresh, shim, deadline).await,
    };
    let (folder, home) = (folder.to_owned(), home.to_owned());
    let placed = tokio::task::spawn_blocking(move || {
        if outcome.is_err() {
            // What is left of it would be swept the next time anyway.
            let _ = fs::remove_dir_all(&fresh);
            return outcome.map(|()| Ok(()));
        }
        Ok(settle(&folder).and_then(|()| fs::rename(&fresh, &home)))
    });
    match placed.await {
        Ok(Ok(placed)) => placed.map_err(on_disk)?,
        Ok(Err(error)) => return Err(error),
        Err(e) => return Err(on_disk(io::Error::other(e))),
    }
    tracing::info!(%package, "installed");
    Ok(())
}

/// What an installation that was broken off left behind. Only with the lock held.
fn remove_begun(folder: &Path, begun: &str) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_name().to_str().is_some_and(|n| n.starts_with(begun)) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Bring the files to the disk before their directory gets its name, or a power cut could leave
/// a complete-looking installation of empty files.
#[cfg(target_os = "linux")]
fn settle(folder: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(folder)?)?)
}

#[cfg(not(target_os = "linux"))]
fn settle(_: &Path) -> io::Result<()> {
    rustix::fs::sync();
    Ok(())
}

/// A failed step as the failure of its package.
pub(super) fn step_failed(spec: &PackageSpec) -> impl Fn(StepError) -> PackageError {
    let package = label(spec);
    move |error| match error {
        StepError::Said(why) => PackageError::Failed { package: package.clone(), why },
        StepError::TooSlow => PackageError::TooSlow { package: package.clone() },
    }
}
