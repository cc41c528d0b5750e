//! Installing packages: with installers that we script, and twice with the real ones.
//!
//! Each installation runs in a process of its own, since installers see the environment.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use weirkeeper::config::{PackageSpec, Registry};

const SPEC: &str = "WEIR_TEST_SPEC";

/// Not a test of its own: one installation, as told by the environment.
#[tokio::test]
#[ignore = "started by the other tests"]
async fn one_installation() {
    let told: Value =
        serde_json::from_str(&std::env::var(SPEC).expect("started by a test")).unwrap();
    let text = |key: &str| told[key].as_str().map(str::to_owned);
    let spec = PackageSpec {
        registry: if told["registry"] == "npm" { Registry::Npm } else { Registry::Pypi },
        name: text("name").unwrap(),
        version: text("version").unwrap(),
        bin: text("bin"),
    };
    let cache = PathBuf::from(text("cache").unwrap());
    // Two at once in one process are one installation too.
    let (a, b) = tokio::join!(
        weirkeeper::package::ensure(
            &spec,
            &cache,
            Some(std::path::Path::new(env!("CARGO_BIN_EXE_weir")))
        ),
        weirkeeper::package::ensure(
            &spec,
            &cache,
            Some(std::path::Path::new(env!("CARGO_BIN_EXE_weir")))
        )
    );
    assert_eq!(a, b);
    let line = match a {
        Ok(i) => {
            json!({"program": i.program, "args": i.args.iter().map(|a| a.to_str()).collect::<Vec<_>>()})
        }
        Err(e) => json!({"error": e.to_string()}),
    };
    writeln!(std::io::stdout(), "\nOUTCOME {line}").unwrap();
}

struct World {
    dir: TempDir,
    env: Vec<(&'static str, String)>,
}

fn world() -> World {
    World { dir: tempfile::tempdir().unwrap(), env: vec![] }
}

impl World {
    /// A world in which `name` is this script and all there is on PATH.
    fn with_installer(name: &str, script: &str) -> World {
        let mut w = world();
        let bin = w.dir.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        let file = bin.join(name);
        std::fs::write(&file, format!("#!/bin/sh\nPATH=/usr/bin:/bin\n{script}")).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        w.env.push(("PATH", bin.display().to_string()));
        w
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn begin(&self, registry: &str, name: &str, version: &str) -> Child {
        let spec =
            json!({"registry": registry, "name": name, "version": version, "cache": self.cache()});
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "one_installation", "--ignored", "--nocapture"])
            .envs(self.env.iter().map(|(k, v)| (*k, v.as_str())))
            .env(SPEC, spec.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn ensure(&self, registry: &str, name: &str, version: &str) -> Value {
        outcome(self.begin(registry, name, version))
    }

    fn in_cache(&self, registry: &str) -> Vec<String> {
        let folder = self.cache().join("packages").join(registry);
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| Path::new(n).extension().is_none_or(|e| e != "lock"))
            .collect();
        names.sort();
        names
    }
}

fn outcome(child: Child) -> Value {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("OUTCOME "));
    serde_json::from_str(line.unwrap_or_else(|| panic!("no outcome: {text}"))).unwrap()
}

// `$3` is the directory behind `--prefix`.
const FAKE_NPM: &str = r#"
echo begun >> "$3/../log-of-npm"
sleep 0.3
mkdir -p "$3/node_modules/tiny"
echo '{"version":"1.0.0","bin":"cli.js"}' > "$3/node_modules/tiny/package.json"
echo '#!/usr/bin/env node' > "$3/node_modules/tiny/cli.js"
"#;

#[test]
fn gateways_that_share_a_cache_install_once() {
    let w = World::with_installer("npm", FAKE_NPM);
    let three: Vec<_> = (0..3).map(|_| w.begin("npm", "tiny", "1.0.0")).collect();
    let outcomes: Vec<_> = three.into_iter().map(outcome).collect();
    let cli = w.cache().join("packages/npm/tiny@1.0.0/node_modules/tiny/cli.js");
    assert_eq!(outcomes[0], json!({"program": "node", "args": [cli]}));
    assert!(outcomes.iter().all(|o| *o == outcomes[0]), "{outcomes:?}");
    let log = std::fs::read_to_string(w.cache().join("packages/npm/log-of-npm")).unwrap();
    assert_eq!(log, "begun\n");
}

