//! Clients that people build on, beside the SDKs of `tests/real.rs`: FastMCP, and the command line
//! of MCP Inspector. Over each way in, in each era that they speak there.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs)]

mod harness;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

use harness::peer::{Fixture, Script, everything, has, newer_node, time};
use harness::{PATIENCE, Program, Weir, free_port, peers, upstream};

const EVERYTHING: &str = "everything+demo://resource/dynamic/text/1";

/// A section for the server that asks its callers, reports and logs.
fn talk(fixture: &Fixture) -> String {
    format!("\n[upstreams.talk]\nurl = {:?}\n", fixture.url)
}

/// Everything that FastMCP's client has a method or a handler for.
fn plan(era: &str) -> Value {
    let call = |name: &str, arguments: Value| json!({"op": "call_tool", "name": name, "arguments": arguments});
    let all = ["everything__echo", "time__get_current_time", "talk__test_sampling"];
    let mut plan = vec![
        json!({"op": "list_tools", "until": all}),
        call("everything__echo", json!({"message": "né"})),
        call("time__get_current_time", json!({"timezone": "UTC"})),
        json!({"op": "list_prompts"}),
        json!({"op": "get_prompt", "name": "everything__args-prompt", "arguments": {"city": "Riga"}}),
        json!({"op": "list_resources"}),
        json!({"op": "read_resource", "uri": EVERYTHING}),
        json!({"op": "list_templates"}),
        json!({"op": "complete",
            "ref": {"type": "ref/prompt", "name": "everything__completable-prompt"},
            "argument": {"name": "department", "value": "En"}}),
        call("talk__test_tool_with_progress", json!({})),
        call("talk__test_elicitation", json!({"message": "who are you?"})),
        call("talk__test_sampling", json!({"prompt": "say something"})),
        call("everything__no-such-tool", json!({})),
    ];
    if era == "legacy" {
        plan.push(json!({"op": "ping"}));
        plan.push(json!({"op": "log_level", "level": "info"}));
    }
    plan.push(call("talk__test_tool_with_logging", json!({})));
    plan.push(json!({"op": "heard"}));
    // It has no way to listen for changes in the newest revision: there it asks.
    if era == "legacy" {
        // Forgets what it was told while the upstreams became ready.
        plan.push(json!({"op": "wait_list_changed", "kinds": ["none"], "timeout_ms": 500}));
        plan.push(json!({"op": "stdin"}));
        plan.push(json!({"op": "wait_list_changed", "kinds": ["tools"]}));
    } else {
        plan.push(json!({"op": "stdin"}));
    }
    plan.push(json!({"op": "list_tools", "without": "time__get_current_time"}));
    json!(plan)
}

fn fastmcp(target: &str, era: &str) -> Script {
    let python = peers().join("py3/bin/python");
    Script::start(&python, "py3.py", target, &plan(era), era, "")
}

fn text(answer: &Value) -> &str {
    answer["content"][0]["text"].as_str().unwrap_or("")
}

/// All steps up to the wait for a change.
fn does_everything(peer: &Script, era: &str) {
    let hello = peer.next("connect");
    let revision = if era == "legacy" { "2025-11-25" } else { "2026-07-28" };
    assert_eq!(hello["protocolVersion"], revision, "{hello}");
    // Told to speak the newest revision it asks nothing first, and learns no name.
    if era != "modern" {
        assert_eq!(hello["serverInfo"]["name"], "weirkeeper", "{hello}");
    }
    let tools = peer.good("list_tools");
    for name in ["everything__echo", "time__get_current_time", "talk__test_sampling"] {
        assert!(has(&tools, "tools", "name", name), "{name} is missing: {tools}");
    }
    assert_eq!(text(&peer.good("call_tool")), "Echo: né");
    assert!(text(&peer.good("call_tool")).contains("\"timezone\": \"UTC\""));
    let prompts = peer.good("list_prompts");
    assert!(has(&prompts, "prompts", "name", "everything__args-prompt"), "{prompts}");
    let prompt = peer.good("get_prompt");
    assert!(prompt["messages"][0]["content"]["text"].as_str().unwrap().contains("Riga"));
    let resources = peer.good("list_resources");
    let own = |r: &Value| r["uri"].as_str().unwrap().starts_with("everything+");
    assert!(resources["resources"].as_array().unwrap().iter().any(own), "{resources}");
    let resource = peer.good("read_resource");
    assert_eq!(resource["contents"][0]["uri"], EVERYTHING, "{resource}");
    let templates = peer.good("list_templates");
    let template = "everything+demo://resource/dynamic/text/{resourceId}";
    assert!(has(&templates, "resourceTemplates", "uriTemplate", template), "{templates}");
    let completion = peer.good("complete");
    assert_eq!(completion["completion"]["values"], json!(["Engineering"]));
    assert_eq!(text(&peer.good("call_tool")), "done");
    assert_eq!(
        text(&peer.good("call_tool")),
        "User response: action=accept, content={\"username\": \"ada\", \"email\": \"ada@example.com\"}"
    );
    assert_eq!(text(&peer.good("call_tool")), "LLM response: sampled by FastMCP");
    let unknown = peer.next("call_tool");
    assert_eq!(unknown["error"]["code"], -32602, "{unknown}");
    if era == "legacy" {
        assert_eq!(peer.good("ping")["answered"], true);
        peer.good("log_level");
    }
    assert_eq!(text(&peer.good("call_tool")), "three messages were logged");
    let heard = peer.good("heard");
    assert_eq!(heard["progress"], json!([[0.0, 100.0], [50.0, 100.0], [100.0, 100.0]]), "{heard}");
    assert_eq!(heard["elicitation"], json!(["who are you?"]), "{heard}");
    assert_eq!(heard["sampling"], json!(["say something"]), "{heard}");
    let logged: Vec<_> =
        heard["log"].as_array().unwrap().iter().map(|l| l[2].as_str().unwrap()).collect();
    let said = ["Tool execution started", "Tool processing data", "Tool execution completed"];
    assert_eq!(logged, said, "{heard}");
}

