//! Changes of resources, of which each replica tells.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{PATIENCE, modern_request, send};
use crate::over;

type Line = Arc<Mutex<Option<mpsc::Sender<String>>>>;

/// A replica with resources. What is sent into the line goes out on its stream of changes.
async fn telling(line: Line) -> Scripted {
    let capabilities = json!({"resources": {"subscribe": true}, "tools": {}});
    Scripted::start(&[tool("fine", false)], move |a| {
        let result = match (a.verb.as_str(), a.method()) {
            ("GET", _) => {
                let (tx, rx) = mpsc::channel(16);
                *line.lock().unwrap() = Some(tx);
                return Some(Reply::Live(rx));
            }
            (_, "initialize") => json!({"protocolVersion": "2025-11-25",
                "capabilities": capabilities, "serverInfo": {"name": "r", "version": "1"}}),
            (_, "resources/list") => json!({"resources": [{"uri": "file:///a", "name": "a"},
                {"uri": "file:///end", "name": "end"}]}),
            (_, "resources/templates/list") => json!({"resourceTemplates": []}),
            (_, "resources/subscribe") => json!({}),
            _ => return None,
        };
        Some(Reply::Json(a.result(&result)))
    })
    .await
}

async fn tell(line: &Line, uri: &str) {
    let changed = json!({"jsonrpc": "2.0", "method": "notifications/resources/updated",
        "params": {"uri": uri}});
    let tx = line.lock().unwrap().clone().unwrap();
    tx.send(changed.to_string()).await.unwrap();
}

/// The URI of the next change that is told on this stream.
async fn next(stream: &mut Incoming, buffer: &mut String) -> String {
    loop {
        while let Some((event, rest)) = buffer.split_once("\n\n") {
            let data = event.lines().find_map(|l| l.strip_prefix("data: ")).unwrap_or_default();
            let message: Value = serde_json::from_str(data).unwrap_or_default();
            *buffer = String::from(rest);
            if message["method"] == "notifications/resources/updated" {
                return message["params"]["uri"].as_str().unwrap().to_owned();
            }
        }
        let frame = tokio::time::timeout(PATIENCE, stream.frame()).await.unwrap().unwrap().unwrap();
        buffer.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_both_tell_is_told_once() {
    let (line1, line2) = (Line::default(), Line::default());
    let (a, b) = (telling(line1.clone()).await, telling(line2.clone()).await);
    let weir = over(&[&a.url, &b.url], "").await;
    let wish = json!({"notifications":
        {"resourceSubscriptions": ["up+file:///a", "up+file:///end"]}});
    let (headers, body) = modern_request(None, "subscriptions/listen", wish);
    let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let mut stream = send(&weir.url, &headers, body).await.into_body();
    let mut buffer = String::new();
    // Each is asked to tell, since a replica may know only of its own changes.
    weir.until("both are subscribed and listened to", |_| {
        [(&a, &line1), (&b, &line2)].iter().all(|(up, line)| {
            up.asked("resources/subscribe") == 2 && line.lock().unwrap().is_some()
        })
    })
    .await;
    // A machine that is slow enough brings one of the two late, and then it is told by itself.
    for round in 0.. {
        tell(&line1, "file:///a").await;
        tell(&line2, "file:///a").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        tell(&line1, "file:///end").await;
        let mut told = Vec::new();
        while told.last().is_none_or(|uri| uri != "up+file:///end") {
            told.push(next(&mut stream, &mut buffer).await);
        }
        if told == ["up+file:///a", "up+file:///end"] {
            break;
        }
        assert!(round < 20, "{told:?}");
    }
}
