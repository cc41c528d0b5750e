//! What a caller is told, and what passes untouched.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{PATIENCE, Weir, call, modern_request, post, reason, send, upstream};
use crate::{child, failure, text};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_and_costs_nobody_else() {
    let huge = Arc::new("x".repeat(3 << 20));
    let body = huge.clone();
    let up = Scripted::start(&[tool("json", false), tool("event", false), tool("endless", false), tool("fine", false)], move |a| {
        Some(match a.tool()? {
            "json" => a.text(&body),
            "event" => Reply::events(&[a.result(&json!({"content": [{"type": "text", "text": *body}]}))]),
            "endless" => {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n";
                Reply::Hang(format!("{head}{{\"x\":\"{body}").into_bytes())
            }
            _ => return None,
        })
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let line =
        child(&dir, "line", "def on_call(m): text(m, 'x' * (3 << 20))", "max_message = \"1MiB\"");
    let weir = Weir::start("", &(up.section("up", "max_message = \"1MiB\"") + &line));
    weir.ready(&["up", "line"]).await;
    for name in ["up__json", "up__event", "up__endless", "line__act"] {
        let answer = call(&weir.url, name, json!({})).await;
        assert_eq!(reason(&answer), "too_large", "{name}: {answer}");
        assert_eq!(failure(&answer)["outcome"], "unknown", "{name}");
    }
    // The pipe is whole again behind the long line, in the same process.
    assert_eq!(text(&call(&weir.url, "line__fine", json!({})).await), "fine");
    assert_eq!(text(&call(&weir.url, "up__fine", json!({})).await), "fine");
    assert_eq!(upstream(&weir.status().await, "line")["restarts"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_wait_any_more_cancels_upstream() {
    let up = Scripted::start(&[tool("slow", false)], |a| {
        a.tool()?;
        Some(Reply::Hang(vec![]))
    })
    .await;
    let weir = Weir::start("", &up.section("up", "call_timeout = \"1s\""));
    weir.ready(&["up"]).await;
    // By the deadline.
    let answer = call(&weir.url, "up__slow", json!({})).await;
    assert_eq!(reason(&answer), "deadline_exceeded");
    let cancelled = || {
        up.arrivals()
            .iter()
            .filter(|a| a.method() == "notifications/cancelled")
            .cloned()
            .collect::<Vec<_>>()
    };
    weir.until("told of the deadline", |_| cancelled().len() == 1).await;
    let call_id = |n: usize| {
        up.arrivals().iter().filter(|a| a.tool().is_some()).nth(n).unwrap().message["id"].clone()
    };
    assert_eq!(cancelled()[0].message["params"]["requestId"], call_id(0));
    // By a client that closes its stream (2026-07-28) …
    let (headers, body) =
        modern_request(None, "tools/call", json!({"name": "up__slow", "arguments": {}}));
    let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let early = tokio::time::timeout(Duration::from_millis(400), send(&weir.url, &headers, body));
    drop(early.await);
    weir.until("told of the closed stream", |_| cancelled().len() == 2).await;
    assert_eq!(cancelled()[1].message["params"]["requestId"], call_id(1));
    // … and by one that says so (any revision before).
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}});
    let got = post(&weir.url, &[], hello.to_string()).await;
    let session = got.headers["mcp-session-id"].to_str().unwrap().to_owned();
    let url = weir.url.clone();
    let own = session.clone();
    let running = tokio::spawn(async move {
        let slow = json!({"jsonrpc": "2.0", "id": "own", "method": "tools/call", "params": {"name": "up__slow"}});
        post(&url, &[("mcp-session-id", &own)], slow.to_string()).await
    });
    while up.arrived("slow") < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let stop = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "own"}});
    assert_eq!(
        post(&weir.url, &[("mcp-session-id", &session)], stop.to_string()).await.status,
        202
    );
    weir.until("told of the cancellation", |_| cancelled().len() == 3).await;
    assert_eq!(cancelled()[2].message["params"]["requestId"], call_id(2));
    let got = tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
    assert!(got.messages().iter().all(|m| m["result"].is_null()), "{}", got.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_pass_as_they_are() {
    let answer_body = r#"{"content":[{"type":"text","text":"\u00e4 ä \/","extra":1.10}],"big":12345678901234567890123,"exp":1E5,"deep":{"a":[0.0,-0]},"_meta":{"vendor/x":2.50}}"#;
    let up = Scripted::start(&[tool("echo", false)], move |a| {
        a.tool()?;
        let result =
            format!(r#"{{"jsonrpc":"2.0","id":{},"result":{answer_body}}}"#, a.message["id"]);
        Some(Reply::Json(result))
    })
    .await;
    let weir = Weir::start("", &up.section("up", ""));
    weir.ready(&["up"]).await;
    let arguments = r#"{"n":1.0e2,"big":98765432109876543210,"text":"\u0041\/ ä","nested":{"zero":0.00,"list":[1,2.50 , -0]},"unknown":null}"#;
    let (headers, body) =
        modern_request(None, "tools/call", json!({"name": "up__echo", "arguments": {}}));
    let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let body =
        body.replace("\"arguments\":{}", &format!("\"later\":[1.0],\"arguments\":{arguments}"));
    let got = post(&weir.url, &headers, body).await;
    assert_eq!(got.status, 200);
    let arrived = up.arrivals().into_iter().find(|a| a.tool().is_some()).unwrap().body;
    assert!(arrived.contains(arguments) && arrived.contains("\"later\":[1.0]"), "{arrived}");
    for part in answer_body.trim_matches(['{', '}']).split(",\"_meta\"").take(1) {
        assert!(got.body.contains(part), "{}", got.body);
    }
    assert!(got.body.contains("\"vendor/x\":2.50"), "{}", got.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_words_hold_no_secret() {
    const TOKEN: &str = "sk_live_9f8e7d6c5b4a39281706";
    let up = Scripted::start(
        &[tool("page", false), tool("garbage", false), tool("away", false), tool("head", false)],
        |a| {
            let token = a.headers.get("authorization")?.trim_start_matches("Bearer ").to_owned();
            Some(match a.tool()? {
                "page" => Reply::Http(500, vec![], format!("your key {token} is bad")),
                "garbage" => Reply::Json(format!("key {token}")),
                "away" => Reply::Http(
                    302,
                    vec![("location", format!("http://127.0.0.2:1/{token}"))],
                    String::new(),
                ),
                "head" => Reply::Http(
                    401,
                    vec![("www-authenticate", format!("Bearer error={token}"))],
                    format!("{{\"key\":\"{token}\"}}"),
                ),
                _ => return None,
            })
        },
    )
    .await;
    let dir = tempfile::tempdir().unwrap();
    let chatty = child(
        &dir,
        "child",
        "sys.stderr.write('my key is ' + os.environ['KEY'] + '\\n'); sys.stderr.flush()\ndef on_call(m):\n    sys.stderr.write(os.environ['KEY'] + '\\n'); sys.stderr.flush(); os._exit(1)",
        "env = { KEY = \"${UP_TOKEN}\" }",
    );
    let weir = Weir::start_with(
        "",
        &(up.section("up", "bearer = \"${UP_TOKEN}\"") + &chatty + "[log]\nlevel = \"trace\"\n"),
        &[("UP_TOKEN", TOKEN)],
    );
    weir.ready(&["up", "child"]).await;
    let mut said = String::new();
    for name in ["up__page", "up__garbage", "up__away", "up__head", "child__act"] {
        let answer = call(&weir.url, name, json!({})).await;
        assert_ne!(reason(&answer), "", "{answer}");
        said += &answer.to_string();
    }
    said += &call(&weir.url, "weir__status", json!({})).await.to_string();
    said += &weir.status().await.to_string();
    said += &weir.metrics().await;
    weir.logged("my key is").await;
    said += &weir.log();
    assert!(
        !said.contains(TOKEN),
        "shown: {}",
        said.split(TOKEN)
            .next()
            .unwrap()
            .chars()
            .rev()
            .take(200)
            .collect::<String>()
            .chars()
            .rev()
            .collect::<String>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_one_word_everywhere() {
    let up = Scripted::start(&[tool("slow", false), tool("fine", false)], |a| {
        (a.tool()? == "slow").then(|| Reply::Hang(vec![]))
    })
    .await;
    let weir = Weir::start(
        "",
        &(up.section("full", "concurrency = { max = 1, queue = 1 }\ncall_timeout = \"3s\"")
            + &up.section("dry", "rate = { per_second = 0.001, burst = 1, max_wait = \"0s\" }")
            + "[upstreams.later]\nurl = \"http://127.0.0.1:9/\"\nbearer = \"${NOT_SET_ANYWHERE}\"\n[upstreams.down]\nurl = \"http://127.0.0.1:9/mcp\"\n"),
    );
    weir.ready(&["full", "dry"]).await;
    let url = Arc::new(weir.url.clone());
    let mut waiting = Vec::new();
    for n in 0..2 {
        let url = url.clone();
        waiting.push(tokio::spawn(async move { call(&url, "full__slow", json!({})).await }));
        while n == 0 && up.arrived("slow") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    weir.until("one waits", |s| upstream(s, "full")["queued"] == 1).await;
    let crowded = call(&weir.url, "full__fine", json!({})).await;
    assert_eq!(text(&call(&weir.url, "dry__fine", json!({})).await), "fine");
    let dry = call(&weir.url, "dry__fine", json!({})).await;
    assert!(failure(&dry)["retryAfterMs"].as_u64().unwrap() > 0, "{dry}");
    let mut words = vec![
        (reason(&crowded).to_owned(), "queue_full"),
        (reason(&dry).to_owned(), "rate_limited"),
    ];
    for one in waiting {
        let answer = one.await.unwrap();
        words.push((reason(&answer).to_owned(), "deadline_exceeded"));
        let never_sent =
            answer["result"]["content"][0]["text"].as_str().unwrap().contains("was not called");
        assert_eq!(failure(&answer)["outcome"], if never_sent { "no_effect" } else { "unknown" });
    }
    let metrics = weir.metrics().await;
    for (told, wanted) in &words {
        assert_eq!(told, wanted);
        weir.logged(&format!("\"reason\":\"{wanted}\"")).await;
        assert!(
            metrics.lines().any(|l| l.contains(wanted) && !l.ends_with(" 0")),
            "{wanted}: {metrics}"
        );
    }
    let status = weir.status().await;
    assert!(upstream(&status, "later")["why"].as_str().unwrap().contains("NOT_SET_ANYWHERE"));
}
