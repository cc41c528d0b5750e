//! The HTTP edge, seen from outside: which status, which code, which header, for what.
#![allow(clippy::unwrap_used, missing_docs)]

mod harness;

use harness::{Weir, modern, modern_request, post, tool_names};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;

fn code(answer: &Value) -> i64 {
    answer["error"]["code"].as_i64().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wrong_request_has_its_own_answer() {
    let weir = Weir::start("max_body = \"64KiB\"", "");
    let url = &weir.url;
    let list = |more: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{{{more}}}}}"#)
    };
    let v = ("mcp-protocol-version", "2026-07-28");
    let m = ("mcp-method", "tools/list");
    for (what, headers, body, status, wanted) in [
        ("malformed", vec![v, m], "{".to_owned(), 400, -32700),
        (
            "double key",
            vec![v, m],
            r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"tools/list"}"#.to_owned(),
            400,
            -32700,
        ),
        (
            "deep",
            vec![v, m],
            list(&format!("{META},\"a\":{}{}", "[".repeat(10_000), "]".repeat(10_000))),
            400,
            -32700,
        ),
        (
            "too large",
            vec![v, m],
            list(&format!("{META},\"a\":\"{}\"", "x".repeat(70_000))),
            413,
            -32600,
        ),
        ("batch", vec![], "[]".to_owned(), 400, -32600),
        ("no session", vec![], list(""), 400, -32600),
        ("unknown session", vec![("mcp-session-id", "nope")], list(""), 404, -32600),
        ("no meta", vec![v, m], list(""), 400, -32602),
        ("double meta", vec![v, m], list(&format!("{META},{META}")), 400, -32602),
        ("no version header", vec![m], list(META), 400, -32020),
        (
            "other version header",
            vec![("mcp-protocol-version", "2025-11-25"), m],
            list(META),
            400,
            -32020,
        ),
        (
            "unknown version",
            vec![("mcp-protocol-version", "2031-01-01"), m],
            list(&META.replace("2026-07-28", "2031-01-01")),
            400,
            -32022,
        ),
        ("no method header", vec![v], list(META), 400, -32020),
        ("other method header", vec![v, ("mcp-method", "tools/call")], list(META), 400, -32020),
        ("bad cursor", vec![v, m], list(&format!("{META},\"cursor\":\"\"")), 200, -32602),
        ("not acceptable", vec![v, m, ("accept", "text/html")], list(META), 406, -32600),
        ("not JSON", vec![v, m, ("content-type", "text/plain")], list(META), 415, -32600),
        ("foreign host", vec![v, m, ("host", "evil.example")], list(META), 403, -32600),
        ("foreign origin", vec![v, m, ("origin", "https://evil.example")], list(META), 403, -32600),
        (
            "fine",
            vec![v, m, ("accept", "*/*"), ("content-type", "application/json; charset=utf-8")],
            list(META),
            200,
            0,
        ),
    ] {
        let got = post(url, &headers, body).await;
        assert_eq!((got.status, code(&got.answer())), (status, wanted), "{what}: {}", got.body);
    }
    for method in ["ping", "initialize", "logging/setLevel", "no/such"] {
        let got = modern(url, None, method, json!({})).await;
        assert_eq!((got.status, code(&got.answer())), (404, -32601), "{method}");
    }
    let (headers, body) = modern_request(None, "tools/call", json!({"name": "weir__status"}));
    let headers: Vec<(&str, &str)> =
        headers.iter().filter(|(k, _)| *k != "mcp-name").map(|(k, v)| (*k, v.as_str())).collect();
    assert_eq!(code(&post(url, &headers, body).await.answer()), -32020, "Mcp-Name is required");
    // All of that has harmed nobody.
    assert_eq!(tool_names(url, None).await, ["weir__status", "weir__search"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_negotiated_kept_and_ended() {
    let weir = Weir::start("", "");
    for (asked, given) in [
        ("2024-11-05", "2024-11-05"),
        ("2025-03-26", "2025-03-26"),
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("2026-07-28", "2025-11-25"),
        ("nonsense", "2025-11-25"),
    ] {
        let hello = json!({"jsonrpc": "2.0", "id": "1", "method": "initialize",
            "params": {"protocolVersion": asked, "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}});
        let got = post(&weir.url, &[], hello.to_string()).await;
        assert_eq!(got.answer()["result"]["protocolVersion"], given);
        let id = got.headers["mcp-session-id"].to_str().unwrap().to_owned();
        let headers = [("mcp-session-id", id.as_str())];
        let unknown = json!({"jsonrpc": "2.0", "id": 1.5, "method": "no/such"});
        let got = post(&weir.url, &headers, unknown.to_string()).await;
        assert_eq!((got.status, code(&got.answer())), (200, -32601), "404 would end the session");
        let wrong = [headers[0], ("mcp-protocol-version", "1999-01-01")];
        let ping = r#"{"jsonrpc":"2.0","id":1.0,"method":"ping"}"#;
        assert_eq!(post(&weir.url, &wrong, ping).await.status, 400);
        assert!(post(&weir.url, &headers, ping).await.body.contains(r#""id":1.0"#));
        let batch = format!("[{ping},{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/x\"}}]");
        let got = post(&weir.url, &headers, batch).await;
        assert_eq!(got.status, if given == "2025-03-26" { 200 } else { 400 }, "{}", got.body);
        let raw = format!(
            "DELETE /mcp HTTP/1.1\r\nhost: localhost\r\nmcp-session-id: {id}\r\nconnection: close\r\n\r\n"
        );
        assert!(exchange(&weir, &raw).await.starts_with("HTTP/1.1 204"));
        assert_eq!(post(&weir.url, &headers, ping).await.status, 404);
    }
}

async fn exchange(weir: &Weir, raw: &str) -> String {
    let address = weir.url.trim_start_matches("http://").trim_end_matches("/mcp");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(raw.as_bytes()).await.unwrap();
    let mut out = Vec::new();
    let _ = stream.read_to_end(&mut out).await;
    String::from_utf8_lossy(&out).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_silent_connections_end_and_hurt_nobody() {
    let weir =
        Weir::start("header_timeout = \"1s\"\nbody_timeout = \"1s\"\nmax_connections = 400", "");
    let address = weir.url.trim_start_matches("http://").trim_end_matches("/mcp").to_owned();
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(&address).await.unwrap());
    }
    // Headers that never end, and a body that never comes.
    assert_eq!(exchange(&weir, "POST /mcp HTTP/1.1\r\nhost: localhost\r\nx-slow: ").await, "");
    let body = "POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\nconnection: close\r\n\r\n{";
    assert!(exchange(&weir, body).await.starts_with("HTTP/1.1 408"));
    let huge = "POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100000000\r\nconnection: close\r\n\r\n";
    assert!(exchange(&weir, huge).await.starts_with("HTTP/1.1 413"));
    assert_eq!(tool_names(&weir.url, None).await.len(), 2);
    // The silent ones are closed by us.
    for mut stream in idle {
        let mut byte = [0u8; 1];
        let end = tokio::time::timeout(harness::PATIENCE, stream.read(&mut byte)).await;
        assert!(matches!(end, Ok(Ok(0) | Err(_))), "an idle connection was kept");
    }
    assert_eq!(tool_names(&weir.url, None).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_is_acknowledged_and_told_of_its_own_view() {
    use http_body_util::BodyExt as _;
    let weir = Weir::start("", "");
    let filter = json!({"notifications": {"toolsListChanged": true}});
    let (headers, body) = modern_request(None, "subscriptions/listen", filter);
    let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let response =
        harness::send(&weir.url, &headers, body.replace("\"id\":1", "\"id\":\"L-1\"")).await;
    let mut body = response.into_body();
    let mut seen = String::new();
    weir.rewrite("builtin = false", "");
    while !seen.contains("notifications/tools/list_changed") {
        let frame = tokio::time::timeout(harness::PATIENCE, body.frame()).await.unwrap();
        seen.push_str(std::str::from_utf8(frame.unwrap().unwrap().data_ref().unwrap()).unwrap());
    }
    assert!(seen.contains("notifications/subscriptions/acknowledged"), "{seen}");
    assert_eq!(
        seen.matches(r#""io.modelcontextprotocol/subscriptionId":"L-1""#).count(),
        2,
        "{seen}"
    );
    assert!(!seen.contains("prompts/list_changed"), "{seen}");
}
