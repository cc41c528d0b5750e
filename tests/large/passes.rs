//! What passes, and what it costs.

use std::time::Duration;

use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::PATIENCE;
use crate::harness::scripted::Scripted;
use crate::{
    Asked, Era, MIB, Memory, address, ask, ask_in_session, asks, big, filling, gateway, read,
    upstream,
};

/// What the gateway may grow by, whatever passes through it.
const GROWTH_MAX: usize = 8 * MIB;
const BIG: usize = 64;
const ROOM: &str = "max_message = \"80MiB\"";

const HEAD: &str = r#", "result" : {"content":[{"type":"text","text":""#;

async fn answer(asked: &Asked, mebibytes: usize, tail: &str) {
    asked.say(format!(r#"{{"jsonrpc":"2.0","id":{}{HEAD}"#, asked.id)).await;
    asked.fill(mebibytes).await;
    asked.say(tail).await;
}

fn expected(id: &str, head: &str, mebibytes: usize, tail: &str) -> Vec<u8> {
    let mut want = format!(r#"{{"jsonrpc":"2.0","id":{id}{head}"#).into_bytes();
    let filling = filling();
    (0..mebibytes).for_each(|_| want.extend_from_slice(&filling));
    want.extend_from_slice(tail.as_bytes());
    want
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_answer_passes_byte_for_byte_and_takes_no_memory() {
    for h2 in [false, true] {
        let (up, mut calls) = upstream(Era::Modern).await;
        let weir = gateway(&up, ROOM).await;
        let tail = "\"}], \"n\":1.10 ,\"resultType\":\"complete\"}\n, \"x\":1e400}";
        let memory = Memory::begin(&weir);
        let feed = tokio::spawn(async move {
            let asked = calls.recv().await.unwrap();
            answer(&asked, BIG, tail).await;
        });
        let response = ask(&weir, asks(&weir, "tools/call", big()), h2).await;
        assert_eq!(response.headers()["content-type"], "application/json");
        let got = read(response).await.unwrap();
        feed.await.unwrap();
        assert!(got == expected("1", HEAD, BIG, tail), "{} bytes", got.len());
        let growth = memory.growth();
        println!("fast reader, HTTP/2: {h2}: grown by {} KiB", growth >> 10);
        assert!(growth < GROWTH_MAX, "grown by {growth} bytes");
        let size = format!("\"bytes_out\":{}", got.len());
        weir.logged(&size).await;
        assert!(weir.metrics().await.contains(r#"method="tools/call",outcome="ok",reason=""} 1"#));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_the_upstream_back_and_no_memory() {
    for h2 in [false, true] {
        let (up, mut calls) = upstream(Era::Old).await;
        // Less time for the call than the reader takes: that time is not the upstream's.
        let weir =
            gateway(&up, &format!("{ROOM}\ncall_timeout = \"2s\"\nmax_call_timeout = \"60s\""))
                .await;
        let memory = Memory::begin(&weir);
        let (said, mut seen) = tokio::sync::watch::channel(0);
        let feed = tokio::spawn(async move {
            let asked = calls.recv().await.unwrap();
            asked.say(format!(r#"{{"jsonrpc":"2.0","id":{}{HEAD}"#, asked.id)).await;
            for n in 0..BIG {
                asked.say(filling()).await;
                said.send_replace(n + 1);
            }
            asked.say("\"}]}}").await;
        });
        let mut body = ask(&weir, asks(&weir, "tools/call", big()), h2).await.into_body();
        let mut got = Vec::new();
        // The upstream comes to a stand; nothing but sockets lies between.
        while tokio::time::timeout(Duration::from_secs(4), seen.changed()).await.is_ok() {}
        let stood_at = *seen.borrow();
        assert!(stood_at < BIG - 16, "{stood_at} MiB were taken from the upstream");
        while let Some(frame) = body.frame().await {
            got.extend_from_slice(frame.unwrap().data_ref().unwrap());
            if got.len() % (4 * MIB) < 16 << 10 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        feed.await.unwrap();
        let head = HEAD.replacen('{', r#"{"resultType":"complete","#, 1);
        assert!(got == expected("1", &head, BIG, "\"}]}}"), "{} bytes", got.len());
        let growth = memory.growth();
        println!(
            "slow reader, HTTP/2: {h2}: grown by {} KiB, upstream stood at {stood_at} MiB",
            growth >> 10
        );
        assert!(growth < GROWTH_MAX, "grown by {growth} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_era_gets_its_own_words() {
    // Upstream, client, what the upstream says, what the client gets.
    let new = r#"}],"isError":false , "resultType":"complete" }}"#;
    let old = "}]}}";
    let with = HEAD.replacen('{', r#"{"resultType":"complete","#, 1);
    for (era, revision, says, head, gets) in [
        (Era::Modern, Some("2025-06-18"), new, HEAD, r#"}],"isError":false }}"#),
        (Era::Modern, Some("2025-11-25"), new, HEAD, r#"}],"isError":false }}"#),
        (Era::Old, Some("2025-06-18"), old, HEAD, old),
        (Era::Old, None, old, &*with, old),
        // A revision that does not know all content is answered as a whole.
        (Era::Modern, Some("2025-03-26"), new, HEAD, r#"}],"isError":false }}"#),
    ] {
        let (up, mut calls) = upstream(era).await;
        let weir = gateway(&up, "").await;
        let says = format!("\"{says}");
        let feed =
            tokio::spawn(async move { answer(&calls.recv().await.unwrap(), 3, &says).await });
        let (response, id) = match revision {
            Some(revision) => (ask_in_session(&weir, revision, big()).await, "\"mine\""),
            None => (ask(&weir, asks(&weir, "tools/call", big()), false).await, "1"),
        };
        let whole = revision == Some("2025-03-26");
        let in_pieces = response.headers().get("transfer-encoding").is_some();
        let is_event = response.headers()["content-type"] == "text/event-stream";
        let mut got = read(response).await.unwrap();
        if whole && is_event {
            // Where the machine was slow a stream was opened meanwhile.
            let data = got.windows(6).position(|w| w == b"data: ").unwrap() + 6;
            got = got.slice(data..got.len() - 2);
        } else {
            assert_eq!(in_pieces, !whole, "{revision:?}");
        }
        feed.await.unwrap();
        let want = expected(id, head, 3, &format!("\"{gets}"));
        assert!(got == want, "{revision:?}: {:?}", String::from_utf8_lossy(&got[got.len() - 60..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_behind_the_content_counts() {
    let (up, mut calls) = upstream(Era::Old).await;
    let weir = gateway(&up, "").await;
    tokio::spawn(async move {
        let asked = calls.recv().await.unwrap();
        let links = r#""},{"type":"resource_link","uri":"file:///b","name":"b"},{"resource":{"uri":"file:///c","text":""},"type":"resource"}],"isError":true},"jsonrpc":"2.0""#;
        asked.say(r#"{"result":{"content":[{"type":"text","text":""#).await;
        asked.fill(2).await;
        asked.say(format!("{links},\"id\":{}}}", asked.id)).await;
        drop(asked);
        let asked = calls.recv().await.unwrap();
        asked
            .say(format!(
                r#"{{"jsonrpc":"2.0","id":{},"result":{{"contents":[{{"uri":"file:///a","text":""#,
                asked.id
            ))
            .await;
        asked.fill(2).await;
        asked.say(r#"","mimeType":"text/plain"},{"uri":"file:///d","text":""}]}}"#).await;
    });
    let got = read(ask(&weir, asks(&weir, "tools/call", big()), false).await).await.unwrap();
    let got: Value = serde_json::from_slice(&got).unwrap();
    assert_eq!(got["result"]["content"][1]["uri"], "up+file:///b");
    assert_eq!(got["result"]["content"][2]["resource"]["uri"], "up+file:///c");
    assert_eq!(got["id"], 1);
    let read_a = asks(&weir, "resources/read", json!({"uri": "up+file:///a"}));
    let got = read(ask(&weir, read_a, true).await).await.unwrap();
    let got: Value = serde_json::from_slice(&got).unwrap();
    assert_eq!(got["result"]["contents"][0]["uri"], "up+file:///a");
    assert_eq!(got["result"]["contents"][1]["uri"], "up+file:///d");
    assert_eq!(got["result"]["ttlMs"], 0);
    let metrics = weir.metrics().await;
    assert!(
        metrics.contains(r#"method="tools/call",outcome="tool_error",reason=""} 1"#),
        "{metrics}"
    );
    assert!(metrics.contains(r#"method="resources/read",outcome="ok",reason=""} 1"#), "{metrics}");
}

async fn one(up: Era) -> (Scripted, crate::harness::Weir, tokio::task::JoinHandle<()>) {
    let (up, mut calls) = upstream(up).await;
    let weir = gateway(&up, "").await;
    let feed = tokio::spawn(async move {
        answer(&calls.recv().await.unwrap(), 2, "\"}],\"resultType\":\"complete\"}}").await;
    });
    (up, weir, feed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_can_be_asked_gets_it_in_pieces_too() {
    let (_up, weir, feed) = one(Era::Modern).await;
    let capabilities = json!({"io.modelcontextprotocol/clientCapabilities": {"elicitation": {}}});
    let params = json!({"name": "up__big", "arguments": {}, "_meta": capabilities});
    let response = ask(&weir, asks(&weir, "tools/call", params), false).await;
    assert!(!response.headers().contains_key("content-length"));
    let got = read(response).await.unwrap();
    feed.await.unwrap();
    assert!(got == expected("1", HEAD, 2, "\"}],\"resultType\":\"complete\"}}"));
    weir.until("nothing is left", |s| crate::harness::upstream(s, "up")["in_flight"] == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_tell_an_end_from_a_break_gets_it_as_a_whole() {
    let (_up, weir, feed) = one(Era::Modern).await;
    let (headers, body) = crate::harness::modern_request(None, "tools/call", big());
    let headers: Vec<_> = headers.iter().map(|(k, v)| format!("{k}: {v}\r\n")).collect();
    let headers = headers.concat();
    let request = format!(
        "POST /mcp HTTP/1.0\r\nhost: localhost\r\n{headers}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = tokio::net::TcpStream::connect(address(&weir)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    feed.await.unwrap();
    let got = String::from_utf8(got).unwrap();
    let (head, body) = got.split_once("\r\n\r\n").unwrap();
    assert!(head.to_lowercase().contains("content-length: "), "{head}");
    assert!(body.as_bytes() == expected("1", HEAD, 2, "\"}],\"resultType\":\"complete\"}}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_whose_answer_passes_goes_alone() {
    let tail = "\"}],\"resultType\":\"complete\"}}";
    // It begins to pass before a second attempt is due, or beside one.
    for beside in [false, true] {
        let (up, mut calls) = upstream(Era::Modern).await;
        let weir = gateway(&up, "hedge_after = \"300ms\"").await;
        let feed = tokio::spawn(async move {
            let first = calls.recv().await.unwrap();
            let second = if beside { calls.recv().await } else { None };
            first.say(format!(r#"{{"jsonrpc":"2.0","id":{}{HEAD}"#, first.id)).await;
            first.fill(3).await;
            match second {
                // It sees that its connection is closed.
                Some(second) => {
                    tokio::time::timeout(PATIENCE, second.to.closed()).await.unwrap();
                }
                None => tokio::time::sleep(Duration::from_millis(700)).await,
            }
            first.say(tail).await;
        });
        let got = read(ask(&weir, asks(&weir, "tools/call", big()), false).await).await.unwrap();
        feed.await.unwrap();
        assert!(got == expected("1", HEAD, 3, tail), "{} bytes", got.len());
        assert_eq!(up.arrived("big"), 1 + usize::from(beside));
    }
}
