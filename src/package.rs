//! Servers that come as packages: installed once, pinned, and then run without their launcher.
//!
//! A launcher (`npx`, `uvx`) asks the registry at every start, may run another version than
//! yesterday, and stands between us and the program. So the package is installed into
//! `<cache>/packages/<registry>/<name>@<version>` and its own program is run from there. What is
//! there needs no network and no installer.
//!
//! - Nothing of a package runs while it is installed: npm's scripts are off, and from PyPI only
//!   wheels are taken. A package that needs such a step has to be installed by hand and run as a
//!   `command`.
//! - The package's version is pinned. What it depends on is resolved when it is installed, and
//!   stays as it is in the cache from then on; another machine may get newer ones.
//! - An installation appears under its name only when it is complete, and gateways that share a
//!   cache install one after the other.

mod choose;
mod install;
mod npm;
mod pypi;
mod run;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{PackageSpec, Registry};

/// How long an installation may take. The largest servers that we know have 300 MB; five minutes
/// are enough for them on a slow line, and a registry that hangs is given up in the same hour.
pub const INSTALL_LIMIT: Duration = Duration::from_secs(5 * 60);

/// How to run an installed package: put the server's own arguments after `args`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The program: a path, or `node`, which is looked for on the child's `PATH`.
    pub program: PathBuf,
    /// What comes before the configured arguments.
    pub args: Vec<OsString>,
}

/// Why a package cannot be run. Each says what to do about it where that is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackageError {
    /// The name or version could mean something else than one exact package.
    #[error("{0} does not name a package and its exact version")]
    BadSpec(String),
    /// The installer is not there.
    #[error("{package} needs `{tool}`, which was not found on PATH: install {product}")]
    NoInstaller {
        /// The package.
        package: String,
        /// The missing program.
        tool: &'static str,
        /// What it comes with.
        product: &'static str,
    },
    /// The installer failed.
    #[error("{package} could not be installed: {why}")]
    Failed {
        /// The package.
        package: String,
        /// The end of what the installer said.
        why: String,
    },
    /// Took longer than [`INSTALL_LIMIT`].
    #[error(
        "{package} could not be installed within {} minutes: is the registry reachable?",
        INSTALL_LIMIT.as_secs() / 60
    )]
    TooSlow {
        /// The package.
        package: String,
    },
    /// The registry gave something else.
    #[error("{package}: the registry gave version {found} instead")]
    OtherVersion {
        /// The package.
        package: String,
        /// What came.
        found: String,
    },
    /// Nothing in it can be run, or not what was asked for, or it is not clear what.
    #[error("{package} {what}")]
    NoProgram {
        /// The package.
        package: String,
        /// What is wrong, with the programs there are.
        what: String,
    },
    /// The cache directory cannot be used.
    #[error("{package}: {place}: {why}")]
    Cache {
        /// The package.
        package: String,
        /// Which file.
        place: String,
        /// The system's words.
        why: String,
    },
}

/// Have the package installed, and say how to run it. With the package in the cache this only
/// reads a few small files.
///
/// An installation goes on when the future is dropped, and the next call waits for the same one:
/// a caller with a short deadline comes to its package in the end. With the program `shim` that
/// supervises (see [`crate::shim`]) nothing of an installer outlives this process.
pub async fn ensure(
    spec: &PackageSpec,
    cache_dir: &Path,
    shim: Option<&Path>,
) -> Result<Installed, PackageError> {
    let home = home(spec, cache_dir)?;
    if !home.is_dir() {
        install::once(spec, &home, shim).await?;
    }
    let (spec, label) = (spec.clone(), label(spec));
    let found = tokio::task::spawn_blocking(move || match spec.registry {
        Registry::Npm => npm::program(&spec, &home),
        Registry::Pypi => pypi::program(&spec, &home),
    });
    found.await.unwrap_or_else(|e| Err(PackageError::Failed { package: label, why: e.to_string() }))
}

