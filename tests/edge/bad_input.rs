//! Bytes that are no request of any client: each has an answer, and the next caller notices
//! nothing.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Got, PATIENCE, Weir, modern, post, tool_names};
use crate::wire::{Old, code, connect, raw, reason, rest, status};

const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;

async fn list(weir: &Weir, body: impl Into<bytes::Bytes>) -> Got {
    let headers = [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "tools/list")];
    post(&weir.url, &headers, body).await
}

async fn still_serves(weir: &Weir) {
    assert_eq!(tool_names(&weir.url, None).await, ["weir__status", "weir__search", "weir__why"]);
}

#[tokio::test]
async fn what_is_no_json_is_a_parse_error() {
    let weir = Weir::start("", "");
    let nul = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools\0list\"}".to_vec();
    for bad in [
        b"".to_vec(),
        b" \n".to_vec(),
        b"{".to_vec(),
        b"{\"jsonrpc\":\"2.0\",}".to_vec(),
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/list\"".to_vec(),
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/list\"} x".to_vec(),
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/list\"}{}".to_vec(),
        b"{\"jsonrpc\":\"2.0\",\"id\":01,\"method\":\"tools/list\"}".to_vec(),
        b"{'jsonrpc':'2.0'}".to_vec(),
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\xfe\"}".to_vec(),
        b"\xff\xfe{\x00}\x00".to_vec(),
        nul,
        b"POST / HTTP/1.1".to_vec(),
    ] {
        let shown = String::from_utf8_lossy(&bad).into_owned();
        let got = list(&weir, bad).await;
        assert_eq!((got.status, code(&got)), (400, -32700), "{shown}: {}", got.body);
        assert!(got.answer().get("id").is_none(), "{}", got.body);
    }
    still_serves(&weir).await;
}

