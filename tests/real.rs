//! Real servers behind one endpoint, and real clients in front of it.
//!
//! The servers are what their vendors publish, with made-up credentials: what they answer to a
//! call that needs a real account is an answer too, and must arrive as they gave it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs)]

mod harness;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use harness::peer::{Script, everything, has, node, time};
use harness::{PATIENCE, Program, Weir, call, free_port, peers, reason, tool_names, upstream};

const CAL_KEY: &str = "cal_test_0123456789abcdef";
const RETELL_KEY: &str = "key_test_0123456789abcdef";
const STRIPE_KEY: &str = "rk_test_0123456789abcdef";
const HUBSPOT_KEY: &str = "pat-na1-01234567-89ab-cdef";

/// Each upstream, how many tools it has, a call and what stands in its answer.
fn vendors() -> Vec<(&'static str, usize, &'static str, Value, &'static str)> {
    let link = json!({"portalId": "1", "uiDomain": "app.hubspot.com",
        "pageRequests": [{"pagetype": "index", "objectTypeId": "0-1"}]});
    vec![
        ("hubspot", 21, "hubspot-get-link", link, "https://app.hubspot.com/contacts/1"),
        ("firebase", 38, "firebase_get_environment", json!({}), "Environment"),
        ("calcom", 9, "getBookings", json!({}), "Failed to"),
        ("retell", 24, "list_agents", json!({}), "Error: "),
        ("stripe", 22, "retrieve_balance", json!({}), "Failed to retrieve balance"),
        ("everything", 13, "echo", json!({"message": "über 1.0"}), "Echo: über 1.0"),
        ("over-http", 13, "echo", json!({"message": "two"}), "Echo: two"),
        ("time", 2, "get_current_time", json!({"timezone": "UTC"}), "\"timezone\": \"UTC\""),
    ]
}

/// A server over streamable HTTP; ended when dropped.
struct OverHttp {
    _server: Program,
    url: String,
}

impl OverHttp {
    fn start() -> OverHttp {
        let port = free_port();
        let server = Program::everything("streamableHttp", port);
        OverHttp { _server: server, url: format!("http://127.0.0.1:{port}/mcp") }
    }

    fn section(&self, name: &str) -> String {
        format!("\n[upstreams.{name}]\nurl = {:?}\n", self.url)
    }
}

/// All of them but `without`.
fn all(home: &Path, http: &OverHttp, without: &str) -> String {
    let home = home.to_str().unwrap();
    let firebase = [
        "mcp",
        "--only",
        "core,auth,storage,messaging,functions,remoteconfig,crashlytics,apptesting,apphosting,database",
    ];
    let firebase_env =
        [("METADATA_SERVER_DETECTION", "none"), ("HOME", home), ("XDG_CONFIG_HOME", home)];
    let hubspot = [("PRIVATE_APP_ACCESS_TOKEN", HUBSPOT_KEY)];
    let sections = [
        ("hubspot", node("hubspot", "@hubspot/mcp-server/dist/index.js", &[], &hubspot)),
        (
            "firebase",
            node("firebase", "firebase-tools/lib/bin/firebase.js", &firebase, &firebase_env),
        ),
        (
            "calcom",
            node("calcom", "@calcom/cal-mcp/dist/index.js", &[], &[("CAL_API_KEY", CAL_KEY)]),
        ),
        (
            "retell",
            node(
                "retell",
                "@abhaybabbar/retellai-mcp-server/build/index.js",
                &[],
                &[("RETELL_API_KEY", RETELL_KEY)],
            ),
        ),
        (
            "stripe",
            node(
                "stripe",
                "@stripe/mcp/dist/index.js",
                &["--tools=all"],
                &[("STRIPE_SECRET_KEY", STRIPE_KEY)],
            ),
        ),
        ("everything", everything("everything")),
        ("over-http", http.section("over-http")),
        ("time", time("time")),
    ];
    sections.into_iter().filter(|(n, _)| *n != without).map(|(_, s)| s).collect()
}

