//! Many reloads under full load: no call fails, and nothing is left behind of what was replaced.
//!
//! `WEIR_RELOADS=1000 cargo test --test reloads -- --nocapture` does a thousand and prints what it
//! saw; by default there are a hundred.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod harness;

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use harness::scripted::Scripted;
use harness::{PATIENCE, PID_SERVER, Weir, modern_request, upstream};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

/// Callers at once.
const CALLERS: usize = 6;
/// Reloads before the first look: by then everything has been allocated once.
const WARM_UP: u64 = 10;
/// What may be open or under way at one look and not at another: connections in pools, a scrape.
const SLACK: u64 = 24;
/// How much memory may move between two looks: freed pages go back when the allocator likes.
const MEMORY_SLACK: u64 = 12 << 20;

const GATEWAY: &str = "builtin = false\ndrain_timeout = \"5s\"";
// A reload is told in the log; calls are not, or the log would be the larger part of the work.
const LOG: &str = "[log]\nlevel = \"warn,weirkeeper::control=info\"\n";

/// The file of a round: each time something else is new, gone, made anew or only set.
fn file(round: u64, script: &str, one: &Scripted, two: &Scripted) -> String {
    let mut text = String::from(LOG);
    // Settings of one that is kept; a credential of it that is rotated makes it anew.
    let (timeout, key) = (50 + round % 2, round / 5);
    text += &one.section(
        "one",
        &format!("call_timeout = \"{timeout}s\"\nbearer = \"rotated-key-number-{key}\""),
    );
    // A process that is made anew in each round.
    let _ = write!(
        text,
        "[upstreams.child]\ncommand = \"python3\"\nargs = [\"-u\", {script:?}]\nenv = {{ ROUND = \"{round}\" }}\n"
    );
    // One that stays as it is.
    let _ = write!(text, "[upstreams.still]\ncommand = \"python3\"\nargs = [\"-u\", {script:?}]\n");
    // One that comes and goes, and one that never starts.
    if round.is_multiple_of(2) {
        text += &two.section("two", "");
    }
    if round % 4 == 1 {
        text += "[upstreams.never]\ncommand = \"/nonexistent/program\"\n";
    }
    // A view whose patterns change; and what shows in `/status` that it is this file that is in
    // force, for a counter of reloads would also count those that found nothing changed.
    let mark = mark_of(round);
    text + &format!("[views.v]\nallow = [\"*{}*\"]\n", round % 3)
        + &one.section(&mark, "enabled = false")
}

fn mark_of(round: u64) -> String {
    format!("round{round}")
}

async fn is_in_force(weir: &Weir, round: u64) -> bool {
    !upstream(&weir.status().await, &mark_of(round)).is_null()
}

type Pooled = Client<HttpConnector, Full<Bytes>>;

async fn ask(client: &Pooled, url: &str, method: &str, params: Value) -> Result<Value, String> {
    let (headers, body) = modern_request(None, method, params);
    let mut request = Request::post(url)
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream");
    for (key, value) in headers {
        request = request.header(key, value);
    }
    let request = request.body(Full::new(Bytes::from(body))).unwrap();
    let response = client.request(request).await.map_err(|e| format!("{e:?}"))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|e| format!("{e:?}"))?.to_bytes();
    let answer: Value =
        serde_json::from_slice(&body).map_err(|e| format!("{status}: {e}: {body:?}"))?;
    let fine = answer["result"].is_object() && answer["result"]["isError"] != true;
    if fine { Ok(answer) } else { Err(format!("{method}: {answer}")) }
}

/// Call and list until told to stop; how often, and the first failure.
async fn caller(url: String, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) -> Result<(), String> {
    let client: Pooled = Client::builder(TokioExecutor::new()).build_http();
    while !stop.load(Ordering::Relaxed) {
        for tool in ["one__ok", "child__pid", "still__pid"] {
            ask(&client, &url, "tools/call", json!({"name": tool, "arguments": {}})).await?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        let list = ask(&client, &url, "tools/list", json!({})).await?;
        let names = list["result"]["tools"].as_array().unwrap().len();
        if names < 3 {
            return Err(format!("the list lacks something: {list}"));
        }
    }
    Ok(())
}

/// What the gateway holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    memory: u64,
    files: u64,
    tasks: u64,
    processes: u64,
}

