//! Packages from PyPI.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use tokio::time::Instant;

use super::choose::choose;
use super::install::step_failed;
use super::run::step;
use super::{Installed, PackageError, cache, label};
use crate::config::PackageSpec;
use crate::shim::find_program;

pub(super) fn installer(spec: &PackageSpec) -> Result<PathBuf, PackageError> {
    let path = std::env::var_os("PATH");
    find_program("python3", path.as_deref()).map_err(|_| PackageError::NoInstaller {
        package: label(spec),
        tool: "python3",
        product: "Python 3",
    })
}

/// Install into the empty directory `into`, as a virtual environment of its own.
pub(super) async fn install(
    spec: &PackageSpec,
    into: &Path,
    shim: Option<&Path>,
    deadline: Instant,
) -> Result<(), PackageError> {
    let python = installer(spec)?;
    let venv: Vec<OsString> = vec!["-m".into(), "venv".into(), into.into()];
    step(shim, python, venv, into, deadline).await.map_err(step_failed(spec))?;
    let mut pip: Vec<OsString> = [
        "-m",
        "pip",
        "install",
        "--only-binary",
        ":all:",
        "--no-input",
        "--disable-pip-version-check",
        "--no-warn-script-location",
        "--retries",
        "2",
        "--",
    ]
    .map(OsString::from)
    .into();
    pip.push(format!("{}=={}", spec.name, spec.version).into());
    step(shim, into.join("bin/python"), pip, into, deadline).await.map_err(step_failed(spec))?;
    let (_, found) = dist_info(spec, into)?;
    if !same_version(&found, &spec.version) {
        return Err(PackageError::OtherVersion { package: label(spec), found });
    }
    Ok(())
}

/// How to run what is installed in `home`. The scripts in `bin` begin with the path at which
/// they were made, which is not where they are now; so they are handed to Python.
pub(super) fn program(spec: &PackageSpec, home: &Path) -> Result<Installed, PackageError> {
    let python = home.join("bin/python");
    // A link to the system's Python, which may have gone with an update.
    if !python.exists() {
        let why = format!("its Python is gone; remove {} to install it anew", home.display());
        return Err(PackageError::Failed { package: label(spec), why });
    }
    let (info, _) = dist_info(spec, home)?;
    let text = std::fs::read_to_string(info.join("entry_points.txt")).unwrap_or_default();
    let name = choose(spec, &console_scripts(&text), &normal(&spec.name))?;
    let script = home.join("bin").join(&name);
    if !script.is_file() {
        let what = format!("lacks its program `{name}`");
        return Err(PackageError::NoProgram { package: label(spec), what });
    }
    Ok(Installed { program: python, args: vec![script.into()] })
}

/// The package's own metadata, and the version that it says.
fn dist_info(spec: &PackageSpec, home: &Path) -> Result<(PathBuf, String), PackageError> {
    let lib = home.join("lib");
    let versions = std::fs::read_dir(&lib).map_err(|e| cache(spec, &lib, &e))?;
    versions
        .flatten()
        .filter_map(|python| std::fs::read_dir(python.path().join("site-packages")).ok())
        .flat_map(Iterator::flatten)
        .find_map(|entry| {
            let name = entry.file_name();
            let (name, version) = name.to_str()?.strip_suffix(".dist-info")?.rsplit_once('-')?;
            (normal(name) == normal(&spec.name)).then(|| (entry.path(), version.to_owned()))
        })
        .ok_or_else(|| cache(spec, &lib, &std::io::ErrorKind::NotFound.into()))
}

/// The names in the section `console_scripts`.
fn console_scripts(text: &str) -> Vec<String> {
    let mut within = false;
    let mut names = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            within = line == "[console_scripts]";
        } else if let (true, Some((name, _))) = (within, line.split_once('=')) {
            let name = name.trim();
            if !name.is_empty() && !name.starts_with(['#', ';', '.']) && !name.contains('/') {
                names.push(name.to_owned());
            }
        }
    }
    names
}

/// A name as the registry compares it: case and the kind of separator do not count.
pub(super) fn normal(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if !matches!(c, '-' | '_' | '.') {
            out.push(c.to_ascii_lowercase());
        } else if !out.ends_with('-') {
            out.push('-');
        }
    }
    out
}

/// Whether two versions are one to the registry: `1.0` is `1.0.0`, `2026.08` is `2026.8`.
fn same_version(a: &str, b: &str) -> bool {
    let parts = |v: &str| {
        let v = v.to_ascii_lowercase().replace(['-', '_'], ".");
        let mut parts: Vec<String> = v
            .split('.')
            .map(|p| match p.trim_start_matches('0') {
                "" => "0".to_owned(),
                rest => rest.to_owned(),
            })
            .collect();
        while parts.last().is_some_and(|p| p == "0") {
            parts.pop();
        }
        parts
    };
    parts(a) == parts(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_the_registry_does() {
        for (a, b, same) in [
            ("1.0", "1.0.0", true),
            ("2026.08.31", "2026.8.31", true),
            ("1.0RC1", "1.0rc1", true),
            ("1.0", "1.1", false),
            ("1.10", "1.1", false),
        ] {
            assert_eq!(same_version(a, b), same, "{a} {b}");
        }
    }

    #[test]
    fn scripts_are_read_from_their_section_only() {
        let text = "[gui_scripts]\nwindow = a:b\n\n[console_scripts]\n# x = y\nmcp-a = a.b:main [x]\nb=c:d\n../x = e:f\n[other]\nz = a:b\n";
        assert_eq!(console_scripts(text), ["mcp-a", "b"]);
        assert!(console_scripts("").is_empty());
    }
}
