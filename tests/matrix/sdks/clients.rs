//! Clients of SDKs: each reads the list, and calls a tool that answers and one that fails, of every
//! upstream.

use std::process::Command;
use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::servers::Server;
use super::{Marks, rust};
use crate::features::check;
use crate::harness::peers;
use crate::peer::Peer;

/// Texts, or what failed.
pub type Step = Result<Vec<String>, String>;

/// What a result says: its first text, or that it is an error.
pub fn said(result: &Value) -> Step {
    let text = result["content"][0]["text"].as_str().unwrap_or_default().to_owned();
    if result["isError"] == true { Err(text) } else { Ok(vec![text]) }
}

/// Calls to make of an upstream, what the first says, and what the second fails with.
struct Errand {
    name: String,
    calls: [(String, Value); 2],
    says: String,
    code: Option<&'static str>,
}

fn errands(scripted: &[Arc<Peer>], servers: &[Server]) -> Vec<Errand> {
    let scripted = scripted.iter().map(|peer| {
        let name = peer.at.name();
        let calls =
            [(format!("{name}__echo"), json!({"a": 1})), (format!("{name}__broke"), json!({}))];
        Errand { name, calls, says: r#"{"a":1}"#.into(), code: Some("-31050") }
    });
    let servers = servers.iter().map(|server| {
        let call = |(tool, arguments): (&str, &str)| {
            (format!("{}__{tool}", server.name), serde_json::from_str(arguments).unwrap())
        };
        Errand {
            name: server.name.into(),
            calls: [call(server.simple.0), call(server.failing)],
            says: server.simple.1.into(),
            code: None,
        }
    });
    scripted.chain(servers).collect()
}

/// A row for each client.
pub async fn rows(
    url: &str,
    scripted: &[Arc<Peer>],
    servers: &[Server],
) -> Vec<(String, Vec<Marks>)> {
    let errands = errands(scripted, servers);
    let calls: Vec<_> = errands.iter().flat_map(|e| e.calls.clone()).collect();
    let scripts = [
        ("TypeScript 1.x", "ts1.mjs", "legacy"),
        ("TypeScript 2.x", "ts2.mjs", "legacy"),
        ("TypeScript 2.x", "ts2.mjs", "modern"),
        ("Python 1.x", "py1.py", "legacy"),
        ("Python 2.x", "py2.py", "legacy"),
        ("Python 2.x", "py2.py", "modern"),
    ];
    let revision = |era: &str| if era == "modern" { "2026-07-28" } else { "2025-11-25" };
    let mut all: Vec<(String, Vec<Step>)> = Vec::new();
    for era in ["legacy", "modern"] {
        let steps = rust::client(url, era == "modern", &calls).await;
        all.push((format!("rmcp 3 ({})", revision(era)), steps));
    }
    let ran = scripts.map(|(_, script, era)| {
        let (url, calls) = (url.to_owned(), calls.clone());
        tokio::task::spawn_blocking(move || run(script, era, revision(era), &url, &calls))
    });
    for ((title, _, era), steps) in scripts.into_iter().zip(join_all(ran).await) {
        all.push((format!("{title} ({})", revision(era)), steps.unwrap()));
    }
    all.into_iter().map(|(title, steps)| (title, judged(&errands, &steps))).collect()
}

fn judged(errands: &[Errand], steps: &[Step]) -> Vec<Marks> {
    let names = steps[0].clone().unwrap();
    let each = errands.iter().zip(steps[1..].chunks(2)).map(|(errand, steps)| {
        let listed = names.contains(&errand.calls[0].0);
        let listed = check(listed, || format!("{} is not listed", errand.name));
        let said = matches!(&steps[0], Ok(text) if text[0].contains(&errand.says));
        let failed = match (&steps[1], errand.code) {
            (Err(code), Some(expected)) => code == expected,
            (other, _) => other.is_err(),
        };
        vec![
            ("list", listed.map(|()| None)),
            ("call", check(said, || format!("{:?}", steps[0])).map(|()| None)),
            ("error", check(failed, || format!("{:?}", steps[1])).map(|()| None)),
        ]
    });
    each.collect()
}

// A client script with its plan, to its end.
fn run(script: &str, era: &str, revision: &str, url: &str, calls: &[(String, Value)]) -> Vec<Step> {
    let mut plan = vec![json!({"op": "list_tools"})];
    plan.extend(
        calls.iter().map(
            |(name, arguments)| json!({"op": "call_tool", "name": name, "arguments": arguments}),
        ),
    );
    let program = match script {
        "py1.py" => peers().join("py1/bin/python"),
        "py2.py" => peers().join("py2/bin/python"),
        _ => "node".into(),
    };
    let output = Command::new(program)
        .arg(peers().join("clients").join(script))
        .args([url, &json!(plan).to_string(), era])
        .output()
        .unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(
        lines.len(),
        plan.len() + 1,
        "{script} {era}: {lines:?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(lines[0]["protocolVersion"], revision, "{script} {era}: {}", lines[0]);
    lines[1..].iter().map(step).collect()
}

fn step(line: &Value) -> Step {
    if line["ok"] != true {
        return Err(line["error"]["code"].to_string());
    }
    if let Some(tools) = line["result"]["tools"].as_array() {
        return Ok(tools.iter().map(|t| t["name"].as_str().unwrap().to_owned()).collect());
    }
    said(&line["result"])
}
