//! Where a child runs: an empty directory of its own, gone afterwards.
//!
//! Some servers read a `.env` or settings from where they are started, so they must not find
//! anybody's files there.
//!
//! A directory in use is held by a lock on it, which the kernel drops when its owner dies, however
//! that happens and in whichever container. So what is not locked is a leftover and may go. Making
//! and sweeping exclude each other by the lock of the folder above, so no directory is swept
//! between its making and its locking.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};

/// Only names that start so are ever swept.
const PREFIX: &str = "run-";

/// An empty directory that is ours as long as this lives.
pub(super) struct WorkDir {
    path: PathBuf,
    _held: File,
}

impl WorkDir {
    /// Make one below `state_dir/work`, and sweep what earlier runs left there. Blocks on the disk.
    pub(super) fn make(state_dir: &Path, upstream: &str) -> io::Result<WorkDir> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let above = std::path::absolute(state_dir)?.join("work");
        fs::create_dir_all(&above)?;
        let all = File::open(&above)?;
        flock(&all, FlockOperation::LockExclusive)?;
        sweep(&above);
        loop {
            let n = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = above.join(format!("{PREFIX}{upstream}-{}-{n}", std::process::id()));
            match fs::create_dir(&path) {
                // Another container's gateway can have our pid.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            let held = File::open(&path)?;
            flock(&held, FlockOperation::NonBlockingLockExclusive)?;
            return Ok(WorkDir { path, _held: held });
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Remove it with all that is in it. Blocks on the disk.
    pub(super) fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(&self.path)
    }
}

fn sweep(above: &Path) {
    let Ok(entries) = fs::read_dir(above) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_str().is_some_and(|n| n.starts_with(PREFIX));
        if !ours || !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        let Ok(dir) = File::open(entry.path()) else { continue };
        if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        if let Err(e) = fs::remove_dir_all(entry.path()) {
            tracing::debug!(path = %entry.path().display(), error = %e, "leftover directory stays");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_go_and_what_is_used_or_foreign_stays() {
        let state = tempfile::tempdir().unwrap();
        let work = state.path().join("work");
        let used = WorkDir::make(state.path(), "a").unwrap();
        fs::write(used.path().join("f"), "x").unwrap();
        fs::create_dir_all(work.join("run-old-1-0/deep")).unwrap();
        fs::create_dir(work.join("foreign")).unwrap();
        fs::write(work.join("run-file"), "x").unwrap();
        let outside = state.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("f"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, work.join("run-link")).unwrap();
        fs::create_dir(work.join("run-old-2")).unwrap();
        std::os::unix::fs::symlink(&outside, work.join("run-old-2/link")).unwrap();

        let second = WorkDir::make(state.path(), "a").unwrap();
        assert_ne!(used.path(), second.path());
        assert!(fs::read_dir(second.path()).unwrap().next().is_none());
        assert!(used.path().join("f").exists());
        assert!(!work.join("run-old-1-0").exists());
        assert!(!work.join("run-old-2").exists());
        assert!(work.join("foreign").exists() && work.join("run-file").exists());
        assert!(outside.join("f").exists());

        let path = used.path().to_owned();
        used.remove().unwrap();
        assert!(!path.exists());
        let path = second.path().to_owned();
        drop(second); // as when the process dies
        WorkDir::make(state.path(), "b").unwrap();
        assert!(!path.exists());
    }
}
