//! The official conformance suite, through the gateway: one upstream passed through with its own
//! names, and the same one federated with two others that carry prefixes; over an upstream that
//! speaks both eras, only the old, only the new.
//!
//! Each run is compared with `baseline.txt`: what fails and is not there is a failure, and so is
//! what is there and passes.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../harness/mod.rs"]
mod harness;

mod client;
mod tasks;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use harness::peer::{Fixture, newer_node};
use harness::scripted::{Scripted, tool};
use harness::{Weir, peers};

/// How many scenarios a revision has that count (30 and 37 are the suite's own requirement sets;
/// the older revisions have no set, so what applies to 2025-06-18 is run on their wire).
const SCORED: [(&str, usize); 4] =
    [("2025-03-26", 27), ("2025-06-18", 27), ("2025-11-25", 30), ("2026-07-28", 37)];

const BASELINE: &str = include_str!("baseline.txt");

fn suite() -> Command {
    let dir = peers().join("conformance/node_modules");
    let mut command = Command::new(newer_node());
    command.arg(dir.join("@modelcontextprotocol/conformance/dist/index.js"));
    command
}

/// Run the suite with these arguments: every scenario that was run, and whether it passed.
fn run(url: &str, args: &[&str]) -> BTreeMap<String, bool> {
    let output = suite().args(["server", "--url", url]).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    let line = |l: &str| {
        let passed = l.starts_with('✓');
        let name = l.trim_start_matches(['✓', '✗']).trim().split(':').next()?.to_owned();
        (passed || l.starts_with('✗')).then_some((name, passed))
    };
    let mut seen: BTreeMap<_, _> = text.lines().filter_map(line).collect();
    // A single scenario is summed up in other words.
    if let Some(at) = args.iter().position(|a| *a == "--scenario") {
        let result = text.lines().find_map(|l| l.strip_prefix("Passed: "));
        let passed = result.is_some_and(|r| r.contains(" 0 failed"));
        seen.insert(args[at + 1].to_owned(), passed);
    }
    seen
}

/// The names that a requirement set counts.
fn scored(revision: &str) -> BTreeSet<String> {
    let dir =
        peers().join("conformance/node_modules/@modelcontextprotocol/conformance/requirements");
    let text = std::fs::read_to_string(dir.join(format!("{revision}.yaml"))).unwrap();
    let server = text.split("\nserver:\n").nth(1).unwrap().split("\nclient:").next().unwrap();
    server.lines().filter_map(|l| l.strip_prefix("  - ")).map(str::to_owned).collect()
}

/// All revisions against one URL: what passed and what failed of what counts, by revision.
fn all(url: &str) -> BTreeMap<&'static str, BTreeMap<String, bool>> {
    let mut out = BTreeMap::new();
    let older = run(url, &["--spec-version", "2025-06-18"]);
    let on_the_oldest_wire = older.keys().map(|name| {
        let args = ["--scenario", name.as_str(), "--spec-version", "2025-03-26", "--force"];
        run(url, &args).pop_first().unwrap()
    });
    out.insert("2025-03-26", on_the_oldest_wire.collect());
    out.insert("2025-06-18", older);
    for revision in ["2025-11-25", "2026-07-28"] {
        let mut seen = run(url, &["--requirements", revision]);
        let counts = scored(revision);
        seen.retain(|name, _| counts.contains(name));
        out.insert(revision, seen);
    }
    out
}

fn judge(mode: &str, era: &str, seen: &BTreeMap<&'static str, BTreeMap<String, bool>>) {
    let known: BTreeSet<String> = BASELINE
        .lines()
        .filter(|l| !l.starts_with('#') && !l.trim().is_empty())
        .map(|l| l.split(": ").next().unwrap().to_owned())
        .collect();
    let mut wrong = Vec::new();
    let mut counts = Vec::new();
    for (revision, wanted) in SCORED {
        let results = &seen[revision];
        let passed = results.values().filter(|p| **p).count();
        counts.push(format!("{revision} {passed}/{wanted}"));
        if results.len() != wanted {
            wrong.push(format!("{revision}: {} scenarios were run", results.len()));
        }
        for (name, passed) in results {
            let listed = known.contains(&format!("{era} {revision} {name}"));
            match (passed, listed) {
                (false, false) => wrong.push(format!("{revision} {name} fails")),
                (true, true) => {
                    wrong.push(format!("{revision} {name} passes: take it out of the baseline"));
                }
                _ => {}
            }
        }
    }
    let table = format!("{mode}, upstream {era}: {}", counts.join(", "));
    // Shown with --nocapture.
    #[allow(clippy::print_stdout)]
    {
        println!("{table}");
    }
    assert!(wrong.is_empty(), "{table}\n{}", wrong.join("\n"));
}

async fn through(mode: &str, era: &'static str) {
    let fixture = Fixture::start(era);
    let other = async |names: &[&str]| {
        let tools: Vec<_> = names
            .iter()
            .map(|n| {
                let mut tool = tool(n, false);
                // The suite wants each tool described.
                tool["description"] = "Another server's tool.".into();
                tool
            })
            .collect();
        Scripted::start(&tools, |_| None).await
    };
    let others = (other(&["a", "b"]).await, other(&["a"]).await);
    let mut toml = format!("[upstreams.fixture]\nurl = {:?}\nprefix = \"\"\n", fixture.url);
    let mut names = vec!["fixture"];
    if mode == "federated" {
        toml += &(others.0.section("one", "") + &others.1.section("two", ""));
        names.extend(["one", "two"]);
    }
    let gateway = if mode == "federated" { "" } else { "builtin = false" };
    let weir = Weir::start(gateway, &toml);
    weir.ready(&names).await;
    let url = weir.url.clone();
    let seen = tokio::task::spawn_blocking(move || all(&url)).await.unwrap();
    judge(mode, era, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fixture_itself_passes() {
    let fixture = Fixture::start("both");
    let url = fixture.url.clone();
    let seen = tokio::task::spawn_blocking(move || all(&url)).await.unwrap();
    judge("directly", "direct", &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn passed_through_over_both_eras() {
    through("passed through", "both").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn passed_through_over_an_old_upstream() {
    through("passed through", "legacy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn passed_through_over_a_new_upstream() {
    through("passed through", "modern").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn federated_over_both_eras() {
    through("federated", "both").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn federated_over_an_old_upstream() {
    through("federated", "legacy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn federated_over_a_new_upstream() {
    through("federated", "modern").await;
}
