//! File change and signals become the same order.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::{Order, Why};

/// How often the file is looked at. Reading a few kilobytes costs microseconds, and reading the
/// content sees every way of saving: rename-over, writing in place, a ConfigMap's symlink swap,
/// also on file systems that tell nobody.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Largest file that is watched; the loader has the same bound.
pub const FILE_MAX: u64 = 4 << 20;

/// Watch `path`; each change that stays the same for one more look is told. A file that is being
/// written changes between looks and so is not read half.
///
/// `applied` is what was read of it before it was loaded: a change since then is one.
pub async fn file(path: PathBuf, applied: Seen, orders: mpsc::Sender<Order>) {
    let mut applied = applied;
    let mut seen = applied.clone();
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
        if seen != applied {
            applied.clone_from(&seen);
            if orders.send(Order::Reload(Why::File, None)).await.is_err() {
                return;
            }
        }
    }
}

/// What was found of a file, or why nothing was.
pub type Seen = Result<Vec<u8>, String>;

/// Look at the file now.
pub fn look(path: &std::path::Path) -> Seen {
    std::fs::read(path).map_err(|e| e.to_string())
}

async fn read(path: &std::path::Path) -> Seen {
    let told = |e: std::io::Error| e.to_string();
    let meta = tokio::fs::metadata(path).await.map_err(told)?;
    if meta.len() > FILE_MAX {
        return Err(format!("larger than {FILE_MAX} bytes"));
    }
    tokio::fs::read(path).await.map_err(told)
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
