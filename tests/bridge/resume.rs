//! Streams of old sessions that break, and clients that come back for the rest.

use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{PATIENCE, Weir, send};
use crate::{Old, form};

type Line = Arc<Mutex<Option<(Value, Value, mpsc::Sender<String>)>>>;

/// An upstream whose tool `long` says what is sent into the line.
async fn upstream(line: Line) -> Scripted {
    Scripted::start(&[tool("long", false), tool("soon", false)], move |a| {
        (a.tool()? == "long").then(|| {
            let (tx, rx) = mpsc::channel(64);
            let token = a.message["params"]["_meta"]["progressToken"].clone();
            *line.lock().unwrap() = Some((a.message["id"].clone(), token, tx));
            Reply::Live(rx)
        })
    })
    .await
}

async fn progress(line: &Line, n: u64) {
    let (_, token, tx) = line.lock().unwrap().clone().unwrap();
    let params = json!({"progressToken": token, "progress": n});
    let said = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": params});
    tx.send(said.to_string()).await.unwrap();
}

async fn finish(line: &Line) {
    let (id, _, tx) = line.lock().unwrap().take().unwrap();
    let result = json!({"content": [{"type": "text", "text": "done"}]});
    tx.send(json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string()).await.unwrap();
}

/// The events of a stream: id and message, `null` for none.
struct Stream {
    body: Incoming,
    buffer: String,
}

impl Stream {
    fn of(response: hyper::Response<Incoming>) -> Stream {
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Stream { body: response.into_body(), buffer: String::new() }
    }

    async fn next(&mut self) -> Option<(String, Value)> {
        tokio::time::timeout(PATIENCE, async {
            loop {
                while let Some((event, rest)) = self.buffer.split_once("\n\n") {
                    let event = event.to_owned();
                    self.buffer = String::from(rest);
                    let field = |name: &str| event.lines().find_map(|l| l.strip_prefix(name));
                    if let Some(data) = field("data:") {
                        let message = serde_json::from_str(data.trim()).unwrap_or(Value::Null);
                        return Some((field("id: ").unwrap_or("").to_owned(), message));
                    }
                }
                let frame = self.body.frame().await?.ok()?;
                self.buffer.push_str(std::str::from_utf8(frame.data_ref()?).unwrap());
            }
        })
        .await
        .expect("an event or the end")
    }
}

async fn call(old: &Old, id: u64) -> Stream {
    let body = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call",
        "params": {"name": "up__long", "arguments": {}, "_meta": {"progressToken": "mine"}}});
    let headers = [("mcp-session-id", old.session.as_str())];
    Stream::of(send(&old.url, &headers, body.to_string()).await)
}

