//! Upstreams that are processes, behind the whole gateway: what they use, what they may use, how
//! many start at once, and that they run only while somebody uses them.
#![allow(clippy::unwrap_used, missing_docs)]

mod harness;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::{Weir, call, get, modern, modern_request, post, reason, send, tool_names, upstream};
use serde_json::{Value, json};
use weirkeeper::config::secret::{ConsumerKey, new_key};

/// A server of one folder. It notes its process id in `starts` when it starts and before it
/// answers the first request (`+PID`, `-PID`), and each write in `arrivals`. Its tools: `pid`,
/// `write`, `peek` (a read); the last two eat as many MiB as the file `eat` says, once, and hang.
const SERVER: &str = r"
import json, os, subprocess, sys, time
home = os.path.dirname(os.path.abspath(__file__))
def note(name, text):
    with open(os.path.join(home, name), 'a') as f: f.write(text + '\n')
def said(name):
    try: return open(os.path.join(home, name)).read()
    except OSError: return None
def out(x): sys.stdout.write(json.dumps(x) + '\n'); sys.stdout.flush()
def result(m, r): out({'jsonrpc': '2.0', 'id': m['id'], 'result': r})
def text(m, t): result(m, {'content': [{'type': 'text', 'text': str(t)}]})
note('starts', '+%d' % os.getpid())
if said('fail'): sys.exit(3)
if said('hang'): time.sleep(600)
time.sleep(float(said('slow') or 0))
helper = subprocess.Popen(['sleep', '600'], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) if said('helper') else None
held = []
def eat():
    size = said('eat')
    if not size: return
    os.remove(os.path.join(home, 'eat'))
    held.append(b'x' * (int(size) << 20))
    time.sleep(600)
greeted = False
for line in sys.stdin:
    m = json.loads(line)
    k = m.get('method')
    if 'id' not in m or k is None: continue
    if not greeted: note('starts', '-%d' % os.getpid()); greeted = True
    if k == 'initialize': result(m, {'protocolVersion': '2025-06-18', 'capabilities': {'tools': {}, 'resources': {'subscribe': True}}, 'serverInfo': {'name': 'p', 'version': '1'}})
    elif k == 'tools/list':
        note('lists', 'x')
        result(m, {'tools': [{'name': n, 'inputSchema': {'type': 'object'}, 'annotations': {'readOnlyHint': n == 'peek'}} for n in ('pid', 'write', 'peek', 'slow')]})
    elif k == 'resources/list': result(m, {'resources': [{'uri': 'file:///a', 'name': 'a'}]})
    elif k == 'resources/subscribe': note('subscribed', m['params']['uri']); result(m, {})
    elif k == 'tools/call':
        name = m['params']['name']
        if name == 'write': note('arrivals', 'x')
        if name in ('write', 'peek'): eat()
        if name == 'slow': time.sleep(2.5)
        text(m, os.getpid())
    else: out({'jsonrpc': '2.0', 'id': m['id'], 'error': {'code': -32601, 'message': 'no'}} if k.endswith(('/list', 'discover')) else {'jsonrpc': '2.0', 'id': m['id'], 'result': {}})
";

/// A server and its folder.
struct Server {
    dir: tempfile::TempDir,
}