/// The process below `root` that runs `what`, by its command line; not a supervisor of ours.
fn descendant(root: u32, what: &str) -> Option<u32> {
    let mut parents = HashMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name in parentheses can hold anything; what follows the last one cannot.
        let rest = stat.rsplit(')').next().unwrap();
        parents.insert(pid, rest.split_whitespace().nth(1).unwrap().parse::<u32>().unwrap());
    }
    let own = std::fs::read_link(format!("/proc/{root}/exe")).unwrap();
    parents.keys().copied().find(|&pid| {
        let mut above = pid;
        while let Some(&parent) = parents.get(&above).filter(|_| above != root) {
            above = parent;
        }
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        above == root
            && pid != root
            && String::from_utf8_lossy(&command).contains(what)
            && std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|e| e != own)
    })
}

fn text_of(answer: &Value) -> &str {
    answer["result"]["content"][0]["text"].as_str().unwrap_or("")
}

/// Callers that go on until told to stop, one per upstream; each answer must be a good one.
struct Load {
    stop: Arc<AtomicBool>,
    callers: Vec<(&'static str, tokio::task::JoinHandle<u32>)>,
}

impl Load {
    fn on(weir: &Weir, without: &[&str]) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let mut callers = Vec::new();
        for (name, _, tool, arguments, expected) in vendors() {
            if without.contains(&name) {
                continue;
            }
            let (stop, url) = (stop.clone(), weir.url.clone());
            callers.push((
                name,
                tokio::spawn(async move {
                    let mut answered = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let public = format!("{name}__{tool}");
                        let answer = call(&url, &public, arguments.clone()).await;
                        assert!(
                            reason(&answer).is_empty() && text_of(&answer).contains(expected),
                            "{public}, call {answered}: {answer}"
                        );
                        answered += 1;
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    answered
                }),
            ));
        }
        Load { stop, callers }
    }

