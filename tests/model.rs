//! Calls, faults, reloads and crashes in any order, against what must hold whatever happens: one
//! answer for each call, no write twice, no answer to the wrong caller, nothing left behind.
#![allow(clippy::unwrap_used, missing_docs)]

mod harness;

use std::collections::BTreeMap;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use harness::scripted::{Arrival, Reply, Scripted, tool};
use harness::{Weir, free_port, modern_request, post, reason};

/// Repetitions of a read besides the first attempt.
const RETRIES: usize = 2;
/// Most sessions.
const SESSIONS: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Slow,
    /// Closed without a byte.
    Silent,
    /// Closed in the middle.
    Cut,
    Garbled,
    OtherId,
    Status,
    Hang,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    write: bool,
    fault: Fault,
    /// In the session that lives through all of it, or without one.
    session: bool,
}

#[derive(Clone, Debug)]
enum Step {
    /// These at once; what comes next does not wait for them.
    Calls(Vec<Asked>),
    /// All that is under way ends.
    Settle,
    /// Other limits: the upstream is kept.
    Limits(u32),
    /// Other headers: the upstream is made anew.
    Rebuild(u32),
    /// SIGKILL, and a start in the same folder.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fault = prop_oneof![
        6 => Just(Fault::None),
        3 => Just(Fault::Slow),
        1 => Just(Fault::Silent),
        2 => Just(Fault::Cut),
        1 => Just(Fault::Garbled),
        1 => Just(Fault::OtherId),
        1 => Just(Fault::Status),
        1 => Just(Fault::Hang),
    ];
    let asked = (any::<bool>(), fault, any::<bool>()).prop_map(|(write, fault, session)| Asked {
        write,
        fault,
        session,
    });
    let step = prop_oneof![
        8 => proptest::collection::vec(asked, 1..8).prop_map(Step::Calls),
        2 => Just(Step::Settle),
        2 => (1..100u32).prop_map(Step::Limits),
        2 => (1..100u32).prop_map(Step::Rebuild),
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..14)
}

/// An upstream that does to each call what the call says, and keeps what arrived.
async fn upstream() -> Scripted {
    Scripted::start(&[tool("read", true), tool("write", false)], |a: &Arrival| {
        a.tool()?;
        let said = &a.message["params"]["arguments"];
        let half = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{\"jso";
        let number = said["number"].to_string();
        Some(match said["fault"].as_str()? {
            "Slow" => Reply::After(Duration::from_millis(60), Box::new(a.text(&number))),
            "Silent" => Reply::Cut(vec![]),
            "Cut" => Reply::Cut(half.to_vec()),
            "Garbled" => Reply::Json("<html>".into()),
            "OtherId" => {
                Reply::Json(json!({"jsonrpc": "2.0", "id": 999_999, "result": {}}).to_string())
            }
            "Status" => Reply::Http(500, vec![], String::new()),
            "Hang" => Reply::Hang(vec![]),
            _ => a.text(&number),
        })
    })
    .await
}

struct Call {
    number: usize,
    asked: Asked,
    /// The gateway was killed while it ran.
    crashed: bool,
    answer: JoinHandle<Result<Value, String>>,
}

/// The one answer, or why there was none.
async fn ask(
    url: String,
    headers: Vec<(&'static str, String)>,
    body: String,
) -> Result<Value, String> {
    let mut request = Request::post(url)
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<bytes::Bytes>>();
    let response = client.request(request.body(Full::from(body)).unwrap()).await;
    let response = response.map_err(|e| format!("no response: {e}"))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|e| format!("half: {e}"))?;
    let text = String::from_utf8(body.to_bytes().to_vec()).unwrap();
    let messages: Vec<Value> = if text.contains("data: ") {
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter_map(|data| serde_json::from_str(data).ok()).collect()
    } else {
        vec![serde_json::from_str(&text).map_err(|e| format!("{status} {text:?}: {e}"))?]
    };
    let answers: Vec<_> = messages.into_iter().filter(|m| m.get("method").is_none()).collect();
    match <[Value; 1]>::try_from(answers) {
        Ok([answer]) => Ok(answer),
        Err(answers) => Err(format!("{} answers: {answers:?}", answers.len())),
    }
}

struct World {
    up: Scripted,
    weir: Option<Weir>,
    gateway: String,
    session: String,
    calls: Vec<Call>,
    settings: (u32, u32),
}

fn hello() -> String {
    let params = json!({"protocolVersion": "2025-06-18", "capabilities": {},
        "clientInfo": {"name": "model", "version": "1"}});
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}).to_string()
}

impl World {
    async fn new() -> World {
        let up = upstream().await;
        let gateway = format!("listen = \"127.0.0.1:{}\"\nmax_sessions = {SESSIONS}", free_port());
        let mut world = World {
            up,
            weir: None,
            gateway,
            session: String::new(),
            calls: Vec::new(),
            settings: (50, 0),
        };
        let weir = Weir::start(&world.gateway, &world.upstreams());
        weir.ready(&["up"]).await;
        let got = post(&weir.url, &[], hello()).await;
        got.headers["mcp-session-id"].to_str().unwrap().clone_into(&mut world.session);
        world.weir = Some(weir);
        world
    }

