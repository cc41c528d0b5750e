//! The last seen slices on disk, so that a restart does not begin with an empty catalog.
//!
//! One file for each upstream, `<state_dir>/catalog/<upstream>.json`. What cannot be read is
//! logged and ignored: the upstream is asked anyway. The calls here block; an async caller puts
//! them on a blocking thread.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::naming::is_upstream;
use super::slice::{About, Slice, SliceBuilder};
use crate::config::{Program, TransportConfig};
use crate::protocol::message::{Frame, response};
use crate::protocol::meta::{Members, ObjectWriter};
use crate::protocol::method::ListKind;
use crate::protocol::revision::Revision;

/// The form of the files. Another number is another form and is ignored.
const FORMAT: u64 = 1;

/// Largest file that is written or read, in bytes: far above any real catalog (10,000 tools of
/// 2 KiB are 20 MiB), and small enough to read at start.
pub const FILE_MAX: u64 = 64 * 1024 * 1024;

/// A slice as it was last seen.
pub struct Kept {
    /// What the upstream offered, the revision it spoke included.
    pub slice: Slice,
    /// When it was asked.
    pub fetched_at: SystemTime,
}

/// Which server the upstream's transport leads to, as a digest of what the configuration says. A
/// slice is only used for the server that it came from: what another one offered under the same
/// name says nothing.
///
/// Only texts as written go in, so no secret does; variables and headers do not, so a new
/// credential keeps the slice.
pub fn identity(transport: &TransportConfig) -> String {
    let mut digest = Sha256::new();
    let mut add = |text: &str| {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    };
    match transport {
        TransportConfig::Stdio(stdio) => {
            match &stdio.program {
                Program::Command(command) => {
                    add("command");
                    add(command);
                }
                Program::Package(package) => {
                    add("package");
                    add(&format!("{:?}", package.registry));
                    add(&package.name);
                    add(&package.version);
                    add(package.bin.as_deref().unwrap_or(""));
                }
            }
            add(&stdio.cwd.as_deref().map(Path::to_string_lossy).unwrap_or_default());
            for arg in &stdio.args {
                add(arg.written());
            }
        }
        TransportConfig::Http(http) => {
            add("url");
            add(http.url.written());
            // The first of them is `url` already.
            http.replicas.iter().skip(1).for_each(|url| add(url.written()));
        }
    }
    super::naming::hex(&digest.finalize())
}

/// Write a slice. The file is replaced as a whole or not at all.
///
/// # Errors
/// What the disk says; also a slice that would make a file larger than [`FILE_MAX`].
pub fn save(
    state_dir: &Path,
    upstream: &str,
    identity: &str,
    slice: &Slice,
    fetched_at: SystemTime,
) -> io::Result<()> {
    let path = path(state_dir, upstream)?;
    let text = write(identity, slice, fetched_at);
    if text.len() as u64 > FILE_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "the catalog is too large to keep",
        ));
    }
    let dir = path.parent().unwrap_or(state_dir);
    fs::create_dir_all(dir)?;
    let temp = path.with_extension(format!("json.{}.tmp", std::process::id()));
    let written = replace(&temp, &path, &text);
    if written.is_err() {
        let _ = fs::remove_file(&temp);
    }
    written?;
    // The new name is on disk when its directory is.
    File::open(dir)?.sync_all()
}

/// Read the slice that was last written for this upstream, if it came from the same server.
pub fn load(state_dir: &Path, upstream: &str, identity: &str, max_items: usize) -> Option<Kept> {
    match look(state_dir, upstream, identity, max_items) {
        Ok(kept) => kept,
        Err(why) => {
            let file = path(state_dir, upstream).unwrap_or_default();
            tracing::warn!(upstream, file = %file.display(), why, "the kept catalog is ignored");
            None
        }
    }
}

