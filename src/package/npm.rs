//! Packages from npm.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use tokio::time::Instant;

use super::choose::choose;
use super::install::step_failed;
use super::run::step;
use super::{Installed, PackageError, cache, label};
use crate::config::PackageSpec;
use crate::shim::find_program;

/// What we read of a `package.json`.
#[derive(Deserialize)]
struct Manifest {
    version: String,
    #[serde(default)]
    bin: serde_json::Value,
}

pub(super) fn installer(spec: &PackageSpec) -> Result<PathBuf, PackageError> {
    let path = std::env::var_os("PATH");
    find_program("npm", path.as_deref()).map_err(|_| PackageError::NoInstaller {
        package: label(spec),
        tool: "npm",
        product: "Node.js with npm",
    })
}

/// Install into the empty directory `into`.
pub(super) async fn install(
    spec: &PackageSpec,
    into: &Path,
    shim: Option<&Path>,
    deadline: Instant,
) -> Result<(), PackageError> {
    let npm = installer(spec)?;
    let mut args: Vec<OsString> = vec!["install".into(), "--prefix".into(), into.into()];
    args.extend(
        [
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--omit=dev",
            "--save-exact",
            "--no-progress",
            "--no-update-notifier",
            "--fetch-retries=2",
            "--fetch-retry-mintimeout=1000",
            "--",
        ]
        .map(OsString::from),
    );
    args.push(format!("{}@{}", spec.name, spec.version).into());
    step(shim, npm, args, into, deadline).await.map_err(step_failed(spec))?;
    let found = manifest(spec, into)?.version;
    if found != spec.version {
        return Err(PackageError::OtherVersion { package: label(spec), found });
    }
    Ok(())
}

/// How to run what is installed in `home`.
pub(super) fn program(spec: &PackageSpec, home: &Path) -> Result<Installed, PackageError> {
    let own = spec.name.rsplit('/').next().unwrap_or(&spec.name);
    let bins = bins(&manifest(spec, home)?.bin, own);
    let name = choose(spec, &bins.keys().cloned().collect::<Vec<_>>(), own)?;
    let file = PathBuf::from(&bins[&name]);
    let wrong = |what: String| PackageError::NoProgram { package: label(spec), what };
    if !file.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(wrong(format!("has its program `{name}` outside of itself")));
    }
    let file = folder(spec, home).join(file);
    let first = first_line(&file).map_err(|e| wrong(format!("lacks its program `{name}`: {e}")))?;
    let is_script = file.extension().is_some_and(|e| e == "js" || e == "mjs" || e == "cjs");
    let node_args =
        node_args(&first).or_else(|| (is_script && !first.starts_with("#!")).then(Vec::new));
    Ok(match node_args {
        Some(mut args) => {
            args.push(file.into());
            Installed { program: "node".into(), args }
        }
        None => Installed { program: file, args: vec![] },
    })
}

fn folder(spec: &PackageSpec, home: &Path) -> PathBuf {
    home.join("node_modules").join(&spec.name)
}

fn manifest(spec: &PackageSpec, home: &Path) -> Result<Manifest, PackageError> {
    let file = folder(spec, home).join("package.json");
    let text = std::fs::read(&file).map_err(|e| cache(spec, &file, &e))?;
    serde_json::from_slice(&text).map_err(|e| cache(spec, &file, &e.into()))
}

/// Program name to file. A single file is called as the package.
fn bins(bin: &serde_json::Value, own: &str) -> BTreeMap<String, String> {
    match bin {
        serde_json::Value::String(file) => [(own.to_owned(), file.clone())].into(),
        serde_json::Value::Object(all) => all
            .iter()
            .filter_map(|(name, file)| Some((name.clone(), file.as_str()?.to_owned())))
            .collect(),
        _ => BTreeMap::new(),
    }
}

fn first_line(file: &Path) -> std::io::Result<String> {
    // A binary has no line; what the kernel reads of a `#!` line is shorter.
    const LONGEST: u64 = 512;
    let mut line = Vec::new();
    BufReader::new(File::open(file)?.take(LONGEST)).read_until(b'\n', &mut line)?;
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

/// What node is to be given before the file, if the `#!` line says node at all.
fn node_args(line: &str) -> Option<Vec<OsString>> {
    let mut words = line.strip_prefix("#!")?.split_ascii_whitespace();
    let of = |word: &str| word.rsplit('/').next().unwrap_or(word).to_owned();
    let mut interpreter = of(words.next()?);
    if interpreter == "env" {
        interpreter = of(words.find(|w| !w.starts_with('-') && !w.contains('='))?);
    }
    matches!(&interpreter[..], "node" | "nodejs").then(|| words.map(OsString::from).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Registry;

    #[test]
    fn a_line_that_says_node_is_understood() {
        for (line, args) in [
            ("#!/usr/bin/env node", Some(vec![])),
            ("#! /usr/bin/node", Some(vec![])),
            ("#!/usr/bin/env -S node --no-warnings --x=1", Some(vec!["--no-warnings", "--x=1"])),
            ("#!/usr/bin/env -S A=1 node", Some(vec![])),
            ("#!/bin/sh", None),
            ("#!/usr/bin/env deno", None),
            ("#!", None),
            ("\u{7f}ELF", None),
            ("console.log('node')", None),
        ] {
            let args = args.map(|a| a.into_iter().map(OsString::from).collect::<Vec<_>>());
            assert_eq!(node_args(line), args, "{line}");
        }
    }

    fn installed(bin: &str, file: &str, text: &str) -> Result<Installed, String> {
        let home = tempfile::tempdir().unwrap();
        let at = home.path().join("node_modules/@s/own");
        std::fs::create_dir_all(at.join("dist")).unwrap();
        let manifest = format!(r#"{{"name":"@s/own","version":"1.0.0","bin":{bin}}}"#);
        std::fs::write(at.join("package.json"), manifest).unwrap();
        std::fs::write(at.join(file), text).unwrap();
        let spec = PackageSpec {
            registry: Registry::Npm,
            name: "@s/own".into(),
            version: "1.0.0".into(),
            bin: None,
        };
        let cut = |p: &std::ffi::OsStr| {
            let text = p.to_string_lossy().into_owned();
            text.split("node_modules/").last().unwrap().to_owned()
        };
        program(&spec, home.path()).map_err(|e| e.to_string()).map(|i| Installed {
            program: cut(i.program.as_os_str()).into(),
            args: i.args.iter().map(|a| cut(a).into()).collect(),
        })
    }

    #[test]
    fn the_program_itself_is_run() {
        let node = |file: &str| Ok(Installed { program: "node".into(), args: vec![file.into()] });
        let js = "#!/usr/bin/env node\n";
        assert_eq!(installed(r#""./dist/a.js""#, "dist/a.js", js), node("@s/own/./dist/a.js"));
        assert_eq!(installed(r#"{"x":"a"}"#, "a", js), node("@s/own/a"));
        assert_eq!(installed(r#"{"x":"a.mjs"}"#, "a.mjs", "import 'x'"), node("@s/own/a.mjs"));
        assert_eq!(
            installed(r#"{"x":"a"}"#, "a", "#!/bin/sh\n"),
            Ok(Installed { program: "@s/own/a".into(), args: vec![] })
        );
        for bad in [r#""../../../etc/passwd""#, r#""/etc/passwd""#] {
            assert!(installed(bad, "a", js).unwrap_err().contains("outside of itself"));
        }
        assert!(installed(r#""gone.js""#, "a", js).unwrap_err().contains("lacks its program"));
        assert!(installed("null", "a", js).unwrap_err().contains("no program to run"));
    }
}
