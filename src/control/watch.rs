//! File change and signals become the same order.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::{Order, Why};
use crate::config::FILE_MAX;

/// How often the file is looked at. Reading a few kilobytes costs microseconds, and reading the
/// content sees every way of saving: rename-over, writing in place, a ConfigMap's symlink swap,
/// also on file systems that tell nobody.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Watch `path`; each change that stays the same for one more look is told. A file that is being
/// written changes between looks and so is not read half.
///
/// What differs from what was `loaded` last, for whatever reason that was, is a change.
pub async fn file(path: PathBuf, loaded: Loaded, orders: mpsc::Sender<Order>) {
    let mut seen = loaded.get();
    let mut missed = false;
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let now = read(&path).await;
        let settled = now == seen;
        seen = now;
        if !settled {
            continue;
        }
        // A file that is gone for a moment (rename, symlink swap) is no change.
        if let Err(error) = &seen {
            if !missed {
                missed = true;
                tracing::warn!(path = %path.display(), %error,
                    "the configuration file cannot be read; the configuration in force stays");
            }
            continue;
        }
        if std::mem::take(&mut missed) {
            tracing::info!(path = %path.display(), "the configuration file is back");
        }
        if seen != loaded.get() {
            // One that cannot be loaded is told once.
            loaded.set(seen.clone());
            if orders.send(Order::Reload(Why::File, None)).await.is_err() {
                return;
            }
        }
    }
}

/// What was found of a file, or why nothing was.
pub type Seen = Result<Vec<u8>, String>;

/// What was read of the file last, to be applied. Clones share it.
#[derive(Clone)]
pub struct Loaded(Arc<Mutex<Seen>>);

impl Loaded {
    /// This was read.
    pub fn new(seen: Seen) -> Loaded {
        Loaded(Arc::new(Mutex::new(seen)))
    }

    /// This is read now.
    pub fn set(&self, seen: Seen) {
        *self.0.lock().expect("no panic while held") = seen;
    }

    fn get(&self) -> Seen {
        self.0.lock().expect("no panic while held").clone()
    }
}

/// Look at the file now.
pub fn look(path: &Path) -> Seen {
    let told = |e: std::io::Error| e.to_string();
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(told)?;
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(told)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(format!("larger than {FILE_MAX} bytes"));
    }
    Ok(bytes)
}

async fn read(path: &Path) -> Seen {
    let path = path.to_owned();
    let looked = tokio::task::spawn_blocking(move || look(&path)).await;
    looked.unwrap_or_else(|e| Err(e.to_string()))
}

/// SIGHUP.
pub async fn hangup(orders: mpsc::Sender<Order>) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut signals) = signal(SignalKind::hangup()) else { return };
    while signals.recv().await.is_some() {
        if orders.send(Order::Reload(Why::Signal, None)).await.is_err() {
            return;
        }
    }
}