#[test]
fn an_installation_that_fails_or_is_broken_off_leaves_nothing_that_looks_complete() {
    let w = World::with_installer(
        "npm",
        r#"mkdir -p "$3/node_modules/tiny"; echo 'npm error code E404' >&2; exit 1"#,
    );
    let failed = w.ensure("npm", "tiny", "1.0.0");
    assert_eq!(failed["error"], "npm:tiny@1.0.0 could not be installed: npm error code E404");
    assert_eq!(w.in_cache("npm"), Vec::<String>::new());

    let mut slow = World::with_installer("npm", "mkdir -p \"$3/half\"; exec sleep 20");
    let mut child = slow.begin("npm", "tiny", "1.0.0");
    let folder = slow.cache().join("packages/npm");
    let half = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|e| e.path().join("half")).find(|p| p.exists())
    };
    while half(&folder).is_none() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!folder.join("tiny@1.0.0").exists());
    slow.env = World::with_installer("npm", "").env; // its directory is gone: no npm at all
    let none = slow.ensure("npm", "tiny", "1.0.0");
    assert_eq!(
        none["error"],
        "npm:tiny@1.0.0 needs `npm`, which was not found on PATH: install Node.js with npm"
    );
    assert_eq!(slow.in_cache("npm"), Vec::<String>::new(), "what was begun is swept");
}

#[test]
fn another_version_is_not_taken() {
    let w = World::with_installer("npm", FAKE_NPM);
    let other = w.ensure("npm", "tiny", "2.0.0");
    assert_eq!(other["error"], "npm:tiny@2.0.0: the registry gave version 1.0.0 instead");
    assert_eq!(w.in_cache("npm"), ["log-of-npm"]);
}

#[test]
fn a_missing_python_is_named() {
    let w = World::with_installer("other", "");
    let none = w.ensure("pypi", "tiny", "1.0");
    assert_eq!(
        none["error"],
        "pypi:tiny@1.0 needs `python3`, which was not found on PATH: install Python 3"
    );
}

/// Talk to an installed server: does it shake hands?
fn shakes_hands(installed: &Value) {
    let args = installed["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap());
    let mut server = Command::new(installed["program"].as_str().unwrap())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    }});
    writeln!(server.stdin.as_mut().unwrap(), "{hello}").unwrap();
    let mut answer = String::new();
    let mut from = std::io::BufReader::new(server.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut from, &mut answer).unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert!(answer["result"]["serverInfo"]["name"].is_string(), "{answer}");
    server.kill().unwrap();
    server.wait().unwrap();
}

/// With the real installer and registry, and then from the cache with neither.
fn installs_and_runs(registry: &str, name: &str, version: &str) {
    let mut w = world();
    let fresh = w.ensure(registry, name, version);
    assert!(fresh["error"].is_null(), "{fresh}");
    shakes_hands(&fresh);
    let dead = "http://127.0.0.1:1".to_owned();
    w.env = vec![
        ("npm_config_registry", dead.clone()),
        ("PIP_INDEX_URL", dead),
        ("PATH", "/no/such/place".to_owned()),
    ];
    assert_eq!(w.ensure(registry, name, version), fresh);
    // The dead registry is one: what is not in the cache cannot be had.
    w.env.pop();
    w.env.push(("PIP_NO_INDEX", "1".to_owned()));
    let missing = w.ensure(registry, name, "0.0.1");
    assert!(missing["error"].as_str().unwrap().contains("could not be installed: "), "{missing}");
}

#[test]
fn a_real_package_from_npm() {
    installs_and_runs("npm", "@modelcontextprotocol/server-everything", "2026.8.31");
}

#[test]
fn a_real_package_from_pypi() {
    installs_and_runs("pypi", "mcp-server-time", "2026.10.19");
}