/// Whether this process is about to install the package: a start that waits for it is not late.
pub fn is_installing(spec: &PackageSpec, cache_dir: &Path) -> bool {
    home(spec, cache_dir).is_ok_and(|home| install::is_running(&home))
}

/// The installer that the package needs and this machine lacks; `None` with the package in the
/// cache, which needs none.
pub fn lacks(spec: &PackageSpec, cache_dir: &Path) -> Option<PackageError> {
    if home(spec, cache_dir).is_ok_and(|home| home.is_dir()) {
        return None;
    }
    match spec.registry {
        Registry::Npm => npm::installer(spec).err(),
        Registry::Pypi => pypi::installer(spec).err(),
    }
}

/// `npm:@scope/name@1.2.3`, as in the configuration.
fn label(spec: &PackageSpec) -> String {
    let registry = match spec.registry {
        Registry::Npm => "npm",
        Registry::Pypi => "pypi",
    };
    format!("{registry}:{}@{}", spec.name, spec.version)
}

/// Where the package lives. The name becomes part of a path and of a command line, so only what
/// is harmless in both passes, whatever the configuration let through.
fn home(spec: &PackageSpec, cache_dir: &Path) -> Result<PathBuf, PackageError> {
    let bad = || PackageError::BadSpec(label(spec));
    let plain = |part: &str, extra: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
    };
    let (registry, name) = match spec.registry {
        Registry::Npm => {
            let (scope, name) = match spec.name.strip_prefix('@') {
                Some(scoped) => scoped.split_once('/').ok_or_else(bad)?,
                None => ("x", spec.name.as_str()),
            };
            if !plain(scope, "-._~") || !plain(name, "-._~") {
                return Err(bad());
            }
            // No npm name has a plus, so no two packages share a directory.
            ("npm", spec.name.replace('/', "+"))
        }
        Registry::Pypi if plain(&spec.name, "-._") => ("pypi", pypi::normal(&spec.name)),
        Registry::Pypi => return Err(bad()),
    };
    // Begins with a digit: no tag, no range, no option.
    if !plain(&spec.version, "-._+!") || !spec.version.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(bad());
    }
    let cache = std::path::absolute(cache_dir).map_err(|e| cache(spec, cache_dir, &e))?;
    Ok(cache.join("packages").join(registry).join(format!("{name}@{}", spec.version)))
}

fn cache(spec: &PackageSpec, place: &Path, error: &std::io::Error) -> PackageError {
    PackageError::Cache {
        package: label(spec),
        place: place.display().to_string(),
        why: error.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn spec(registry: Registry, name: &str, version: &str) -> PackageSpec {
        PackageSpec { registry, name: name.into(), version: version.into(), bin: None }
    }

    #[test]
    fn each_package_has_a_home_of_its_own() {
        let at = |r, n, v| home(&spec(r, n, v), Path::new("/c")).unwrap();
        assert_eq!(
            at(Registry::Npm, "@a/b", "1.2.3-rc.1"),
            Path::new("/c/packages/npm/@a+b@1.2.3-rc.1")
        );
        assert_eq!(
            at(Registry::Pypi, "My__Server.x", "2026.1"),
            Path::new("/c/packages/pypi/my-server-x@2026.1")
        );
    }

    #[test]
    fn names_that_could_mean_something_else_are_refused() {
        for (name, version) in [
            ("", "1"),
            ("--global", "1"),
            ("../x", "1"),
            ("..", "1"),
            ("@a", "1"),
            ("@a/../b", "1"),
            ("@a/b/c", "1"),
            ("a b", "1"),
            ("a", ""),
            ("a", "latest"),
            ("a", "^1.0"),
            ("a", "1/../../x"),
            ("git+https://x", "1"),
        ] {
            for registry in [Registry::Npm, Registry::Pypi] {
                let e = home(&spec(registry, name, version), Path::new("/c")).unwrap_err();
                assert!(matches!(e, PackageError::BadSpec(_)), "{name} {version}");
            }
        }
    }
}