#[tokio::test]
async fn what_is_no_message_is_an_invalid_request() {
    let weir = Weir::start("", "");
    for bad in [
        "7",
        "null",
        "\"text\"",
        "true",
        "{}",
        r#"{"id":1,"method":"tools/list"}"#,
        r#"{"jsonrpc":"1.0","id":1,"method":"tools/list"}"#,
        r#"{"jsonrpc":2.0,"id":1,"method":"tools/list"}"#,
        r#"{"jsonrpc":"2.0","id":null,"method":"tools/list"}"#,
        r#"{"jsonrpc":"2.0","id":true,"method":"tools/list"}"#,
        r#"{"jsonrpc":"2.0","id":{},"method":"tools/list"}"#,
        r#"{"jsonrpc":"2.0","id":[1],"method":"tools/list"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":7}"#,
        r#"{"jsonrpc":"2.0","id":1}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":"x"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":null}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","result":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#,
        "[]",
        "[1]",
    ] {
        let got = list(&weir, bad).await;
        assert_eq!((got.status, code(&got)), (400, -32600), "{bad}: {}", got.body);
    }
    // Params by position exist in JSON-RPC and not in MCP.
    let got = list(&weir, r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":[1]}"#).await;
    assert_eq!((got.status, code(&got)), (400, -32602), "{}", got.body);
    still_serves(&weir).await;
}

#[tokio::test]
async fn what_stands_twice_is_refused() {
    let weir = Weir::start("", "");
    let list_body =
        |inner: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/list",{inner}}}"#);
    for (bad, wanted) in [
        (list_body(r#""method":"tools/call""#), -32700),
        (list_body(r#""id":2"#), -32700),
        (list_body(r#""params":{},"params":{}"#), -32700),
        (list_body(r#""me\u0074hod":"tools/call""#), -32700),
        (list_body(&format!(r#""params":{{"cursor":"a","cursor":"b",{META}}}"#)), -32602),
        (list_body(&format!(r#""params":{{{META},{META}}}"#)), -32602),
        (
            list_body(
                r#""params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2025-11-25","io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}"#,
            ),
            -32602,
        ),
    ] {
        let got = list(&weir, bad.clone()).await;
        assert_eq!((got.status, code(&got)), (400, wanted), "{bad}: {}", got.body);
    }
    // The name decides where a call goes: there is one.
    let headers = [
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/call"),
        ("mcp-name", "weir__status"),
    ];
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"weir__status","name":"weir__search",{META}}}}}"#
    );
    let got = post(&weir.url, &headers, body).await;
    assert_eq!((got.status, code(&got)), (400, -32602), "{}", got.body);
    still_serves(&weir).await;
}

#[tokio::test]
async fn nesting_is_bounded() {
    let weir = Weir::start("", "");
    let deep = |n: usize, open: &str, close: &str| format!("{}{}", open.repeat(n), close.repeat(n));
    let array = deep(100_000, "[", "]");
    let object = deep(100_000, "{\"a\":", "}").replace(":}", ":1}");
    for bad in [
        array.clone(),
        object.clone(),
        format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{{"a":{array},{META}}}}}"#
        ),
        format!(r#"{{"jsonrpc":"2.0","id":{array},"method":"tools/list"}}"#),
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/list","x":{object}}}"#),
        "[".repeat(100_000),
    ] {
        let got = list(&weir, bad).await;
        assert_eq!(got.status, 400, "{}", got.body);
        assert!(got.body.len() < 500, "{}", got.body);
    }
    // The same in a session that may send batches.
    let old = Old::open(&weir.url, "2025-03-26").await;
    for bad in [array, "[".repeat(100_000), format!("[{object}]")] {
        let got = old.post(&bad).await;
        assert!(got.body.len() < 500, "{}", got.body);
        let refused = got.status == 400 || got.answer()[0]["error"].is_object();
        assert!(refused, "{} {}", got.status, got.body);
    }
    // Brackets in a string are none.
    let text = "[".repeat(1000);
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{{"x":"\"{text}",{META}}}}}"#
    );
    assert_eq!(list(&weir, body).await.status, 200);
    still_serves(&weir).await;
}

#[tokio::test]
async fn beyond_the_memory_that_may_be_used_new_work_is_refused_until_there_is_room() {
    let fill = |n: usize| {
        let name = "a".repeat(n);
        format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{{"x":"{name}",{META}}}}}"#
        )
    };
    let weir = Weir::start("max_memory = \"64KiB\"", "");
    for _ in 0..3 {
        // What is large, before it is there.
        let got = list(&weir, fill(20_000)).await;
        assert_eq!((got.status, reason(&got).as_str()), (503, "overloaded"), "{}", got.body);
        assert!(got.body.contains("gateway.max_memory"), "{}", got.body);
        assert_eq!(got.headers["retry-after"], "2");
        let answer = crate::harness::call(&weir.url, "weir__status", json!({})).await;
        assert_eq!(crate::harness::reason(&answer), "overloaded", "{answer}");
        // What takes no room is answered.
        assert_eq!(list(&weir, fill(1)).await.status, 200);
    }
    // A higher ceiling counts as soon as it is known, and nothing that was refused is held.
    weir.rewrite("max_memory = \"256MiB\"", "");
    let end = std::time::Instant::now() + PATIENCE;
    while list(&weir, fill(20_000)).await.status != 200 {
        assert!(std::time::Instant::now() < end, "no room: {}", weir.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    still_serves(&weir).await;
}

#[tokio::test]
async fn bodies_are_bounded() {
    let weir = Weir::start("max_body = \"4KiB\"\nheader_timeout = \"1s\"", "");
    let fill = |n: usize| {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{{"x":"","_":0,{META}}}}}"#
        );
        let more = n - body.len();
        body.replace("\"x\":\"\"", &format!("\"x\":\"{}\"", "a".repeat(more)))
    };
    assert_eq!(list(&weir, fill(4096)).await.status, 200);
    let got = list(&weir, fill(4097)).await;
    assert_eq!((got.status, reason(&got).as_str()), (413, "too_large"));
    assert!(got.body.contains("gateway.max_body"), "{}", got.body);
    // Told by its declaration alone: nothing is waited for, nothing is held.
    let head = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let got = raw(&weir, format!("{head}Content-Length: 104857600\r\n\r\n{{")).await;
    assert_eq!(status(&got), 413, "{got}");
    // Without a declaration, as soon as it is too much.
    let mut stream = connect(&weir).await;
    stream.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes()).await.unwrap();
    for _ in 0..5 {
        let _ = stream.write_all(format!("400\r\n{}\r\n", " ".repeat(1024)).as_bytes()).await;
    }
    let got = rest(&mut stream).await;
    assert_eq!(status(&got), 413, "{got}");
    // Nonsense where the length should be.
    for bad in [
        "Content-Length: -1",
        "Content-Length: 1e3",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 99999999999999999999999",
    ] {
        let got = raw(&weir, format!("{head}{bad}\r\n\r\n{{}}")).await;
        assert_eq!(status(&got), 400, "{bad}: {got}");
    }
    let got = raw(&weir, format!("{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n")).await;
    assert_eq!(status(&got), 400, "{got}");
    still_serves(&weir).await;
}

#[tokio::test]
async fn what_is_no_http_is_answered_or_closed() {
    let weir = Weir::start("", "");
    for bad in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET\r\n\r\n",
        b"GET /mcp HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"\r\n\r\n\r\n\r\nx\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\nnot a frame at all",
        b"GET /mcp HTTP/1.1\r\nHost: localhost\r\nX: \x01\r\n\r\n",
    ] {
        let mut stream = connect(&weir).await;
        let _ = stream.write_all(bad).await;
        let _ = stream.shutdown().await;
        let mut out = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut out)).await.unwrap();
        let text = String::from_utf8_lossy(&out);
        assert!(!text.starts_with("HTTP/1.1 200"), "{bad:?}: {text}");
    }
    // More headers than anybody sends, and one that is too long.
    let many = "X: y\r\n".repeat(2000);
    let long = format!("X: {}\r\n", "y".repeat(1 << 20));
    for headers in [many, long] {
        let got =
            raw(&weir, format!("GET /mcp HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")).await;
        assert!(got.is_empty() || status(&got) == 431 || status(&got) == 400, "{got}");
    }
    let target = "a".repeat(100_000);
    let got = raw(
        &weir,
        format!("GET /{target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
    )
    .await;
    assert!(got.is_empty() || matches!(status(&got), 400 | 404 | 414 | 431), "{got}");
    still_serves(&weir).await;
    assert_eq!(modern(&weir.url, None, "server/discover", json!({})).await.status, 200);
}