/// The same without a word in the log.
///
/// # Errors
/// Why what is kept is of no use.
pub fn look(
    state_dir: &Path,
    upstream: &str,
    identity: &str,
    max_items: usize,
) -> Result<Option<Kept>, String> {
    let Ok(path) = path(state_dir, upstream) else { return Ok(None) };
    match read_bounded(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.to_string()),
        Ok(text) => read(&text, identity, max_items).map(Some),
    }
}

/// A slice as the text that is kept.
pub fn to_text(identity: &str, slice: &Slice) -> Vec<u8> {
    write(identity, slice, SystemTime::now())
}

/// A slice from the text that is kept, if it came from the same server.
///
/// # Errors
/// Why the text is of no use.
pub fn from_text(text: &Bytes, identity: &str, max_items: usize) -> Result<Slice, String> {
    read(text, identity, max_items).map(|kept| kept.slice)
}

fn path(state_dir: &Path, upstream: &str) -> io::Result<PathBuf> {
    if !is_upstream(upstream) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an upstream's name"));
    }
    Ok(state_dir.join("catalog").join(format!("{upstream}.json")))
}

/// Put `text` at `path`, readable for us alone: whole or not at all.
pub(crate) fn replace(temp: &Path, path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(temp)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(temp, path)
}

fn read_bounded(path: &Path) -> io::Result<Bytes> {
    let mut text = Vec::new();
    File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > FILE_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "larger than a kept catalog can be",
        ));
    }
    Ok(text.into())
}

fn write(identity: &str, slice: &Slice, fetched_at: SystemTime) -> Vec<u8> {
    let about = &slice.about;
    let millis = fetched_at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let mut out = ObjectWriter::new();
    out.value("format", &FORMAT)
        .value("identity", &identity)
        .value("fetchedAtMs", &millis)
        .value("revision", &about.revision.as_str())
        .raw("capabilities", &about.capabilities);
    if let Some(info) = &about.server_info {
        out.raw("serverInfo", info);
    }
    if let Some(text) = &about.instructions {
        out.value("instructions", text);
    }
    if about.sse {
        out.raw("sse", b"true");
    }
    for kind in ListKind::ALL {
        let mut array = vec![b'['];
        for (n, item) in slice.list(kind).items.iter().enumerate() {
            if n > 0 {
                array.push(b',');
            }
            array.extend_from_slice(&item.raw);
        }
        array.push(b']');
        out.raw(kind.member(), &array);
    }
    out.finish()
}

