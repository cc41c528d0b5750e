//! An upstream of 2025-11-25 that refuses a call until a person has visited a page
//! (client/elicitation, "URL elicitation required error").

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{PATIENCE, modern};
use crate::{Old, everything, modern_call, text, weir};

const PAGE: &str = "https://pay.example/confirm?n=1";
const VISITED: &str = "notifications/elicitation/complete";

/// Whether the page was visited, and the sessions that listen for that.
#[derive(Default, Clone)]
struct Office {
    is_visited: Arc<AtomicBool>,
    streams: Arc<Mutex<HashMap<String, mpsc::Sender<String>>>>,
    // In which session the call was made last.
    last: Arc<Mutex<String>>,
}

impl Office {
    /// The visit is done: said in the session whose call wanted it, and only there.
    async fn visited(&self) {
        self.is_visited.store(true, Ordering::SeqCst);
        let params = json!({"elicitationId": "page-1"});
        let said = json!({"jsonrpc": "2.0", "method": VISITED, "params": params}).to_string();
        let session = self.last.lock().unwrap().clone();
        let stream = self.streams.lock().unwrap().get(&session).cloned();
        stream.expect("the session is listened to").send(said).await.unwrap();
    }

    fn is_listened_to(&self) -> bool {
        self.streams.lock().unwrap().contains_key(&*self.last.lock().unwrap())
    }
}

fn wanted() -> Value {
    let page = json!({"mode": "url", "elicitationId": "page-1", "url": PAGE, "message": "Confirm the payment"});
    json!({"code": -32042, "message": "The payment has to be confirmed", "data": {"elicitations": [page]}})
}

