//! The suite's scenarios of the extension `io.modelcontextprotocol/tasks`: what it says of the
//! server itself it has to say of the server behind the gateway, check by check.

use std::collections::BTreeMap;

use serde_json::json;

use crate::harness::Weir;
use crate::harness::scripted::{Reply, Scripted, tool};
use crate::{Fixture, suite};

/// All of the extension's, but for the one that the suite itself skips
/// (`tasks-status-notifications`); and how many checks each makes.
const SCENARIOS: [(&str, usize); 9] = [
    ("tasks-capability-negotiation", 5),
    ("tasks-dispatch-and-envelope", 9),
    ("tasks-lifecycle", 9),
    ("tasks-mrtr-composition", 2),
    ("tasks-mrtr-input", 4),
    ("tasks-request-headers", 5),
    ("tasks-request-state-removal", 3),
    ("tasks-required-task-error", 3),
    ("tasks-wire-fields", 4),
];

/// What the suite says of each check, and how many there were, by scenario.
type Verdicts = BTreeMap<String, (String, BTreeMap<String, String>)>;

fn verdict(url: &str, scenario: &str) -> (String, BTreeMap<String, String>) {
    let args = ["server", "--url", url, "--scenario", scenario];
    // They are on no revision's own list.
    let args = args.iter().chain(&["--spec-version", "2026-07-28", "--force"]);
    let output = suite().args(args).env("NO_COLOR", "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    let text = plain(&text);
    let check = |line: &str| {
        let (_, rest) = line.split_once("Z [")?;
        let (id, rest) = rest.split_once(']')?;
        let word = rest.split_whitespace().next()?;
        word.chars().all(|c| c.is_ascii_uppercase()).then(|| (id.trim().to_owned(), word.into()))
    };
    let sum = text.lines().find_map(|l| l.strip_prefix("Passed: ")).unwrap_or("nothing");
    (sum.to_owned(), text.lines().filter_map(check).collect())
}

/// Without the colours.
fn plain(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + part.split_once('m').map_or(part, |(_, rest)| rest))
}

/// All at once: most of them wait for tasks.
fn verdicts(url: &str) -> Verdicts {
    std::thread::scope(|scope| {
        let running: Vec<_> =
            SCENARIOS.iter().map(|(name, _)| (*name, scope.spawn(|| verdict(url, name)))).collect();
        running.into_iter().map(|(n, v)| (n.to_owned(), v.join().unwrap())).collect()
    })
}

/// An upstream of the newest revision that knows no tasks.
async fn modern() -> Scripted {
    Scripted::start(&[], |a| {
        let mut result = match a.method() {
            "server/discover" => {
                json!({"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}})
            }
            "tools/list" => json!({"tools": [tool("slow_compute", false)]}),
            _ => return None,
        };
        result["resultType"] = json!("complete");
        result["ttlMs"] = json!(0);
        result["cacheScope"] = json!("private");
        Some(Reply::Json(a.result(&result)))
    })
    .await
}

async fn of(url: &str) -> Verdicts {
    let url = url.to_owned();
    tokio::task::spawn_blocking(move || verdicts(&url)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_through_the_gateway_are_what_they_are_without_it() {
    let fixture = Fixture::of("tasks.py", &[]);
    let direct = of(&fixture.url).await;
    for (name, checks) in SCENARIOS {
        let (sum, _) = &direct[name];
        assert_eq!(*sum, format!("{checks}/{checks}, 0 failed, 0 warnings"), "{name}, directly");
    }
    let section = format!("[upstreams.fixture]\nurl = {:?}\nprefix = \"\"\n", fixture.url);
    let alone = Weir::start("builtin = false", &section);
    alone.ready(&["fixture"]).await;
    assert_eq!(of(&alone.url).await, direct, "passed through");
    let (old, new) = (Scripted::fine(&["greet", "slow_compute"]).await, modern().await);
    let beside = section + &old.section("old", "") + &new.section("new", "");
    let federated = Weir::start("", &beside);
    federated.ready(&["fixture", "old", "new"]).await;
    assert_eq!(of(&federated.url).await, direct, "federated");
    // Shown with --nocapture.
    #[allow(clippy::print_stdout)]
    {
        let checks: usize = SCENARIOS.iter().map(|(_, n)| n).sum();
        println!("tasks: {} scenarios, {checks} checks, the same in all three", SCENARIOS.len());
    }
}