impl Server {
    fn new() -> Server {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("server.py"), SERVER).unwrap();
        Server { dir }
    }

    fn section(&self, name: &str, more: &str) -> String {
        let script = self.dir.path().join("server.py");
        let script = script.display();
        format!(
            "[upstreams.{name}]\ncommand = \"python3\"\nargs = [\"-u\", \"{script}\"]\nera = \"legacy\"\n{more}\n"
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn say(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn starts(&self) -> usize {
        self.lines("starts").iter().filter(|l| l.starts_with('+')).count()
    }
}

fn text(answer: &Value) -> String {
    let text = answer["result"]["content"][0]["text"].as_str();
    text.unwrap_or_else(|| panic!("{answer}")).to_owned()
}

fn failure(answer: &Value) -> &Value {
    &answer["result"]["_meta"]["io.weirkeeper/failure"]
}

fn alive(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

fn is_idle(status: &Value) -> bool {
    upstream(status, "up")["state"] == "idle"
}

async fn rests(weir: &Weir) {
    weir.until("idle", is_idle).await;
}

/// The value of a series of the upstream `up`; `None`: there is none.
async fn metric(weir: &Weir, name: &str) -> Option<f64> {
    let page = weir.metrics().await;
    let line = page.lines().find_map(|l| l.strip_prefix(&format!("{name}{{upstream=\"up\"}} ")));
    line.map(|value| value.parse().unwrap())
}

async fn becomes(weir: &Weir, name: &str, wanted: f64) {
    let end = Instant::now() + harness::PATIENCE;
    while metric(weir, name).await != Some(wanted) {
        assert!(Instant::now() < end, "{name} is not {wanted}:\n{}", weir.metrics().await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_child_and_all_it_started_use_is_told() {
    let server = Server::new();
    server.say("helper", "x");
    let weir = Weir::start("", &server.section("up", "restart_backoff = \"50ms\""));
    weir.ready(&["up"]).await;
    assert_eq!(metric(&weir, "weir_upstream_children").await, Some(1.0));
    becomes(&weir, "weir_upstream_processes", 2.0).await; // the server and its helper
    let resident = metric(&weir, "weir_upstream_resident_memory_bytes").await.unwrap();
    assert!(resident > 4e6 && resident < 500e6, "{resident}");
    let used = metric(&weir, "weir_upstream_cpu_seconds_total").await.unwrap();
    assert!(used > 0.0 && used < 60.0, "{used}");
    assert!(metric(&weir, "weir_upstream_uptime_seconds").await.unwrap() < 60.0);
    assert_eq!(metric(&weir, "weir_upstream_memory_restarts_total").await, Some(0.0));
    assert_eq!(metric(&weir, "weir_upstream_idle").await, None, "it never is");
    let status = weir.status().await;
    let child = &upstream(&status, "up")["child"];
    assert_eq!((&child["children"], &child["processes"]), (&json!(1), &json!(2)), "{status:#}");
    assert!(child["resident_bytes"].as_u64().unwrap() > 4_000_000, "{status:#}");

    // A new life: what the one before it used is not forgotten.
    let pid = text(&call(&weir.url, "up__pid", json!({})).await);
    let process = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    weir.until("again", |s| {
        upstream(s, "up")["state"] == "ready" && upstream(s, "up")["restarts"] == 1
    })
    .await;
    assert!(metric(&weir, "weir_upstream_cpu_seconds_total").await.unwrap() >= used);
    assert_eq!(metric(&weir, "weir_upstream_restarts_total").await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_over_memory_max_is_started_again_and_no_write_is_repeated() {
    let server = Server::new();
    let section = |more: &str| server.section("up", &format!("restart_backoff = \"50ms\"\n{more}"));
    let weir = Weir::start("", &section("memory_max = \"150MiB\""));
    weir.ready(&["up"]).await;
    let first = text(&call(&weir.url, "up__pid", json!({})).await);
    server.say("eat", "300");
    let answer = call(&weir.url, "up__write", json!({})).await;
    assert_eq!(reason(&answer), "memory_exceeded", "{answer}");
    assert_eq!(failure(&answer)["outcome"], "unknown", "{answer}");
    assert!(text(&answer).contains("memory_max of 150.0 MiB"), "{answer}");
    assert_eq!(server.lines("arrivals"), ["x"], "carried once");
    weir.until("again", |s| upstream(s, "up")["state"] == "ready").await;
    let second = text(&call(&weir.url, "up__pid", json!({})).await);
    assert!(first != second && !alive(&first));
    assert_eq!(metric(&weir, "weir_upstream_memory_restarts_total").await, Some(1.0));
    assert_eq!(metric(&weir, "weir_upstream_restarts_total").await, Some(1.0));
    assert!(weir.log().contains("memory_exceeded"), "{}", weir.log());

    // What changes nothing is tried again, and its caller notices nothing.
    server.say("eat", "300");
    let answer = call(&weir.url, "up__peek", json!({})).await;
    assert_ne!(text(&answer), second, "{answer}");
    assert!(!text(&answer).contains("memory"), "{answer}");

    // Without a ceiling it may; a new one holds for a process that runs.
    weir.rewrite("", &section("call_timeout = \"1s\""));
    weir.logged("settings of up").await;
    let third = text(&call(&weir.url, "up__pid", json!({})).await);
    server.say("eat", "300");
    let answer = call(&weir.url, "up__write", json!({})).await;
    assert_eq!(reason(&answer), "deadline_exceeded", "{answer}");
    assert!(alive(&third));
    assert_eq!(metric(&weir, "weir_upstream_memory_restarts_total").await, Some(2.0));
    weir.rewrite("", &section("call_timeout = \"2s\"\nmemory_max = \"150MiB\""));
    weir.until("ended", |_| !alive(&third)).await;
    assert_eq!(metric(&weir, "weir_upstream_memory_restarts_total").await, Some(3.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_never_fits_is_a_crash_loop_with_its_pauses() {
    let server = Server::new();
    // No interpreter fits into that.
    let more = "memory_max = \"1MiB\"\nrestart_backoff = \"1s\"\nrestart_backoff_max = \"30s\"";
    server.say("slow", "3");
    let weir = Weir::start("", &server.section("up", more));
    let status = weir.until("down", |s| upstream(s, "up")["state"] == "down").await;
    assert!(upstream(&status, "up")["why"].as_str().unwrap().contains("memory_max"), "{status:#}");
    assert_eq!(reason(&call(&weir.url, "up__pid", json!({})).await), "upstream_down");
    let status = weir.until("crash loop", |s| upstream(s, "up")["crash_loop"] == true).await;
    // A pause, twice the pause, and four times that, with the jitter half of each.
    assert!(server.starts() <= 4, "{status:#}");
    assert!(get(&format!("{}/readyz", weir.admin)).await.0 == 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_nobody_uses_rests_until_the_next_call() {
    let server = Server::new();
    let section = |more: &str| server.section("up", &format!("refresh = \"300ms\"\n{more}"));
    let weir = Weir::start("", &section("idle_stop = \"1s\""));
    weir.ready(&["up"]).await;
    let first = text(&call(&weir.url, "up__pid", json!({})).await);
    // A call that lasts longer than that is use as well.
    let slow = text(&call(&weir.url, "up__slow", json!({})).await);
    assert_eq!(slow, first);
    rests(&weir).await;
    weir.until("its end", |_| !alive(&first)).await;

    // Nothing but its process is gone: the lists are there and as sure as before, and nobody is
    // woken for it.
    let lists = server.lines("lists").len();
    let listed = modern(&weir.url, None, "tools/list", json!({})).await.answer();
    assert!(tool_names(&weir.url, None).await.contains(&"up__pid".to_owned()));
    assert!(listed["result"]["_meta"]["io.weirkeeper/degraded"].is_null(), "{listed}");
    assert_eq!(metric(&weir, "weir_upstream_up").await, None);
    assert_eq!(metric(&weir, "weir_upstream_idle").await, Some(1.0));
    assert_eq!(metric(&weir, "weir_upstream_processes").await, Some(0.0));
    assert_eq!(get(&format!("{}/readyz", weir.admin)).await.0, 200);
    let status = weir.status().await;
    assert_eq!(upstream(&status, "up")["catalog"]["state"], "live", "{status:#}");
    assert!(upstream(&status, "up")["why"].as_str().unwrap().contains("the next call starts it"));
    // Several times as long as between two refreshes.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!((server.starts(), server.lines("lists").len()), (1, lists), "left in peace");

    // Many calls at once start it once, and all are answered.
    server.say("slow", "0.5");
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..15 {
        let url = weir.url.clone();
        calls.spawn(async move { text(&call(&url, "up__pid", json!({})).await) });
    }
    let pids = calls.join_all().await;
    assert!(pids.iter().all(|pid| *pid == pids[0] && *pid != first), "{pids:?}");
    assert_eq!(server.starts(), 2);
    let status = weir.status().await;
    assert_eq!(upstream(&status, "up")["restarts"], 0, "it did not fail: {status:#}");

    // One that does not come up again says so, to whoever called, and is tried again by itself.
    rests(&weir).await;
    server.say("fail", "x");
    let began = Instant::now();
    let answer = call(&weir.url, "up__pid", json!({})).await;
    assert_eq!(reason(&answer), "upstream_down", "{answer}");
    assert_eq!(failure(&answer)["outcome"], "no_effect", "{answer}");
    assert!(began.elapsed() < Duration::from_secs(30), "not at the end of its deadline");
    std::fs::remove_file(server.path("fail")).unwrap();
    weir.until("ready again", |s| upstream(s, "up")["state"] == "ready").await;

    // Without the setting it is started, and stays.
    rests(&weir).await;
    weir.rewrite("", &section(""));
    weir.ready(&["up"]).await;
    let pid = text(&call(&weir.url, "up__pid", json!({})).await);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(text(&call(&weir.url, "up__pid", json!({})).await), pid);
    // And with it again it rests without a start in between.
    weir.rewrite("", &section("idle_stop = \"500ms\""));
    rests(&weir).await;
    weir.until("its end", |_| !alive(&pid)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resting_child_is_reloaded_and_drained_like_any_other() {
    let server = Server::new();
    let section = |more: &str| server.section("up", &format!("idle_stop = \"500ms\"\n{more}"));
    let mut weir = Weir::start("", &section(""));
    weir.ready(&["up"]).await;
    rests(&weir).await;
    // Another process from now on. Until it is there the resting one's lists are shown.
    server.say("slow", "1");
    weir.rewrite("", &section("env = { NEW = \"x\" }"));
    weir.logged("configuration reloaded").await;
    assert!(tool_names(&weir.url, None).await.contains(&"up__pid".to_owned()));
    weir.logged("the new instance has taken over").await;
    assert!(tool_names(&weir.url, None).await.contains(&"up__pid".to_owned()));
    assert_eq!(server.starts(), 2, "the resting one was left in peace");
    rests(&weir).await;
    let began = Instant::now();
    assert!(weir.stop().success());
    assert!(began.elapsed() < Duration::from_secs(8), "there is nothing to wait for");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_a_resource_of_a_child_keeps_it_up() {
    let server = Server::new();
    let weir = Weir::start("", &server.section("up", "idle_stop = \"500ms\""));
    weir.ready(&["up"]).await;
    rests(&weir).await;
    let wish = json!({"notifications": {"resourceSubscriptions": ["up+file:///a"]}});
    let (headers, body) = modern_request(None, "subscriptions/listen", wish);
    let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let listening = send(&weir.url, &headers, body).await;
    weir.until("subscribed", |_| server.lines("subscribed") == ["file:///a"]).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(upstream(&weir.status().await, "up")["state"], "ready");
    assert_eq!(server.starts(), 2);
    drop(listening);
    rests(&weir).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_children_start_at_once_and_no_more() {
    // How long a start takes. A busy machine may not bring three of them together in time.
    for (max, together, slow) in [(1, 1..=1, "0.2"), (3, 2..=3, "1")] {
        let server = Server::new();
        server.say("slow", slow);
        let names = ["a", "b", "c", "d", "e"];
        let all: String = names.iter().map(|n| server.section(n, "")).collect();
        let weir = Weir::start(&format!("max_starting = {max}"), &all);
        weir.ready(&names).await;
        let (mut now, mut most) = (0, 0);
        for line in server.lines("starts") {
            now += if line.starts_with('+') { 1 } else { -1 };
            most = most.max(now);
        }
        assert!(together.contains(&most), "{most} of {max}: {:?}", server.lines("starts"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hangs_at_its_start_holds_up_nobody_for_long() {
    let (server, stuck) = (Server::new(), Server::new());
    stuck.say("hang", "x");
    let stuck_section =
        |time: &str| stuck.section("stuck", &format!("connect_timeout = \"{time}\""));
    let others = server.section("up", "idle_stop = \"500ms\"") + &server.section("b", "");
    let weir = Weir::start("max_starting = 1", &(stuck_section("2s") + &others));
    weir.ready(&["b"]).await;
    rests(&weir).await;
    // The next start finds what they offered, and shows it although none of them runs yet.
    let weir = weir.again("max_starting = 1", &(stuck_section("50s") + &others), &[]);
    let names = tool_names(&weir.url, None).await;
    assert!(names.contains(&"up__pid".to_owned()) && names.contains(&"b__pid".to_owned()));
    let status = weir.until("its turn", |s| {
        upstream(s, "b")["why"].as_str().is_some_and(|why| why.contains("max_starting"))
            || upstream(s, "up")["why"].as_str().is_some_and(|why| why.contains("max_starting"))
    });
    status.await;
    // More places, without a restart: now they all go.
    weir.rewrite("max_starting = 2", &(stuck_section("50s") + &others));
    weir.ready(&["b"]).await;
    // A resting child that somebody calls does not wait in that line.
    rests(&weir).await;
    weir.rewrite("max_starting = 1", &(stuck_section("50s") + &others));
    let settled = |s: &Value| upstream(s, "stuck")["state"] == "starting";
    weir.until("still stuck", settled).await;
    text(&call(&weir.url, "up__pid", json!({})).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_child_serves_all_teams() {
    let server = Server::new();
    let keys: Vec<_> = (0..2).map(|_| new_key()).collect();
    let digest = |n: usize| ConsumerKey::of(keys[n].expose()).to_text();
    let teams = format!(
        "[consumers.px]\nkey = {:?}\n[consumers.sales]\nkey = {:?}\n",
        digest(0),
        digest(1)
    );
    let weir = Weir::start("", &(server.section("up", "") + &teams));
    weir.ready(&["up"]).await;
    let mut pids = Vec::new();
    for key in &keys {
        let params = json!({"name": "up__pid", "arguments": {}});
        let answer = modern(&weir.url, Some(key.expose()), "tools/call", params.clone()).await;
        pids.push(text(&answer.answer()));
        // Clients of an older revision, who could be asked something, in sessions of their own.
        for id in 1..3 {
            let hello = json!({"jsonrpc": "2.0", "id": id, "method": "initialize", "params": {
                "protocolVersion": "2025-06-18", "capabilities": {"elicitation": {}, "roots": {}},
                "clientInfo": {"name": "t", "version": "1"}}});
            let got = post(&weir.url, &[("x-api-key", key.expose())], hello.to_string()).await;
            let session = got.headers["mcp-session-id"].to_str().unwrap().to_owned();
            let ask = json!({"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": params});
            let headers = [("x-api-key", key.expose()), ("mcp-session-id", session.as_str())];
            pids.push(text(&post(&weir.url, &headers, ask.to_string()).await.answer()));
        }
    }
    assert_eq!(pids.len(), 6);
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    assert_eq!(server.starts(), 1);
    assert_eq!(metric(&weir, "weir_upstream_children").await, Some(1.0));
}