    fn upstreams(&self) -> String {
        let (limit, version) = self.settings;
        self.up.section(
            "up",
            &format!(
                "call_timeout = \"1s\"\nconcurrency = {{ max = {limit} }}\n\
                 headers = {{ X-Version = \"{version}\" }}\nbreaker = {{ enabled = false }}\n\
                 retry = {{ attempts = {RETRIES}, backoff = \"5ms\", budget = 1.0 }}"
            ),
        )
    }

    fn weir(&self) -> &Weir {
        self.weir.as_ref().unwrap()
    }

    fn call(&mut self, asked: Asked) {
        let number = self.calls.len() + 1;
        let name = if asked.write { "up__write" } else { "up__read" };
        let fault = format!("{:?}", asked.fault);
        let params = json!({"name": name, "arguments": {"number": number, "fault": fault}});
        let (headers, body) = if asked.session {
            let message =
                json!({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params});
            (vec![("mcp-session-id", self.session.clone())], message.to_string())
        } else {
            let (headers, body) = modern_request(None, "tools/call", params);
            let mut message: Value = serde_json::from_str(&body).unwrap();
            message["id"] = number.into();
            (headers, message.to_string())
        };
        let answer = tokio::spawn(ask(self.weir().url.clone(), headers, body));
        self.calls.push(Call { number, asked, crashed: false, answer });
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Calls(calls) => {
                for asked in calls {
                    self.call(*asked);
                }
                // Some of them are under way when the next thing happens, some are not.
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
            Step::Settle => {
                while self.calls.iter().any(|call| !call.answer.is_finished()) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            Step::Limits(limit) => {
                self.settings.0 = 20 + limit;
                self.weir().rewrite(&self.gateway, &self.upstreams());
            }
            Step::Rebuild(version) => {
                self.settings.1 = *version;
                self.weir().rewrite(&self.gateway, &self.upstreams());
            }
            Step::Crash => {
                for call in self.calls.iter_mut().filter(|call| !call.answer.is_finished()) {
                    call.crashed = true;
                }
                let weir = self.weir.take().unwrap();
                self.weir = Some(weir.again(&self.gateway, &self.upstreams(), &[]));
            }
        }
    }

    /// What must hold at the end.
    async fn judge(&mut self) -> Result<(), String> {
        let calls = std::mem::take(&mut self.calls);
        let mut answers = Vec::new();
        for Call { number, asked, crashed, answer } in calls {
            let in_time = tokio::time::timeout(harness::PATIENCE, answer).await;
            let answer = in_time.map_err(|_| format!("{number} {asked:?} never ended"))?.unwrap();
            answers.push((number, asked, crashed, answer));
        }
        let mut arrived: BTreeMap<u64, usize> = BTreeMap::new();
        for a in self.up.arrivals().iter().filter(|a| a.tool().is_some()) {
            let number = a.message["params"]["arguments"]["number"].as_u64().unwrap();
            *arrived.entry(number).or_default() += 1;
        }
        for (number, asked, crashed, answer) in answers {
            let came = arrived.get(&(number as u64)).copied().unwrap_or(0);
            let what = format!("{number} {asked:?}, arrived {came} times, crashed: {crashed}");
            let most = if asked.write { 1 } else { 1 + RETRIES };
            if came > most {
                return Err(format!("{what}: too often"));
            }
            let answer = match answer {
                Ok(answer) => answer,
                Err(_) if crashed => continue,
                Err(why) => return Err(format!("{what}: {why}")),
            };
            if answer["id"] != json!(number) {
                return Err(format!("{what}: another's answer {answer}"));
            }
            if answer["result"]["content"][0]["text"] == json!(number.to_string()) {
                if came == 0 {
                    return Err(format!("{what}: an answer from nowhere"));
                }
                continue;
            }
            let reason = reason(&answer);
            let outcome = &answer["result"]["_meta"]["io.weirkeeper/failure"]["outcome"];
            if reason.is_empty() {
                return Err(format!("{what}: neither its answer nor a reason: {answer}"));
            }
            if matches!(asked.fault, Fault::None | Fault::Slow) && !crashed {
                return Err(format!("{what}: nothing was wrong with it: {answer}"));
            }
            // What has arrived may have been done.
            if asked.write && came > 0 && outcome != "unknown" {
                return Err(format!("{what}: its outcome is not known: {answer}"));
            }
            if asked.write && came == 0 && !crashed && outcome != "no_effect" {
                return Err(format!("{what}: it never left: {answer}"));
            }
        }
        // More sessions than may be.
        for _ in 0..=SESSIONS {
            post(&self.weir().url, &[], hello()).await;
        }
        let status = self.weir().status().await;
        if status["calls_in_flight"] != 0 || status["sessions"] != SESSIONS {
            return Err(format!("left behind: {status:#}"));
        }
        Ok(())
    }
}

#[test]
fn whatever_happens_each_call_has_one_end_and_no_write_is_made_twice() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // Each case starts a gateway of its own, or several.
    let cases = std::env::var("MODEL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let config =
        Config { cases, max_shrink_iters: 24, failure_persistence: None, ..Config::default() };
    let ran = TestRunner::new(config).run(&steps(), |steps| {
        runtime.block_on(async {
            let mut world = World::new().await;
            for step in &steps {
                world.step(step).await;
            }
            let judged = world.judge().await;
            judged.map_err(|why| TestCaseError::fail(format!("{why}\n{}", world.weir().log())))
        })
    });
    if let Err(failed) = ran {
        panic!("{failed}");
    }
}
