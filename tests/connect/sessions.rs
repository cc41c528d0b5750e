//! Sessions of old hosts at an endpoint that does as the test says.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::harness::scripted::{Arrival, Reply, Scripted, tool};
use crate::{Host, until};

/// The answer to a handshake, with this session.
pub fn welcome(a: &Arrival, session: &str) -> Reply {
    let result = json!({"protocolVersion": a.message["params"]["protocolVersion"],
        "capabilities": {"tools": {"listChanged": true}, "prompts": {}, "logging": {}, "resources": {"subscribe": true}},
        "serverInfo": {"name": "scripted", "version": "1"}});
    let headers =
        vec![("content-type", "application/json".into()), ("mcp-session-id", session.into())];
    Reply::Http(200, headers, a.result(&result))
}

fn gone() -> Reply {
    Reply::Http(404, vec![], String::new())
}

/// A stream of events with these bytes, and its end.
fn events(bytes: impl Into<String>) -> Reply {
    Reply::Http(200, vec![("content-type", "text/event-stream".into())], bytes.into())
}

fn header<'a>(a: &'a Arrival, name: &str) -> Option<&'a str> {
    a.headers.get(name).map(String::as_str)
}

/// The session stream: what is sent into the channel. One at a time.
type Stream = Arc<Mutex<Option<mpsc::Sender<String>>>>;