fn children(of: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        // pid (name) state parent …; the name can hold anything but its last `)`.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
        behind.split_whitespace().nth(1).and_then(|p| p.parse::<u32>().ok()) == Some(of)
    })
    .collect()
}

fn descendants(of: u32) -> u64 {
    children(of).into_iter().map(|child| 1 + descendants(child)).sum()
}

async fn held(weir: &Weir) -> Held {
    let metrics = weir.metrics().await;
    let of = |name: &str| {
        let line = metrics.lines().find(|l| l.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64
    };
    Held {
        memory: of("weir_process_resident_memory_bytes "),
        files: of("weir_process_open_fds "),
        tasks: of("weir_process_tasks "),
        processes: descendants(weir.pid()),
    }
}

fn hangup(weir: &Weir) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(weir.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
}

/// The same rest for each look: nothing on its way, nothing draining.
async fn at_rest(weir: &Weir) -> Held {
    weir.until("no successor is on its way", |s| {
        s["upstreams"].as_array().unwrap().iter().all(|u| u["successor"].is_null())
            && ["one", "child", "still"].iter().all(|name| upstream(s, name)["state"] == "ready")
    })
    .await;
    let end = Instant::now() + PATIENCE;
    // A shim and its server for each of the two children.
    let mut now = held(weir).await;
    while now.processes != 4 && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(100)).await;
        now = held(weir).await;
    }
    assert_eq!(now.processes, 4, "processes are left behind: {now:?}\n{}", weir.log());
    now
}

#[tokio::test(flavor = "multi_thread")]
async fn many_reloads_under_load_fail_no_call_and_leave_nothing_behind() {
    let rounds: u64 = std::env::var("WEIR_RELOADS").map_or(100, |n| n.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("server.py");
    std::fs::write(&script, PID_SERVER).unwrap();
    let script = script.to_str().unwrap();
    let (one, two) = (Scripted::fine(&["ok"]).await, Scripted::fine(&["extra"]).await);
    let weir = Weir::start(GATEWAY, &file(0, script, &one, &two));
    weir.ready(&["one", "child", "still"]).await;
    let steady = upstream(&weir.status().await, "still")["since"].clone();

    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| tokio::spawn(caller(weir.url.clone(), stop.clone(), done.clone())))
        .collect();
    let mut first = None;
    let mut looks = Vec::new();
    for round in 1..=rounds {
        weir.rewrite(GATEWAY, &file(round, script, &one, &two));
        hangup(&weir);
        let end = Instant::now() + PATIENCE;
        while !is_in_force(&weir, round).await {
            assert!(Instant::now() < end, "round {round} is not applied:\n{}", weir.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if let Some(failed) = callers.iter().position(tokio::task::JoinHandle::is_finished) {
            stop.store(true, Ordering::Relaxed);
            let why = callers.into_iter().nth(failed).unwrap().await.unwrap();
            panic!("in round {round} a call failed: {why:?}\n{}", weir.log());
        }
        // Mostly the next reload comes while the last one's successors are still starting.
        if round % 3 == 0 {
            weir.until("taken over", |s| upstream(s, "child")["successor"].is_null()).await;
        }
        if round == WARM_UP.min(rounds) || round.is_multiple_of((rounds / 5).max(1)) {
            let now = at_rest(&weir).await;
            eprintln!("{round} reloads, {} calls: {now:?}", done.load(Ordering::Relaxed));
            looks.push(now);
            first = first.or(Some(now));
        }
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        assert_eq!(caller.await.unwrap(), Ok(()), "{}", weir.log());
    }
    let calls = done.load(Ordering::Relaxed);
    assert!(calls > rounds, "there was load: {calls}");
    let last = at_rest(&weir).await;
    let first = first.unwrap();
    eprintln!("{rounds} reloads, {calls} calls; first {first:?}, last {last:?}");
    assert!(last.files <= first.files + SLACK, "file descriptors: {looks:?} {last:?}");
    assert!(last.tasks <= first.tasks + SLACK, "tasks: {looks:?} {last:?}");
    assert!(last.memory <= first.memory + MEMORY_SLACK, "memory: {looks:?} {last:?}");
    let status = weir.status().await;
    assert_eq!(upstream(&status, "still")["since"], steady, "it was never touched");
    assert_eq!(status["config"]["troubles"], json!([]), "{status:#}");
    assert!(!weir.log().contains("panicked"), "{}", weir.log());
}
