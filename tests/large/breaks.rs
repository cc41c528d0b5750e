//! Every way in which a large answer ends early.

use std::time::Duration;

use http_body_util::BodyExt as _;
use serde_json::json;

use crate::harness::{PATIENCE, Weir, upstream as status_of};
use crate::{Asked, Era, ask, ask_in_session, asks, big, gateway, read, upstream};

const HEAD: &str = r#""result":{"content":[{"type":"text","text":""#;

async fn begin(asked: &Asked) {
    asked.say(format!(r#"{{"jsonrpc":"2.0","id":{},{HEAD}"#, asked.id)).await;
    asked.fill(2).await;
}

async fn recorded(weir: &Weir, outcome: &str, reason: &str) {
    let line = format!(r#"method="tools/call",outcome="{outcome}",reason="{reason}"}} 1"#);
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let metrics = weir.metrics().await;
        if metrics.contains(&line) {
            break;
        }
        assert!(std::time::Instant::now() < end, "no {line}\n{metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    weir.until("nothing is left", |s| status_of(s, "up")["in_flight"] == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_turns_out_to_be_none_is_broken_off() {
    for (h2, tail, reason) in [
        (false, "cut", "connection_lost"),
        (true, "cut", "connection_lost"),
        (false, "\"}]}}{}", "garbled"),
        (true, "\"}]}} garbage", "garbled"),
        (false, "\"}]}},", "garbled"),
        (false, "\"}]},\"id\":8}", "garbled"),
        (false, "\"}]}", "garbled"),
        (false, "\"}],\"resultType\":\"task\"}}", "garbled"),
        (false, "\u{1}\"}]}}", "garbled"),
        (false, "more", "too_large"),
    ] {
        let (up, mut calls) = upstream(Era::Modern).await;
        let weir = gateway(&up, "max_message = \"3MiB\"").await;
        let feed = tokio::spawn(async move {
            let asked = calls.recv().await.unwrap();
            begin(&asked).await;
            match tail {
                "cut" => asked.cut().await,
                "more" => while asked.to.send(Some(crate::filling())).await.is_ok() {},
                tail => asked.say(tail).await,
            }
            calls
        });
        let got = read(ask(&weir, asks(&weir, "tools/call", big()), h2).await).await;
        assert!(got.is_err_and(|some| some > 1 << 20), "{tail:?}");
        recorded(&weir, "fault", reason).await;
        // A tool that only reads could be asked again; but not when its answer has begun to leave.
        let mut calls = feed.await.unwrap();
        assert!(calls.try_recv().is_err() && up.arrived("big") == 1, "{tail:?}");
        let status = weir.status().await;
        let failed = &status_of(&status, "up")["guard"]["breaker"]["failed"];
        if !failed.is_null() {
            assert_eq!(*failed, json!(u8::from(reason != "too_large")), "{status}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_stalls_is_given_up() {
    let (up, mut calls) = upstream(Era::Modern).await;
    let weir = gateway(&up, "call_timeout = \"1s\"").await;
    let answering = tokio::spawn(async move {
        let asked = calls.recv().await.unwrap();
        begin(&asked).await;
        asked.to.closed().await;
    });
    let got = read(ask(&weir, asks(&weir, "tools/call", big()), false).await).await;
    assert!(got.is_err());
    recorded(&weir, "fault", "deadline_exceeded").await;
    answering.await.unwrap();
    assert_eq!(up.arrived("big"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_cancels_the_call_upstream_too() {
    for way in ["modern", "http2", "session", "asked"] {
        let (up, mut calls) = upstream(Era::Old).await;
        let weir = gateway(&up, "").await;
        let (say, said) = tokio::sync::oneshot::channel();
        let answering = tokio::spawn(async move {
            let asked = calls.recv().await.unwrap();
            begin(&asked).await;
            let _ = say.send(());
            // The upstream sees that its connection is closed.
            tokio::time::timeout(PATIENCE, asked.to.closed()).await.unwrap();
        });
        let capable = json!({"io.modelcontextprotocol/clientCapabilities": {"elicitation": {}}});
        let asked = json!({"name": "up__big", "arguments": {}, "_meta": capable});
        let response = match way {
            "session" => ask_in_session(&weir, "2025-06-18", big()).await,
            "asked" => ask(&weir, asks(&weir, "tools/call", asked), false).await,
            way => ask(&weir, asks(&weir, "tools/call", big()), way == "http2").await,
        };
        let mut body = response.into_body();
        assert!(body.frame().await.unwrap().is_ok());
        let some = async { while let Some(Ok(_)) = body.frame().await {} };
        let _ = tokio::time::timeout(Duration::from_millis(500), some).await;
        said.await.unwrap();
        drop(body);
        answering.await.unwrap();
        recorded(&weir, "cancelled", "").await;
    }
}