async fn come_back(old: &Old, last: &str) -> hyper::Response<Incoming> {
    let request = hyper::Request::get(&old.url)
        .header("accept", "text/event-stream")
        .header("mcp-session-id", &old.session)
        .header("last-event-id", last)
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http();
    client.request(request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_a_call_is_had_by_who_comes_back() {
    let line = Line::default();
    let up = upstream(line.clone()).await;
    let weir = Weir::start("", &up.section("up", ""));
    weir.ready(&["up"]).await;
    for revision in ["2025-11-25", "2025-06-18", "2025-03-26"] {
        let old = Old::open(&weir.url, None, revision, &json!({})).await;
        // Nothing is said for a second: a stream is opened all the same, to come back to.
        let mut stream = call(&old, 7).await;
        let primed = revision == "2025-11-25";
        let mut last = String::new();
        if primed {
            let (id, message) = stream.next().await.unwrap();
            assert_eq!(message, Value::Null, "an id and no message");
            last = id;
        }
        if primed {
            // It breaks before anything was said.
            drop(stream);
            stream = Stream::of(come_back(&old, &last).await);
            assert_eq!(stream.next().await.unwrap().1, Value::Null);
        }
        progress(&line, 1).await;
        let (id, message) = stream.next().await.unwrap();
        assert_eq!(message["params"], json!({"progressToken": "mine", "progress": 1}));
        assert!(!id.is_empty() && id != last, "{id}");
        drop(stream);
        // Said while nobody is there.
        progress(&line, 2).await;
        finish(&line).await;
        let mut rest = Stream::of(come_back(&old, &id).await);
        if primed {
            assert_eq!(rest.next().await.unwrap().1, Value::Null);
        }
        let (second, message) = rest.next().await.unwrap();
        assert_eq!(message["params"]["progress"], 2, "{message}");
        let (_, answer) = rest.next().await.unwrap();
        assert_eq!(
            (&answer["id"], &answer["result"]["content"][0]["text"]),
            (&json!(7), &json!("done"))
        );
        assert!(rest.next().await.is_none(), "the stream ends behind the answer");
        // Again, from the middle: the same.
        let mut again = Stream::of(come_back(&old, &second).await);
        if primed {
            again.next().await.unwrap();
        }
        assert_eq!(again.next().await.unwrap().1, answer);
        // Another session's stream is nobody else's, whatever id is named.
        let other = Old::open(&weir.url, None, revision, &json!({})).await;
        for unknown in [id.as_str(), "77-1", "1-18446744073709551615", "x"] {
            assert_eq!(come_back(&other, unknown).await.status(), 400, "{unknown}");
        }
    }
    assert_eq!(up.arrived("long"), 3, "each call was made once");
    assert_eq!(up.asked("notifications/cancelled"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_waits_for_who_comes_back() {
    let up = crate::asking().await;
    let weir = Weir::start("", &up.section("up", ""));
    weir.ready(&["up"]).await;
    let old = Old::open(&weir.url, None, "2025-11-25", &crate::everything()).await;
    let body = json!({"jsonrpc": "2.0", "id": "c", "method": "tools/call",
        "params": {"name": "up__ask", "arguments": {"q": [form("?")]}}});
    let headers = [("mcp-session-id", old.session.as_str())];
    let mut stream = Stream::of(send(&old.url, &headers, body.to_string()).await);
    let (primed, message) = stream.next().await.unwrap();
    assert!(message.is_null());
    let (_, question) = stream.next().await.unwrap();
    assert_eq!(question["method"], "elicitation/create");
    drop(stream);
    let mut stream = Stream::of(come_back(&old, &primed).await);
    stream.next().await.unwrap();
    assert_eq!(stream.next().await.unwrap().1, question, "the same question, with the same id");
    let answer = json!({"jsonrpc": "2.0", "id": question["id"], "result": {"action": "decline"}});
    assert_eq!(old.post(&answer).await.status, 202);
    let (_, end) = stream.next().await.unwrap();
    assert_eq!(end["id"], "c", "{end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_between_two_streams_are_told_to_who_comes_back() {
    let (one, two) = (Scripted::fine(&["a"]).await, Scripted::fine(&["b"]).await);
    let weir = Weir::start("", &one.section("one", ""));
    weir.ready(&["one"]).await;
    let old = Old::open(&weir.url, None, "2025-11-25", &json!({})).await;
    let mut stream = Stream::of(come_back(&old, "").await);
    let (id, message) = stream.next().await.unwrap();
    assert!(message.is_null() && id.starts_with('g'), "{id}");
    drop(stream);
    weir.rewrite("", &(one.section("one", "") + &two.section("two", "")));
    weir.ready(&["one", "two"]).await;
    let mut stream = Stream::of(come_back(&old, &id).await);
    assert!(stream.next().await.unwrap().1.is_null());
    let (next, changed) = stream.next().await.unwrap();
    assert_eq!(changed["method"], "notifications/tools/list_changed");
    drop(stream);
    // Nothing new: nothing is told.
    let mut stream = Stream::of(come_back(&old, &next).await);
    assert!(stream.next().await.unwrap().1.is_null());
    let more = tokio::time::timeout(std::time::Duration::from_millis(1500), stream.next()).await;
    assert!(more.is_err(), "{more:?}");
}