fn read(text: &Bytes, identity: &str, max_items: usize) -> Result<Kept, String> {
    // Through the same door as everything else that is read later: valid, and not too deep.
    let text = Frame::scan(response(b"0", crate::protocol::message::Kind::Result, text))
        .map_err(|e| e.to_string())?
        .outcome();
    let file = Members::read(&text).map_err(|e| e.to_string())?;
    let raw = |key: &str| file.get(key).map(|v| Bytes::copy_from_slice(v.get().as_bytes()));
    let number = |key: &str| file.get(key).and_then(|v| v.get().parse::<u64>().ok());
    if number("format") != Some(FORMAT) {
        return Err("it has another format".into());
    }
    if file.get_str("identity").as_deref() != Some(identity) {
        return Err("it came from another server than the one configured now".into());
    }
    let fetched_at = number("fetchedAtMs")
        .and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)))
        .ok_or("it does not say when it was fetched")?;
    let about = About {
        revision: file
            .get_str("revision")
            .and_then(|r| Revision::parse(&r))
            .ok_or("it names no known revision")?,
        capabilities: raw("capabilities").ok_or("it has no capabilities")?,
        server_info: raw("serverInfo"),
        instructions: file.get_str("instructions").map(|t| t.as_ref().into()),
        sse: file.get("sse").is_some_and(|v| v.get() == "true"),
    };
    let mut builder = SliceBuilder::new(about, max_items);
    for kind in ListKind::ALL {
        let array = match raw(kind.member()) {
            Some(array) => array,
            // Files of before there were any are as good as ever.
            None if kind == ListKind::Skills => continue,
            None => return Err(format!("it lacks the {}", kind.as_str())),
        };
        builder.add_items(kind, &array).map_err(|e| e.to_string())?;
    }
    Ok(Kept { slice: builder.finish(), fetched_at })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::catalog::testing;

    const AT: Duration = Duration::from_millis(1_798_761_599_123);

    fn slice() -> Slice {
        let mut b = SliceBuilder::new(testing::about(), 100);
        let tools =
            br#"[{"name":"a","inputSchema":{"n":1.10}},{"name":"\u0062","inputSchema":{}}]"#;
        b.add_items(ListKind::Tools, &Bytes::from_static(tools)).unwrap();
        b.add_items(ListKind::Templates, &Bytes::from_static(br#"[{"uriTemplate":"x:{y}"}]"#))
            .unwrap();
        b.finish()
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path(), "crm", "id", 100).is_none());
        save(dir.path(), "crm", "id", &slice(), UNIX_EPOCH + AT).unwrap();
        save(dir.path(), "crm", "id", &slice(), UNIX_EPOCH + AT).unwrap();
        let kept = load(dir.path(), "crm", "id", 100).unwrap();
        assert_eq!(kept.fetched_at, UNIX_EPOCH + AT);
        assert_eq!(kept.slice.about, slice().about);
        for kind in ListKind::ALL {
            assert_eq!(kept.slice.list(kind).digest, slice().list(kind).digest);
        }
        let files: Vec<_> = fs::read_dir(dir.path().join("catalog")).unwrap().collect();
        assert_eq!(files.len(), 1, "no temporary file is left");
        let mut old = slice();
        old.about.sse = true;
        save(dir.path(), "crm", "id", &old, UNIX_EPOCH + AT).unwrap();
        assert!(load(dir.path(), "crm", "id", 100).unwrap().slice.about.sse);
    }

    #[test]
    fn what_is_foreign_or_broken_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), "crm", "id", &slice(), UNIX_EPOCH + AT).unwrap();
        assert!(load(dir.path(), "crm", "other", 100).is_none());
        assert!(load(dir.path(), "erp", "id", 100).is_none());
        assert!(load(dir.path(), "../crm", "id", 100).is_none());
        assert!(save(dir.path(), "../crm", "id", &slice(), UNIX_EPOCH).is_err());
        let path = path(dir.path(), "crm").unwrap();
        let good = fs::read_to_string(&path).unwrap();
        for bad in [
            String::new(),
            good[..good.len() / 2].to_owned(),
            good.replace("\"format\":1", "\"format\":2"),
            good.replace("2025-11-25", "2031-01-01"),
            good.replace("\"prompts\":[]", "\"prompts\":7"),
            good.replace("1.10", &format!("{}{}", "[".repeat(500), "]".repeat(500))),
        ] {
            fs::write(&path, &bad).unwrap();
            assert!(load(dir.path(), "crm", "id", 100).is_none(), "{bad}");
        }
        fs::write(&path, good).unwrap();
        assert!(load(dir.path(), "crm", "id", 100).is_some());
    }

    #[test]
    fn the_identity_is_that_of_the_server_and_holds_no_secret() {
        use crate::config::secret::Template;
        let with = |arg: &str, token: &str| {
            let env = |_: &str| Some(token.to_owned());
            let read = |_: &str| Err(io::ErrorKind::NotFound.into());
            let mut config = testing::upstream("crm", 0);
            if let TransportConfig::Stdio(stdio) = &mut config.transport {
                stdio.args = vec![Template::resolve(arg, &env, &read).unwrap()];
            }
            identity(&config.transport)
        };
        assert_eq!(with("--key=${K}", "one"), with("--key=${K}", "two"));
        assert_ne!(with("--key=${K}", "one"), with("--key=one", "one"));
        assert_eq!(with("a", "").len(), 64);
    }
}
