//! Whatever the edge refuses, it says why with one word: to the caller, in the log, in the metrics.

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::harness::{Got, Weir, modern_request, post};
use crate::wire::{Old, address, code, connect, raw, reason, request, rest, status};

fn counted(metrics: &str, reason: &str) -> u64 {
    let line = format!("weir_refusals_total{{upstream=\"_none\",reason=\"{reason}\"}} ");
    metrics.lines().find_map(|l| l.strip_prefix(&line)).map_or(0, |n| n.parse().unwrap())
}

/// The reason in the body of a response that was read as text.
fn word(response: &str) -> String {
    let body = response.split("\r\n\r\n").nth(1).unwrap_or("");
    let body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{response}"));
    body["error"]["data"]["reason"].as_str().unwrap_or("").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines)]
async fn one_word_in_the_answer_the_log_and_the_metric() {
    let weir = Weir::start("max_body = \"1KiB\"\nbody_timeout = \"500ms\"\nmax_streams = 1", "");
    let at = address(&weir).to_owned();
    let url = weir.url.clone();
    let json_type = ("content-type", "application/json");
    let old = Old::open(&url, "2025-06-18").await;
    let session = [("mcp-session-id", old.session.as_str()), json_type];

    let mut seen: Vec<(&str, i64)> = Vec::new();
    let mut saw = |wanted: &'static str, wanted_status: u16, got: &Got| {
        assert_eq!((got.status, reason(got).as_str()), (wanted_status, wanted), "{}", got.body);
        seen.push((wanted, code(got)));
    };
    saw("host_not_allowed", 403, &request(&url, "POST", &[("host", "evil.example")], "").await);
    saw(
        "origin_not_allowed",
        403,
        &request(&url, "POST", &[("origin", "https://evil.example")], "").await,
    );
    saw("unknown_path", 404, &request(&format!("http://{at}/x"), "POST", &[], "").await);
    saw("method_not_allowed", 405, &request(&url, "PUT", &[], "").await);
    saw("not_acceptable", 406, &request(&url, "POST", &[("accept", "text/html")], "").await);
    saw("not_json", 415, &request(&url, "POST", &[("content-type", "text/plain")], "{}").await);
    saw("invalid_message", 400, &request(&url, "POST", &[json_type], "{").await);
    saw("too_large", 413, &request(&url, "POST", &[json_type], &"x".repeat(2000)).await);
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    saw("no_session", 400, &request(&url, "POST", &[json_type], ping).await);
    let unknown = [("mcp-session-id", "made-up"), json_type];
    saw("unknown_session", 404, &request(&url, "POST", &unknown, ping).await);
    let version = [session[0], session[1], ("mcp-protocol-version", "2031-01-01")];
    saw("unsupported_version", 400, &request(&url, "POST", &version, ping).await);
    saw("unknown_method", 200, &old.ask("tasks/fly", json!({})).await);
    saw("invalid_params", 200, &old.ask("logging/setLevel", json!({"level": "loud"})).await);
    let (headers, body) = modern_request(None, "tools/list", json!({}));
    let body = body.replace("2026-07-28", "2031-01-01");
    let mut other: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    other[0].1 = "2031-01-01";
    saw("unsupported_version", 400, &post(&url, &other, body.clone()).await);
    other[0].1 = "2025-06-18";
    saw("header_mismatch", 400, &post(&url, &other, body).await);
    let upgrade =
        "GET /mcp HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
    let mut stream = connect(&weir).await;
    stream
        .write_all(upgrade.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let got = rest(&mut stream).await;
    assert_eq!((status(&got), word(&got).as_str()), (400, "invalid_upgrade"), "{got}");
    let post_head = "POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n";
    let got = raw(&weir, format!("{post_head}content-length: 10\r\n\r\n{{")).await;
    assert_eq!((status(&got), word(&got).as_str()), (408, "slow_body"), "{got}");
    let _open = old.listen().await;
    let other = Old::open(&url, "2025-06-18").await;
    let second = request(
        &url,
        "GET",
        &[("mcp-session-id", &other.session), ("accept", "text/event-stream")],
        "",
    )
    .await;
    saw("overloaded", 503, &second);
    assert_eq!(second.headers["retry-after"], "5");

    let codes: Vec<_> = seen.iter().map(|(word, code)| format!("{word} {code}")).collect();
    insta::assert_snapshot!(codes.join("\n"), @"
    host_not_allowed -32600
    origin_not_allowed -32600
    unknown_path -32600
    method_not_allowed -32600
    not_acceptable -32600
    not_json -32600
    invalid_message -32700
    too_large -32600
    no_session -32600
    unknown_session -32600
    unsupported_version -32600
    unknown_method -32601
    invalid_params -32602
    unsupported_version -32022
    header_mismatch -32020
    overloaded -32603
    ");
    let metrics = weir.metrics().await;
    let words = seen.iter().map(|(word, _)| *word).chain(["invalid_upgrade", "slow_body"]);
    for word in words {
        let times = seen.iter().filter(|(w, _)| *w == word).count().max(1) as u64;
        assert_eq!(counted(&metrics, word), times, "{word}\n{metrics}");
        weir.logged(&format!("\"reason\":\"{word}\"")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_call_is_logged_with_the_name_it_asked_for() {
    let weir = Weir::start("", "");
    let long = "x".repeat(300);
    for name in ["weir__no_such", long.as_str()] {
        let (headers, body) =
            modern_request(None, "tools/call", json!({"name": name, "arguments": {}}));
        let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        assert_eq!(reason(&post(&weir.url, &headers, body).await), "unknown_name");
    }
    weir.logged("\"tool\":\"weir__no_such\"").await;
    weir.logged(&format!("\"tool\":\"{}\"", "x".repeat(128))).await;
    assert!(!weir.log().contains(&long) && !weir.metrics().await.contains("no_such"));
}