async fn upstream() -> (Scripted, Office) {
    let office = Office::default();
    let (inner, sessions) = (office.clone(), AtomicUsize::new(0));
    let up = Scripted::start(&[tool("pay", false)], move |a| {
        let session = a.headers.get("mcp-session-id").cloned().unwrap_or_default();
        match (a.verb.as_str(), a.method()) {
            (_, "initialize") => {
                let n = sessions.fetch_add(1, Ordering::SeqCst);
                let result = json!({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}},
                    "serverInfo": {"name": "pages", "version": "1"}});
                let headers = vec![
                    ("content-type", "application/json".into()),
                    ("mcp-session-id", format!("s-{n}")),
                ];
                Some(Reply::Http(200, headers, a.result(&result)))
            }
            ("GET", _) => {
                let (tx, rx) = mpsc::channel(8);
                inner.streams.lock().unwrap().insert(session, tx);
                Some(Reply::Live(rx))
            }
            (_, "tools/call") => {
                *inner.last.lock().unwrap() = session;
                if inner.is_visited.load(Ordering::SeqCst) {
                    return Some(a.text("paid"));
                }
                let error = json!({"jsonrpc": "2.0", "id": a.message["id"], "error": wanted()});
                Some(Reply::Json(error.to_string()))
            }
            _ => None,
        }
    })
    .await;
    (up, office)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_modern_caller_is_shown_the_page_and_the_call_is_made_again() {
    let (up, office) = upstream().await;
    let weir = weir(&up, "").await;
    let (url, caps) = (weir.url.as_str(), everything());
    let call = || json!({"arguments": {"cents": 1.50}});
    for (action, outcome) in [("decline", None), ("cancel", None), ("accept", Some("paid"))] {
        let before = up.arrived("pay");
        let asked = modern_call(url, None, &caps, "up__pay", call()).await;
        assert_eq!(asked["result"]["resultType"], "input_required", "{asked}");
        let (key, request) =
            asked["result"]["inputRequests"].as_object().unwrap().iter().next().unwrap();
        assert_eq!(request["method"], "elicitation/create");
        // The newest revision has no such ids.
        let shown = json!({"mode": "url", "url": PAGE, "message": "Confirm the payment"});
        assert_eq!(request["params"], shown, "{asked}");
        assert_eq!(up.arrived("pay"), before + 1);
        office.is_visited.store(outcome.is_some(), Ordering::SeqCst);
        let mut again = call();
        again["inputResponses"] = json!({key: {"action": action}});
        again["requestState"] = asked["result"]["requestState"].clone();
        let done = modern_call(url, None, &caps, "up__pay", again).await;
        match outcome {
            Some(said) => assert_eq!(text(&done), said, "{done}"),
            None => {
                let data = &done["error"]["data"];
                assert_eq!(data["reason"], "capability_missing", "{done}");
                assert_eq!(data["outcome"], "no_effect", "the upstream said so: {done}");
            }
        }
        assert_eq!(up.arrived("pay"), before + 1 + usize::from(outcome.is_some()));
    }
    // It is the same call, as it came.
    assert!(up.arrivals().iter().all(|a| a.tool().is_none() || a.body.contains(r#""cents":1.5"#)));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_shown_a_page_is_told_what_is_missing() {
    let (up, _office) = upstream().await;
    let weir = weir(&up, "").await;
    for caps in [json!({}), json!({"elicitation": {"form": {}}})] {
        let meta = json!({"io.modelcontextprotocol/clientCapabilities": caps});
        let params = json!({"name": "up__pay", "_meta": meta});
        let got = modern(&weir.url, None, "tools/call", params).await;
        let error = &got.answer()["error"];
        assert_eq!((got.status, &error["code"]), (400, &json!(-32021)), "{caps}: {}", got.body);
        assert_eq!(error["data"]["requiredCapabilities"], json!({"elicitation": {"url": {}}}));
        assert_eq!(error["message"], "The payment has to be confirmed");
    }
    // Those before 2025-11-25 know neither the code nor pages: the person finds it in the text.
    for (revision, caps) in [
        ("2025-06-18", json!({"elicitation": {}})),
        ("2025-11-25", json!({"elicitation": {"form": {}}})),
        ("2025-03-26", json!({})),
    ] {
        let old = Old::open(&weir.url, None, revision, &caps).await;
        let told = old.ask("tools/call", json!({"name": "up__pay"})).await;
        let message = told["error"]["message"].as_str().unwrap_or_else(|| panic!("{told}"));
        assert_eq!(told["error"]["code"], -32603, "{told}");
        assert!(message.contains(PAGE) && !message.contains("  "), "{message}");
    }
}

/// The GET stream of a session: what is said on it.
fn listen(old: &Old) -> mpsc::Receiver<Value> {
    let (tx, rx) = mpsc::channel(8);
    let request = hyper::Request::get(&old.url)
        .header("mcp-session-id", &old.session)
        .header("accept", "text/event-stream")
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    tokio::spawn(async move {
        let client: Client<_, Empty<bytes::Bytes>> =
            Client::builder(TokioExecutor::new()).build_http();
        let mut body = client.request(request).await.unwrap().into_body();
        let mut text = String::new();
        while let Some(Ok(frame)) = body.frame().await {
            text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
            while let Some((event, rest)) = text.split_once("\n\n") {
                let data = event.lines().find_map(|l| l.strip_prefix("data: ")).unwrap_or_default();
                let message = serde_json::from_str(data);
                text = String::from(rest);
                if let Ok(message) = message {
                    tx.send(message).await.unwrap();
                }
            }
        }
    });
    rx
}

fn pay() -> Value {
    json!({"name": "up__pay", "arguments": {}})
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_that_was_shown_the_page_hears_of_the_visit() {
    let (up, office) = upstream().await;
    let weir = weir(&up, "").await;
    let other = Old::open(&weir.url, None, "2025-11-25", &everything()).await;
    let old = Old::open(&weir.url, None, "2025-11-25", &everything()).await;
    let (mut others, mut own) = (listen(&other), listen(&old));
    let told = old.ask("tools/call", pay()).await;
    assert_eq!(told["error"], wanted(), "as it came");
    weir.until("its session is listened to", |_| office.is_listened_to()).await;
    office.visited().await;
    let heard = tokio::time::timeout(PATIENCE, own.recv()).await.unwrap().unwrap();
    assert_eq!(
        (&heard["method"], &heard["params"]["elicitationId"]),
        (&json!(VISITED), &json!("page-1"))
    );
    assert_eq!(text(&old.ask("tools/call", pay()).await), "paid");
    assert!(others.try_recv().is_err(), "nobody else does");
    // Whose stream was closed meanwhile hears it when it listens again.
    office.is_visited.store(false, Ordering::SeqCst);
    let late = Old::open(&weir.url, None, "2025-11-25", &everything()).await;
    late.ask("tools/call", pay()).await;
    weir.until("its session is listened to", |_| office.is_listened_to()).await;
    office.visited().await;
    let mut stream = listen(&late);
    let heard = tokio::time::timeout(PATIENCE, stream.recv()).await.unwrap().unwrap();
    assert_eq!(heard["method"], VISITED);
    assert!(others.try_recv().is_err() && own.try_recv().is_err(), "nobody else does");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_hears_of_the_visit() {
    let (up, office) = upstream().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("upstreams.toml");
    let state = format!("[gateway]\nstate_dir = {:?}\n", dir.path().join("state"));
    std::fs::write(&path, state + &up.section("up", "")).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_weir"))
        .arg("--config")
        .arg(&path)
        .arg("stdio")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (tx, mut lines) = mpsc::channel::<Value>(64);
    let stdout = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            if tx.blocking_send(serde_json::from_str(&line).unwrap()).is_err() {
                return;
            }
        }
    });
    let mut stdin = child.stdin.take().unwrap();
    let mut ask = |id: u64, method: &str, params: &Value| {
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        writeln!(stdin, "{request}").unwrap();
    };
    let next = async |lines: &mut mpsc::Receiver<Value>, is_it: &dyn Fn(&Value) -> bool| {
        tokio::time::timeout(PATIENCE, async {
            loop {
                let message = lines.recv().await.expect("it goes on");
                if is_it(&message) {
                    return message;
                }
            }
        })
        .await
        .unwrap()
    };
    ask(
        0,
        "initialize",
        &json!({"protocolVersion": "2025-11-25", "capabilities": everything(),
        "clientInfo": {"name": "t", "version": "1"}}),
    );
    next(&mut lines, &|m| m["id"] == 0).await;
    // The first calls may come before the upstream is known.
    for id in 1.. {
        ask(id, "tools/call", &pay());
        let told = next(&mut lines, &|m| m["id"] == id).await;
        if told["error"]["code"] == -32042 {
            break;
        }
        assert!(id < 200, "{told}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let end = std::time::Instant::now() + PATIENCE;
    while !office.is_listened_to() {
        assert!(std::time::Instant::now() < end, "its session is not listened to");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    office.visited().await;
    let heard = next(&mut lines, &|m| m["method"] == VISITED).await;
    assert_eq!(heard["params"]["elicitationId"], "page-1");
    drop(stdin);
    let _ = child.wait();
}