/// Told of the change if its era has a way, it sees it.
fn sees_that_time_is_gone(peer: &mut Script, era: &str) {
    if era == "legacy" {
        peer.good("wait_list_changed");
    }
    peer.go_on();
    peer.good("stdin");
    if era == "legacy" {
        let changed = peer.good("wait_list_changed");
        assert!(changed["seen"].as_array().unwrap().contains(&json!("tools")), "{changed}");
    }
    let tools = peer.good("list_tools");
    assert!(has(&tools, "tools", "name", "everything__echo"), "{tools}");
    assert!(!has(&tools, "tools", "name", "time__get_current_time"), "{tools}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fastmcp_does_everything_over_http() {
    let fixture = Fixture::start("both");
    let weir = Weir::start("", &(time("time") + &everything("everything") + &talk(&fixture)));
    weir.ready(&["time", "everything", "talk"]).await;
    let mut waiting = Vec::new();
    for era in ["legacy", "modern", "auto"] {
        let peer = fastmcp(&weir.url, era);
        does_everything(&peer, era);
        waiting.push((peer, era));
    }
    weir.rewrite("", &(everything("everything") + &talk(&fixture)));
    weir.until("time is gone", |s| upstream(s, "time").is_null()).await;
    for (peer, era) in &mut waiting {
        sees_that_time_is_gone(peer, era);
    }
}

/// A file for a gateway that a host starts as a program.
fn file(dir: &Path, upstreams: &str) -> std::path::PathBuf {
    let path = dir.join("upstreams.toml");
    let text = format!(
        "[gateway]\nstate_dir = \"{0}/state\"\ncache_dir = \"{0}/cache\"\n{upstreams}",
        dir.display()
    );
    let new = dir.join("upstreams.toml.new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, &path).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fastmcp_does_everything_over_stdio() {
    let fixture = Fixture::start("both");
    for era in ["legacy", "modern"] {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), &(time("time") + &everything("everything") + &talk(&fixture)));
        let line = json!([env!("CARGO_BIN_EXE_weir"), "stdio", "--config", path]);
        let mut peer = fastmcp(&line.to_string(), era);
        does_everything(&peer, era);
        file(dir.path(), &(everything("everything") + &talk(&fixture)));
        sees_that_time_is_gone(&mut peer, era);
    }
}

/// One run of MCP Inspector: what it prints, and its exit code.
fn inspect(home: &Path, way: &[&str], era: &str, args: &[&str], program: &[&str]) -> (Value, i32) {
    let main =
        "inspector/node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js";
    let mut command = Command::new(newer_node());
    command.arg(peers().join(main)).arg("--cli").args(way);
    command.args(["--protocol-era", era, "--format", "json", "--quiet", "--method"]).args(args);
    if !program.is_empty() {
        command.arg("--").args(program);
    }
    // Its settings and its OAuth state are its own; it has no screen to open a browser on.
    let output = command
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap())
        .env("HOME", home)
        .env("BROWSER", "false")
        .output()
        .unwrap();
    let text = if output.status.success() { &output.stdout } else { &output.stderr };
    let text = String::from_utf8_lossy(text);
    let said = serde_json::from_str(text.trim())
        .unwrap_or_else(|_| panic!("{args:?} over {way:?} {era}: {}", output.status));
    (said, output.status.code().unwrap())
}

