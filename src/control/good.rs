//! The last configuration that proved good, kept for a start with a broken file.
//!
//! *Decided* (2026-11-21): what is kept is the file's text as it is written, with its `${NAME}` and
//! `file:` references, which are resolved anew when it is used; so no credential that the gateway
//! was given reaches this file. A credential that the operator wrote into the configuration itself
//! is kept with it, readable for the gateway's user alone. Rejected: keeping what was resolved,
//! which would start without the environment but leave secrets behind in a folder of state.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::catalog::keep::replace;
use crate::catalog::naming::hex;
use crate::config;

/// Hexadecimal digits that tell apart the files of gateways that share a folder of state.
const NAME_DIGITS: usize = 12;

/// Where the last good text of one configuration file is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(PathBuf);

impl Place {
    /// The place for the configuration that is read at `file`. What another file said, under
    /// whatever gateway, says nothing about this one.
    pub fn of(state_dir: &Path, file: &Path) -> Place {
        // Not through links: a ConfigMap's file is one, and leads somewhere else each time.
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        let digest = Sha256::digest(file.as_os_str().as_encoded_bytes());
        let mut name = hex(&digest);
        name.truncate(NAME_DIGITS);
        Place(state_dir.join("config").join(format!("{name}.toml")))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    // That it could not be kept is logged.
    fn keep(&self, text: &str) {
        if let Err(error) = self.save(text) {
            tracing::warn!(file = %self.0.display(), %error,
                "the configuration could not be kept; a start with --last-good would find an older one or none");
        }
    }

    fn save(&self, text: &str) -> io::Result<()> {
        if self.load().is_ok_and(|kept| kept == text) {
            return Ok(());
        }
        let dir = self.0.parent().unwrap_or(Path::new("/"));
        if !dir.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let temp = self.0.with_extension(format!("toml.{}.tmp", std::process::id()));
        let written = replace(&temp, &self.0, text.as_bytes());
        if written.is_err() {
            let _ = fs::remove_file(&temp);
        }
        written?;
        // The new name is on disk when its directory is.
        File::open(dir)?.sync_all()
    }

    /// The text that was kept.
    pub fn load(&self) -> io::Result<String> {
        config::read_bounded(&self.0, config::FILE_MAX)
    }
}

/// The one who writes at a place, beside the one who knows what is good: disk is slow at times, and
/// nobody waits for it. Of what comes while it writes, the newest is written next.
pub struct Keeper {
    newest: watch::Sender<Arc<str>>,
    writes: JoinHandle<()>,
}

impl Keeper {
    /// One for this place.
    pub fn start(place: Place) -> Keeper {
        Keeper::of(move |text| place.keep(text))
    }

    fn of(write: impl Fn(&str) + Send + Sync + 'static) -> Keeper {
        let (newest, mut told) = watch::channel::<Arc<str>>("".into());
        let write = Arc::new(write);
        let writes = tokio::spawn(async move {
            while told.changed().await.is_ok() {
                let (text, write) = (told.borrow_and_update().clone(), write.clone());
                let _ = spawn_blocking(move || write(&text)).await;
            }
        });
        Keeper { newest, writes }
    }

    /// Keep this text, whatever was to be kept before.
    pub fn keep(&self, text: Arc<str>) {
        self.newest.send_replace(text);
    }

    /// Over when the newest is kept.
    pub async fn finish(self) {
        drop(self.newest);
        let _ = self.writes.await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::{Mutex, mpsc};

    use super::*;

    #[test]
    fn a_text_is_kept_as_written_for_us_alone() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::of(dir.path(), Path::new("/etc/weir/upstreams.toml"));
        assert!(place.load().is_err());
        for text in ["bearer = \"${TOKEN}\"\n", "", "# another\n"] {
            place.keep(text);
            assert_eq!(place.load().unwrap(), text);
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(place.path()), 0o600);
        assert_eq!(mode(place.path().parent().unwrap()), 0o700);
        let files = fs::read_dir(place.path().parent().unwrap()).unwrap().count();
        assert_eq!(files, 1, "no temporary file is left");
        let other = Place::of(dir.path(), Path::new("/srv/upstreams.toml"));
        assert_ne!(place, other);
        assert!(other.load().is_err());
    }

    #[test]
    fn a_failed_write_leaves_what_was() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::of(dir.path(), Path::new("a.toml"));
        place.keep("good");
        // Its temporary file cannot be made: a folder is there.
        let temp = place.path().with_extension(format!("toml.{}.tmp", std::process::id()));
        fs::create_dir(temp).unwrap();
        assert!(place.save("new").is_err());
        assert_eq!(place.load().unwrap(), "good");
    }
    #[tokio::test]
    async fn the_newest_wins_however_slow_the_disk_is() {
        let (begun, begins) = mpsc::channel();
        let (go_on, waits) = mpsc::channel();
        let (waits, written) = (Mutex::new(waits), Arc::new(Mutex::new(Vec::new())));
        let log = written.clone();
        let keeper = Keeper::of(move |text| {
            begun.send(()).unwrap();
            // Nobody else writes meanwhile.
            waits.try_lock().unwrap().recv().unwrap();
            log.lock().unwrap().push(text.to_owned());
        });
        let begins = Arc::new(Mutex::new(begins));
        let begun = || {
            let begins = begins.clone();
            spawn_blocking(move || begins.lock().unwrap().recv().unwrap())
        };
        keeper.keep("one".into());
        begun().await.unwrap();
        // The first is on its way to the disk, and takes its time.
        for text in ["two", "three", "four"] {
            keeper.keep(text.into());
            tokio::task::yield_now().await;
        }
        go_on.send(()).unwrap();
        begun().await.unwrap();
        // What is known last is kept also when the gateway ends.
        keeper.keep("five".into());
        let finished = tokio::spawn(keeper.finish());
        go_on.send(()).unwrap();
        go_on.send(()).unwrap();
        finished.await.unwrap();
        assert_eq!(*written.lock().unwrap(), ["one", "four", "five"]);
    }
}