    /// Stop, and how many calls each caller had answered.
    async fn end(self) -> BTreeMap<&'static str, u32> {
        self.stop.store(true, Ordering::Relaxed);
        let mut out = BTreeMap::new();
        for (name, caller) in self.callers {
            out.insert(name, caller.await.unwrap());
        }
        out
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_real_servers_behind_one_endpoint() {
    let http = OverHttp::start();
    let home = tempfile::tempdir().unwrap();
    let weir = Weir::start("", &all(home.path(), &http, ""));
    let names: Vec<&str> = vendors().iter().map(|v| v.0).collect();
    weir.ready(&names).await;

    // The list is complete, and each name says whose it is and is one that models accept.
    let tools = tool_names(&weir.url, None).await;
    for (name, count, ..) in vendors() {
        let own = tools.iter().filter(|t| t.starts_with(&format!("{name}__"))).count();
        assert_eq!(own, count, "tools of {name}");
    }
    for tool in &tools {
        let prefix = tool.split("__").next().unwrap();
        assert!(names.contains(&prefix) || prefix == "weir", "{tool} has no prefix");
        assert!(tool.len() <= 64, "{tool} is too long");
    }
    assert_eq!(
        tools.iter().collect::<std::collections::HashSet<_>>().len(),
        tools.len(),
        "a name is there twice"
    );

    // One call to each, answered by its own server.
    for (name, _, tool, arguments, expected) in vendors() {
        let answer = call(&weir.url, &format!("{name}__{tool}"), arguments).await;
        assert_eq!(reason(&answer), "", "{name}: {answer}");
        assert!(text_of(&answer).contains(expected), "{name}: {answer}");
        if name == "calcom" {
            assert_eq!(answer["result"]["isError"], true, "{answer}");
        }
    }

    // One child is killed: nobody else notices, and it comes back.
    let restarts = upstream(&weir.status().await, "everything")["restarts"].clone();
    let before = descendant(weir.pid(), "server-everything").unwrap();
    let load = Load::on(&weir, &["everything"]);
    let pid = rustix::process::Pid::from_raw(i32::try_from(before).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    weir.until("a restart", |s| {
        let everything = upstream(s, "everything");
        everything["restarts"] != restarts && everything["state"] == "ready"
    })
    .await;
    let answer = call(&weir.url, "everything__echo", json!({"message": "back"})).await;
    assert_eq!(text_of(&answer), "Echo: back", "{answer}");
    assert_ne!(descendant(weir.pid(), "server-everything").unwrap(), before);
    for (name, answered) in load.end().await {
        assert!(answered > 0, "{name} was not called meanwhile");
    }

    // One is added and one removed while the others are called; what the removed one was doing
    // is brought to its end.
    let load = Load::on(&weir, &["everything"]);
    let url = weir.url.clone();
    let slow = tokio::spawn(async move {
        let arguments = json!({"duration": 2, "steps": 2});
        call(&url, "everything__trigger-long-running-operation", arguments).await
    });
    weir.until("the slow call", |s| upstream(s, "everything")["in_flight"] == 1).await;
    weir.rewrite("", &(all(home.path(), &http, "everything") + &time("added")));
    weir.ready(&["added"]).await;
    let answer = slow.await.unwrap();
    assert!(text_of(&answer).contains("completed"), "{answer}");
    let answer = call(&weir.url, "added__get_current_time", json!({"timezone": "UTC"})).await;
    assert!(text_of(&answer).contains("UTC"), "{answer}");
    let answer = call(&weir.url, "everything__echo", json!({"message": "gone"})).await;
    assert_eq!(answer["error"]["code"], -32602, "{answer}");
    let tools = tool_names(&weir.url, None).await;
    assert!(!tools.iter().any(|t| t.starts_with("everything__")), "still listed");
    for (name, answered) in load.end().await {
        assert!(answered > 0, "{name} was not called meanwhile");
    }
    let end = Instant::now() + PATIENCE;
    while descendant(weir.pid(), "server-everything").is_some() {
        assert!(Instant::now() < end, "the removed child still runs");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // Cal.com's server prints its key when it starts: its line is in the log, the key is not.
    let log = weir.log();
    assert!(log.contains("calcom"), "nothing about calcom in the log:\n{log}");
    for secret in [CAL_KEY, RETELL_KEY, STRIPE_KEY, HUBSPOT_KEY] {
        assert!(!log.contains(secret), "a key is in the log");
    }
}

/// Everything a client does in a day; it waits for a change of lists at the end.
fn plan(first_template: &str, ping: bool) -> Value {
    let mut plan = vec![
        json!({"op": "list_tools"}),
        json!({"op": "call_tool", "name": "everything__echo", "arguments": {"message": "né"}}),
        json!({"op": "call_tool", "name": "time__get_current_time", "arguments": {"timezone": "UTC"}}),
        json!({"op": "list_prompts"}),
        json!({"op": "get_prompt", "name": "everything__args-prompt", "arguments": {"city": "Riga"}}),
        json!({"op": "list_resources"}),
        json!({"op": "list_templates"}),
        json!({"op": "read_resource", "uri": first_template}),
        json!({"op": "complete",
            "ref": {"type": "ref/prompt", "name": "everything__completable-prompt"},
            "argument": {"name": "department", "value": "En"}}),
        json!({"op": "call_tool", "name": "everything__no-such-tool", "arguments": {}}),
    ];
    if ping {
        plan.push(json!({"op": "ping"}));
    }
    plan.push(json!({"op": "stdin"}));
    plan.push(json!({"op": "wait_list_changed", "kinds": ["tools"]}));
    plan.push(json!({"op": "list_tools"}));
    json!(plan)
}

/// Each client program with each era it can speak, and the revision it then agrees on.
fn clients() -> Vec<(&'static str, &'static str, &'static str)> {
    vec![
        ("ts1.mjs", "legacy", "2025-11-25"),
        ("ts2.mjs", "legacy", "2025-11-25"),
        ("ts2.mjs", "modern", "2026-07-28"),
        ("ts2.mjs", "auto", "2026-07-28"),
        ("py1.py", "legacy", "2025-11-25"),
        ("py2.py", "legacy", "2025-11-25"),
        ("py2.py", "modern", "2026-07-28"),
        // Behind the bridge it is always a client of the older era that asks.
        ("remote.mjs", "legacy", "2025-11-25"),
    ]
}

fn client(script: &str, url: &str, plan: &Value, era: &str, key: &str) -> Script {
    let program = match script {
        "py1.py" => peers().join("py1/bin/python"),
        "py2.py" => peers().join("py2/bin/python"),
        _ => "node".into(),
    };
    Script::start(&program, script, url, plan, era, key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_clients_do_everything() {
    let weir = Weir::start("", &(time("time") + &everything("everything")));
    weir.ready(&["time", "everything"]).await;
    let uri = "everything+demo://resource/dynamic/text/1";
    let mut waiting = Vec::new();
    for (script, era, revision) in clients() {
        let ping = revision == "2025-11-25";
        let peer = client(script, &weir.url, &plan(uri, ping), era, "");
        let hello = peer.next("connect");
        assert_eq!(hello["ok"], true, "{script} {era}: {hello}");
        assert_eq!(hello["protocolVersion"], revision, "{script} {era}");
        assert_eq!(hello["serverInfo"]["name"], "weirkeeper", "{script} {era}");
        let tools = peer.good("list_tools");
        assert!(has(&tools, "tools", "name", "everything__echo"), "{script} {era}: {tools}");
        assert!(has(&tools, "tools", "name", "time__get_current_time"), "{script} {era}: {tools}");
        let echo = peer.good("call_tool");
        assert_eq!(echo["content"][0]["text"], "Echo: né", "{script} {era}: {echo}");
        let now = peer.good("call_tool");
        assert!(now["content"][0]["text"].as_str().unwrap().contains("UTC"), "{now}");
        let prompts = peer.good("list_prompts");
        assert!(has(&prompts, "prompts", "name", "everything__args-prompt"), "{prompts}");
        let prompt = peer.good("get_prompt");
        assert!(prompt["messages"][0]["content"]["text"].as_str().unwrap().contains("Riga"));
        let resources = peer.good("list_resources");
        assert!(!resources["resources"].as_array().unwrap().is_empty(), "{script} {era}");
        let templates = peer.good("list_templates");
        let template = "everything+demo://resource/dynamic/text/{resourceId}";
        assert!(has(&templates, "resourceTemplates", "uriTemplate", template), "{templates}");
        let resource = peer.good("read_resource");
        assert_eq!(resource["contents"][0]["uri"], uri, "{script} {era}: {resource}");
        let completion = peer.good("complete");
        assert_eq!(completion["completion"]["values"], json!(["Engineering"]), "{script} {era}");
        let unknown = peer.next("call_tool");
        assert_eq!(unknown["ok"], false, "{script} {era}: {unknown}");
        assert_eq!(unknown["error"]["code"], -32602, "{script} {era}: {unknown}");
        if ping {
            peer.good("ping");
        }
        waiting.push((script, era, peer));
    }

    // All of them are told of one change, and see it.
    weir.rewrite("", &everything("everything"));
    weir.until("time is gone", |s| upstream(s, "time").is_null()).await;
    for (script, era, peer) in &mut waiting {
        peer.go_on();
        peer.good("stdin");
        let changed = peer.good("wait_list_changed");
        let seen = changed["seen"].as_array().unwrap();
        assert!(seen.contains(&json!("tools")), "{script} {era} was told of {seen:?}");
        let tools = peer.good("list_tools");
        assert!(has(&tools, "tools", "name", "everything__echo"), "{script} {era}: {tools}");
        assert!(!has(&tools, "tools", "name", "time__get_current_time"), "{script} {era}: {tools}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_clients_with_a_key_see_their_view() {
    let key = weirkeeper::config::secret::new_key();
    let digest = weirkeeper::config::secret::ConsumerKey::of(key.expose()).to_text();
    let people = format!(
        "\n[views.clock]\nupstreams = [\"time\"]\n[consumers.team]\nkey = {digest:?}\nview = \"clock\"\n"
    );
    let weir = Weir::start("", &(time("time") + &everything("everything") + &people));
    weir.ready(&["time", "everything"]).await;
    let plan = json!([
        {"op": "list_tools"},
        {"op": "call_tool", "name": "time__get_current_time", "arguments": {"timezone": "UTC"}},
        {"op": "call_tool", "name": "everything__echo", "arguments": {"message": "no"}},
    ]);
    for (script, era, _) in clients() {
        let peer = client(script, &weir.url, &plan, era, key.expose());
        let hello = peer.next("connect");
        assert_eq!(hello["ok"], true, "{script} {era}: {hello}");
        let tools = peer.good("list_tools");
        let names: Vec<&str> = tools["tools"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["time__get_current_time", "time__convert_time"], "{script} {era}");
        let now = peer.good("call_tool");
        assert!(now["content"][0]["text"].as_str().unwrap().contains("UTC"), "{now}");
        let hidden = peer.next("call_tool");
        assert_eq!(hidden["error"]["code"], -32602, "{script} {era}: {hidden}");
    }
    let peer = client("ts1.mjs", &weir.url, &plan, "legacy", "");
    assert_eq!(peer.next("connect")["ok"], false, "let in without a key");
    assert!(!weir.log().contains(key.expose()), "the key is in the log");
}