fn live(stream: &Stream) -> Reply {
    let (tx, rx) = mpsc::channel(16);
    *stream.lock().unwrap() = Some(tx);
    Reply::Live(rx)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_gone_is_made_anew_without_the_host() {
    // The endpoint forgets its session after the first call.
    let sessions = Arc::new(AtomicUsize::new(0));
    let now = sessions.clone();
    let up = Scripted::start(&[tool("pay", false)], move |a| {
        let current = format!("s-{}", now.load(Ordering::SeqCst));
        if a.method() == "initialize" {
            let n = now.fetch_add(1, Ordering::SeqCst) + 1;
            return Some(welcome(a, &format!("s-{n}")));
        }
        if header(a, "mcp-session-id") != Some(&current) {
            return Some(gone());
        }
        match a.method() {
            "logging/setLevel" | "resources/subscribe" => Some(Reply::Json(a.result(&json!({})))),
            _ => None,
        }
    })
    .await;
    let mut host = Host::start(&up.url);
    host.hello("2025-06-18").await;
    host.ask(1, "logging/setLevel", json!({"level": "debug"})).await;
    host.ask(2, "resources/subscribe", json!({"uri": "a:1"})).await;
    host.ask(3, "resources/subscribe", json!({"uri": "a:2"})).await;
    host.ask(4, "resources/unsubscribe", json!({"uri": "a:9"})).await;
    let before = up.arrivals().len();
    // As if the endpoint had been started again and counted its sessions on.
    sessions.fetch_add(10, Ordering::SeqCst);
    let call = json!({"name": "pay", "arguments": {}});
    let answer = host.ask(5, "tools/call", call).await;
    assert_eq!(answer["result"]["content"][0]["text"], "fine", "{answer}");
    host.told("notifications/tools/list_changed").await;
    let changed = host.told("notifications/resources/updated").await;
    assert_eq!(changed["params"]["uri"], "a:1");
    assert!(host.aside().iter().all(|l| !l.contains("protocolVersion") && !l.contains("prompts")));
    let then: Vec<_> = up.arrivals().split_off(before);
    let posts = then.iter().filter(|a| a.verb == "POST");
    let told: Vec<_> = posts
        .map(|a| {
            let session = header(a, "mcp-session-id").unwrap_or("-");
            let what = a.message["params"]["uri"].as_str();
            let what = what.or(a.message["params"]["level"].as_str()).unwrap_or("");
            format!("{session} {} {what}", a.method()).trim_end().to_owned()
        })
        .collect();
    insta::assert_snapshot!(told.join("\n"), @r"
    s-1 tools/call
    - initialize
    s-12 notifications/initialized
    s-12 logging/setLevel debug
    s-12 resources/subscribe a:1
    s-12 resources/subscribe a:2
    s-12 tools/call
    ");
    // The host's own words, and every request with the revision that was agreed on.
    let hellos: Vec<_> = up.arrivals().into_iter().filter(|a| a.method() == "initialize").collect();
    assert_eq!(hellos[0].message["params"], hellos[1].message["params"]);
    for a in up.arrivals() {
        let expected = (a.method() != "initialize").then_some("2025-06-18");
        assert_eq!(header(&a, "mcp-protocol-version"), expected, "{a:?}");
        assert_eq!(header(&a, "mcp-method"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_handshake_of_the_host_ends_the_first_session() {
    let sessions = AtomicUsize::new(0);
    let up = Scripted::start(&[tool("pay", false)], move |a| {
        let n = || sessions.fetch_add(1, Ordering::SeqCst) + 1;
        (a.method() == "initialize").then(|| welcome(a, &format!("s-{}", n())))
    })
    .await;
    let deleted = || -> Vec<_> {
        let all = up.arrivals().into_iter().filter(|a| a.verb == "DELETE");
        all.map(|a| header(&a, "mcp-session-id").unwrap().to_owned()).collect()
    };
    let mut host = Host::start(&up.url);
    host.hello("2025-06-18").await;
    host.hello("2025-06-18").await;
    until("the first is ended", || deleted() == ["s-1"]).await;
    let answer = host.ask(1, "tools/call", json!({"name": "pay", "arguments": {}})).await;
    assert_eq!(answer["result"]["content"][0]["text"], "fine", "{answer}");
    host.hang_up();
    assert_eq!(host.ended().await, Some(0));
    assert_eq!(deleted(), ["s-1", "s-2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_not_repeated_for_ever_where_no_session_holds() {
    let up = Scripted::start(&[tool("pay", false)], |a| {
        if a.method() == "initialize" {
            return Some(welcome(a, "s"));
        }
        a.tool().map(|_| gone())
    })
    .await;
    let mut host = Host::start(&up.url);
    host.hello("2025-06-18").await;
    let answer = host.ask(1, "tools/call", json!({"name": "pay", "arguments": {}})).await;
    assert_eq!(answer["error"]["data"]["outcome"], "no_effect", "{answer}");
    assert_eq!((up.arrived("pay"), up.asked("initialize")), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_answer_is_fetched_from_where_it_ended() {
    let up = Scripted::start(&[tool("pay", false)], move |a| {
        let progress = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":1}}"#;
        match (a.verb.as_str(), header(a, "last-event-id")) {
            ("POST", _) if a.method() == "initialize" => Some(welcome(a, "s")),
            ("POST", _) if a.tool().is_some() => {
                let id = &a.message["id"];
                // The second stream gives the rest; its event says whose it is.
                Some(events(format!("id: {id}/1\nretry: 60\ndata: {progress}\n\n")))
            }
            ("GET", Some(last)) => {
                let (id, n) = last.split_once('/').unwrap();
                Some(if n == "1" {
                    events(format!("id: {id}/2\ndata: {}\n\n", progress.replace(r#""progress":1"#, r#""progress":2"#)))
                } else {
                    events(format!(r#"data: {{"jsonrpc":"2.0","id":{id},"result":{{"content":[]}}}}"#) + "\n\n")
                })
            }
            _ => None,
        }
    })
    .await;
    let mut host = Host::start(&up.url);
    host.hello("2025-11-25").await;
    let call = json!({"name": "pay", "arguments": {}, "_meta": {"progressToken": 1}});
    let answer = host.ask("x", "tools/call", call).await;
    assert_eq!(answer["result"], json!({"content": []}), "{answer}");
    let told: Vec<Value> =
        [host.told("notifications/progress").await, host.told("notifications/progress").await]
            .iter()
            .map(|m| m["params"]["progress"].clone())
            .collect();
    assert_eq!(told, [1, 2]);
    assert_eq!(up.arrived("pay"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_reach_the_host_and_its_answers_the_endpoint() {
    let stream = Stream::default();
    let (get, question) = (
        stream.clone(),
        r#"{"jsonrpc":"2.0","id":"q1","method":"elicitation/create","params":{"message":"sure?"}}"#,
    );
    let call: Stream = Arc::default();
    let post = call.clone();
    let up = Scripted::start(&[tool("pay", false)], move |a| match a.verb.as_str() {
        "GET" => Some(live(&get)),
        _ if a.method() == "initialize" => Some(welcome(a, "s")),
        _ if a.tool().is_some() => {
            let reply = live(&post);
            let _ = post.lock().unwrap().as_ref().unwrap().try_send(question.into());
            Some(reply)
        }
        _ => None,
    })
    .await;
    let mut host = Host::start(&up.url);
    host.hello("2025-11-25").await;
    until("the stream is open", || stream.lock().unwrap().is_some()).await;
    // On the session's stream, outside of any call.
    let ping = r#"{"jsonrpc":"2.0","id":7,"method":"roots/list"}"#;
    let open = stream.lock().unwrap().clone().unwrap();
    open.send(ping.into()).await.unwrap();
    let asked = host.told("roots/list").await;
    host.send(json!({"jsonrpc": "2.0", "id": asked["id"], "result": {"roots": []}})).await;
    let answered = |id: Value| {
        let up = &up;
        move || up.arrivals().iter().any(|a| a.message["id"] == id && a.method().is_empty())
    };
    until("the roots arrive", answered(json!(7))).await;
    // On a call's stream, which then ends without an answer: what was asked on it is over.
    let params = json!({"name": "pay", "arguments": {}});
    host.send(json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})).await;
    let stale = host.told("elicitation/create").await["id"].clone();
    *call.lock().unwrap() = None;
    assert_eq!(host.answer(json!(1)).await["error"]["data"]["outcome"], "unknown");
    let withdrawn = host.told("notifications/cancelled").await;
    assert_eq!(withdrawn["params"]["requestId"], stale);
    // The next one has the same id there. The late answer to the first is not for it.
    host.send(json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params})).await;
    let fresh = host.told("elicitation/create").await["id"].clone();
    assert_ne!(fresh, stale);
    for (id, action) in [(&stale, "accept"), (&fresh, "decline")] {
        host.send(json!({"jsonrpc": "2.0", "id": id, "result": {"action": action}})).await;
    }
    until("the answer arrives", answered(json!("q1"))).await;
    let answers: Vec<_> = up.arrivals().into_iter().filter(|a| a.message["id"] == "q1").collect();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].message["result"]["action"], "decline");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_of_a_session_is_kept_open() {
    let gets = Arc::new(AtomicUsize::new(0));
    let count = gets.clone();
    let up = Scripted::start(&[], move |a| {
        if a.method() == "initialize" {
            return Some(welcome(a, "s"));
        }
        (a.verb == "GET").then(|| {
            let n = count.fetch_add(1, Ordering::SeqCst) + 1;
            let note = format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{{"data":{n}}}}}"#
            );
            match n {
                // Polled, then not to be resumed, then away, then there.
                1 => events(format!("id: e1\nretry: 10\ndata: {note}\n\n")),
                2 => Reply::Http(400, vec![], String::new()),
                3 => Reply::Http(502, vec![], String::new()),
                _ => Reply::Http(
                    200,
                    vec![("content-type", "text/event-stream".into())],
                    format!("retry: 3600000\ndata: {note}\n\n"),
                ),
            }
        })
    })
    .await;
    let mut host = Host::start(&up.url);
    host.hello("2025-11-25").await;
    for n in [1, 4] {
        assert_eq!(host.told("notifications/message").await["params"]["data"], n);
    }
    let gets: Vec<_> = up.arrivals().into_iter().filter(|a| a.verb == "GET").collect();
    let last: Vec<_> = gets.iter().map(|a| header(a, "last-event-id").unwrap_or("-")).collect();
    assert_eq!(last, ["-", "e1", "-", "-"]);
    assert!(gets.iter().all(|a| header(a, "mcp-session-id") == Some("s")));
}