/// What a person at a terminal looks at first. `ask` runs Inspector until `good` is true of what it
/// says.
fn is_inspected(ask: &dyn Fn(&[&str]) -> (Value, i32), names: &[&str]) {
    let good = |args: &[&str]| {
        let (mut said, code) = ask(args);
        assert_eq!(code, 0, "{args:?}: {said}");
        said["result"].take()
    };
    let tools = good(&["tools/list"]);
    let prompts = good(&["prompts/list"]);
    let resources = good(&["resources/list"]);
    let prefixes = |list: &Value, kind: &str, field: &str, mark: &str| -> BTreeSet<String> {
        let items = list[kind].as_array().unwrap().iter();
        items.map(|i| i[field].as_str().unwrap().split(mark).next().unwrap().to_owned()).collect()
    };
    let wanted: BTreeSet<String> = names.iter().map(|n| (*n).to_owned()).collect();
    assert!(prefixes(&tools, "tools", "name", "__").is_superset(&wanted), "{tools}");
    assert!(has(&tools, "tools", "name", "time__get_current_time"), "{tools}");
    for name in names.iter().filter(|n| **n != "time") {
        assert!(prefixes(&prompts, "prompts", "name", "__").contains(*name), "{prompts}");
        assert!(prefixes(&resources, "resources", "uri", "+").contains(*name), "{resources}");
        let tool = format!("{name}__echo");
        let call = ["tools/call", "--tool-name", &tool, "--tool-arg", "message=né"];
        assert_eq!(text(&good(&call)), "Echo: né");
        let prompt = format!("{name}__args-prompt");
        let prompt = ["prompts/get", "--prompt-name", &prompt, "--prompt-args", "city=Riga"];
        let prompt = good(&prompt);
        assert_eq!(prompt["messages"][0]["content"]["text"], "What's weather in Riga?");
        let uri = format!("{name}+demo://resource/dynamic/text/1");
        let resource = good(&["resources/read", "--uri", &uri]);
        assert_eq!(resource["contents"][0]["uri"], uri, "{resource}");
        let says = resource["contents"][0]["text"].as_str().unwrap();
        assert!(says.starts_with("Resource 1: This is a plaintext resource"), "{resource}");
    }
    let call =
        ["tools/call", "--tool-name", "time__get_current_time", "--tool-arg", "timezone=UTC"];
    assert!(text(&good(&call)).contains("\"timezone\": \"UTC\""));
    let (refused, code) = ask(&["tools/call", "--tool-name", "time__no-such-tool"]);
    assert_eq!((code, &refused["error"]["code"]), (5, &json!("tool_not_found")), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inspector_looks_at_everything_over_http_and_sse() {
    let (http, sse) = (free_port(), free_port());
    let _http = Program::everything("streamableHttp", http);
    let _sse = Program::everything("sse", sse);
    let others = format!(
        "\n[upstreams.over-http]\nurl = \"http://127.0.0.1:{http}/mcp\"\n\
         [upstreams.over-sse]\nurl = \"http://127.0.0.1:{sse}/sse\"\n"
    );
    let weir = Weir::start("", &(time("time") + &everything("everything") + &others));
    let names = ["time", "everything", "over-http", "over-sse"];
    weir.ready(&names).await;
    let home = tempfile::tempdir().unwrap();
    let old = weir.url.replace("/mcp", "/sse");
    for (way, url, era) in
        [("http", &weir.url, "legacy"), ("http", &weir.url, "modern"), ("sse", &old, "legacy")]
    {
        let way = ["--transport", way, "--server-url", url];
        let ask = |args: &[&str]| inspect(home.path(), &way, era, args, &[]);
        // All of them once; over the other ways in, one is as good as four.
        let names = if era == "modern" { &names[..] } else { &names[..2] };
        is_inspected(&ask, names);
    }
}

#[test]
fn inspector_looks_at_everything_over_stdio() {
    let home = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), &(time("time") + &everything("everything")));
    let program = [env!("CARGO_BIN_EXE_weir"), "stdio", "--config", path.to_str().unwrap()];
    // The lists are known from here on, also before an upstream has started again.
    let known =
        Command::new(program[0]).args(["catalog", "--config", program[3]]).output().unwrap();
    assert!(known.status.success(), "{known:?}");
    let ask = |args: &[&str]| {
        // Each run starts a gateway, and the gateway its upstreams: a call may come too early. It
        // is refused then, with a reason that says so, and a person would call again.
        let end = Instant::now() + PATIENCE;
        loop {
            let (said, code) =
                inspect(home.path(), &["--transport", "stdio"], "legacy", args, &program);
            if !said.to_string().contains("upstream_down") || Instant::now() > end {
                return (said, code);
            }
        }
    };
    is_inspected(&ask, &["time", "everything"]);
}
