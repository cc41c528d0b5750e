//! Where a program is, asked before it is started: the answer is then precise.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Why a program cannot be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotFound {
    /// A bare name that no directory of `PATH` holds.
    #[error("program `{0}` was not found: is it installed and on PATH?")]
    OnPath(String),
    /// A path to nothing.
    #[error("program `{0}` does not exist")]
    AtPath(String),
    /// A file that may not be executed.
    #[error("`{0}` is not an executable file: is its x bit set?")]
    NotExecutable(String),
}

/// The absolute path of `program`: looked for in `path` (as in `PATH`) if it is a bare name,
/// taken from our own working directory if it is relative.
pub fn find_program(program: &str, path: Option<&OsStr>) -> Result<PathBuf, NotFound> {
    if program.contains('/') {
        let file = std::path::absolute(program).unwrap_or_else(|_| program.into());
        return match is_executable(&file) {
            None => Err(NotFound::AtPath(program.to_owned())),
            Some(false) => Err(NotFound::NotExecutable(program.to_owned())),
            Some(true) => Ok(file),
        };
    }
    let missing = || NotFound::OnPath(program.to_owned());
    if program.is_empty() {
        return Err(missing());
    }
    // An empty entry would mean "here", which depends on where we were started: left out.
    std::env::split_paths(path.ok_or_else(missing)?)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(program))
        .find(|file| is_executable(file) == Some(true))
        .ok_or_else(missing)
}

fn is_executable(file: &Path) -> Option<bool> {
    let meta = std::fs::metadata(file).ok()?;
    Some(meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_or_it_is_said_why_not() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "x").unwrap();
        let path = std::env::join_paths([dir.path(), Path::new("/bin")]).unwrap();
        let find = |p: &str| find_program(p, Some(&path));

        assert_eq!(find("sh").unwrap(), Path::new("/bin/sh"));
        assert_eq!(find("/bin/sh").unwrap(), Path::new("/bin/sh"));
        assert_eq!(find("plain"), Err(NotFound::OnPath("plain".into())));
        assert!(matches!(find(plain.to_str().unwrap()), Err(NotFound::NotExecutable(_))));
        assert!(matches!(find("/no/such"), Err(NotFound::AtPath(_))));
        assert!(matches!(find_program("sh", None), Err(NotFound::OnPath(_))));
        assert!(matches!(find(""), Err(NotFound::OnPath(_))));
        insta::assert_snapshot!(
            find("no-such").unwrap_err(),
            @"program `no-such` was not found: is it installed and on PATH?"
        );
    }
}
