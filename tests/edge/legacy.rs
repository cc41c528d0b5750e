//! Clients before 2026-07-28: a handshake, a session, and errors that travel with 200.

use serde_json::{Value, json};
use weirkeeper::config::secret::{ConsumerKey, new_key};

use crate::harness::scripted::{Scripted, tool};
use crate::harness::{Weir, post};
use crate::wire::{Old, code, initialize, reason, request};

#[tokio::test]
async fn the_handshake_agrees_on_a_revision() {
    let weir = Weir::start("", "");
    for (asked, agreed) in [
        ("2024-11-05", "2024-11-05"),
        ("2025-03-26", "2025-03-26"),
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("2026-07-28", "2025-11-25"),
        ("nonsense", "2025-11-25"),
        ("", "2025-11-25"),
    ] {
        let got = post(&weir.url, &[], initialize(asked)).await;
        assert_eq!(got.status, 200, "{asked}: {}", got.body);
        let session = got.headers["mcp-session-id"].to_str().unwrap();
        assert!(session.len() >= 20 && session.bytes().all(|b| (0x21..=0x7e).contains(&b)));
        let answer = got.answer();
        assert_eq!(answer["id"], 0);
        let result = &answer["result"];
        assert_eq!(result["protocolVersion"], agreed, "{asked}");
        assert_eq!(result["serverInfo"]["name"], "weirkeeper");
        assert_eq!(result["capabilities"]["tools"], json!({"listChanged": true}));
        assert!(result.get("resultType").is_none(), "{result}");
        let old = Old::open(&weir.url, asked).await;
        assert_eq!(old.tools().await, ["weir__status", "weir__search", "weir__why"]);
    }
    // The header alone makes no handshake modern.
    let headers = [("mcp-protocol-version", "2026-07-28")];
    let got = post(&weir.url, &headers, initialize("2025-11-25")).await;
    assert_eq!(got.answer()["result"]["protocolVersion"], "2025-11-25", "{}", got.body);
    // What is no handshake is told so, and opens nothing.
    let before = weir.status().await["sessions"].clone();
    for params in [json!({}), json!({"protocolVersion": 7}), json!({"capabilities": {}})] {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params});
        let got = post(&weir.url, &[], body.to_string()).await;
        assert_eq!((got.status, code(&got)), (200, -32602), "{}", got.body);
        assert!(!got.headers.contains_key("mcp-session-id"));
    }
    assert_eq!(weir.status().await["sessions"], before);
}

#[tokio::test]
async fn a_session_begins_is_used_and_ends() {
    let weir = Weir::start("", "");
    let old = Old::open(&weir.url, "2025-06-18").await;
    assert_eq!(weir.status().await["sessions"], 1);
    assert_eq!(old.ask("ping", json!({})).await.answer()["result"], json!({}));
    let params = json!({"name": "weir__status", "arguments": {}});
    let got = old.ask("tools/call", params).await;
    assert_eq!(got.status, 200);
    assert_eq!(got.answer()["result"]["isError"], false);
    assert!(got.answer()["result"].get("resultType").is_none());
    for method in ["no/such", "server/discover/", "roots/list"] {
        let got = old.ask(method, json!({})).await;
        // 404 would tell the client that its session is gone.
        assert_eq!((got.status, code(&got)), (200, -32601), "{method}: {}", got.body);
    }
    for (method, params) in [
        ("tools/call", json!({"name": "weir__nothing"})),
        ("tools/list", json!({"cursor": "bad"})),
        ("tools/list", json!({"_meta": 7})),
    ] {
        let got = old.ask(method, params).await;
        assert_eq!((got.status, code(&got)), (200, -32602), "{method}: {}", got.body);
    }
    for accepted in [
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":99}}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/whatever"}"#,
        r#"{"jsonrpc":"2.0","id":4,"result":{}}"#,
        r#"{"jsonrpc":"2.0","id":4,"error":{"code":-1,"message":"no"}}"#,
    ] {
        let got = old.post(accepted).await;
        assert_eq!((got.status, got.body.as_str()), (202, ""), "{accepted}");
    }
    assert_eq!(old.delete().await, 204);
    assert_eq!(old.delete().await, 404);
    let got = old.ask("tools/list", json!({})).await;
    assert_eq!((got.status, reason(&got).as_str()), (404, "unknown_session"));
    assert_eq!(got.answer()["id"], 5);
    assert_eq!(weir.status().await["sessions"], 0);
}

#[tokio::test]
async fn without_a_session_there_is_only_the_handshake() {
    let weir = Weir::start("", "");
    let body = r#"{"jsonrpc":"2.0","id":"q","method":"tools/list"}"#;
    let got = post(&weir.url, &[], body).await;
    assert_eq!((got.status, reason(&got).as_str()), (400, "no_session"));
    assert_eq!(got.answer()["id"], "q");
    for session in ["made-up", "", "../../etc", &"x".repeat(4000)] {
        let got = post(&weir.url, &[("mcp-session-id", session)], body).await;
        assert!(matches!(got.status, 400 | 404), "{session}: {}", got.body);
        assert_eq!(
            request(&weir.url, "DELETE", &[("mcp-session-id", session)], "").await.status,
            404
        );
        let get = [("mcp-session-id", session), ("accept", "text/event-stream")];
        assert_eq!(request(&weir.url, "GET", &get, "").await.status, 404);
    }
}

#[tokio::test]
async fn the_version_header_of_a_session_is_checked() {
    let weir = Weir::start("", "");
    let old = Old::open(&weir.url, "2025-11-25").await;
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let with = async |version: Option<&str>| {
        let mut headers = vec![("mcp-session-id", old.session.as_str())];
        headers.extend(version.map(|v| ("mcp-protocol-version", v)));
        post(&weir.url, &headers, body).await.status
    };
    assert_eq!(with(None).await, 200);
    assert_eq!(with(Some("2025-11-25")).await, 200);
    assert_eq!(with(Some("2025-06-18")).await, 200);
    for bad in ["2031-01-01", "nonsense", "2026-07-28"] {
        assert_eq!(with(Some(bad)).await, 400, "{bad}");
    }
}

#[tokio::test]
async fn a_session_is_its_consumers_own() {
    let (one, two) = (new_key(), new_key());
    let digest = |key: &str| ConsumerKey::of(key).to_text();
    let weir = Weir::start(
        "",
        &format!(
            "[consumers.a]\nkey = \"{}\"\n[consumers.b]\nkey = \"{}\"\n",
            digest(one.expose()),
            digest(two.expose())
        ),
    );
    let mut old = Old::open_as(&weir.url, "2025-11-25", Some(one.expose())).await;
    assert_eq!(old.tools().await.len(), 3);
    old.key = Some(two.expose().into());
    assert_eq!(old.ask("tools/list", json!({})).await.status, 404);
    old.key = None;
    assert_eq!(old.ask("tools/list", json!({})).await.status, 401);
    assert_eq!(old.delete().await, 401);
    old.key = Some(one.expose().into());
    assert_eq!(old.tools().await.len(), 3);
}

#[tokio::test]
async fn batches_are_of_one_revision() {
    let weir = Weir::start("", "");
    let old = Old::open(&weir.url, "2025-03-26").await;
    let got = old
        .post(
            r#" [{"jsonrpc":"2.0","id":1,"method":"ping"},
            {"jsonrpc":"2.0","method":"notifications/roots/list_changed"},
            {"jsonrpc":"2.0","id":"two","method":"tools/list"},
            {"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"weir__status"}},
            {"jsonrpc":"2.0","id":4,"method":"no/such"},
            7]"#,
        )
        .await;
    assert_eq!(got.status, 200, "{}", got.body);
    let answers = got.answer();
    let answers = answers.as_array().unwrap();
    let of = |id: Value| answers.iter().find(|a| a["id"] == id).unwrap_or(&Value::Null);
    assert_eq!(answers.len(), 5, "{}", got.body);
    assert_eq!(of(json!(1))["result"], json!({}));
    assert!(of(json!("two"))["result"]["tools"].is_array());
    assert_eq!(of(json!(3))["result"]["isError"], false);
    assert_eq!(of(json!(4))["error"]["code"], -32601);
    assert_eq!(of(Value::Null)["error"]["code"], -32600, "{}", got.body);
    let notes =
        r#"[{"jsonrpc":"2.0","method":"notifications/x"},{"jsonrpc":"2.0","id":9,"result":{}}]"#;
    let got = old.post(notes).await;
    assert_eq!((got.status, got.body.as_str()), (202, ""));
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let many = format!("[{}]", [ping; 101].join(","));
    for bad in ["[]", many.as_str(), "[", "[1,]"] {
        let got = old.post(bad).await;
        assert_eq!(got.status, 400, "{}", got.body);
    }
    let one = format!("[{ping}]");
    for revision in ["2024-11-05", "2025-06-18", "2025-11-25"] {
        let got = Old::open(&weir.url, revision).await.post(&one).await;
        assert_eq!((got.status, code(&got)), (400, -32600), "{revision}: {}", got.body);
    }
    let got = post(&weir.url, &[("mcp-protocol-version", "2026-07-28")], one).await;
    assert_eq!((got.status, code(&got)), (400, -32600));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_back_before_it_began_is_not_begun() {
    let up = Scripted::start(&[tool("pay", false)], |_| None).await;
    let weir = Weir::start("", &up.section("up", ""));
    weir.ready(&["up"]).await;
    let old = Old::open(&weir.url, "2025-03-26").await;
    for id in 1..=20 {
        let call = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call",
            "params": {"name": "up__pay", "arguments": {}}});
        let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled",
            "params": {"requestId": id}});
        old.post(&json!([call, cancel]).to_string()).await;
    }
    assert_eq!(up.arrived("pay"), 0);
    // And it would have been carried out.
    let one = json!({"name": "up__pay", "arguments": {}});
    assert_eq!(old.ask("tools/call", one).await.status, 200);
    assert_eq!(up.arrived("pay"), 1);
}

#[tokio::test]
async fn ids_and_log_levels() {
    let weir = Weir::start("", "");
    let old = Old::open(&weir.url, "2025-11-25").await;
    for id in ["0", "1.50", "\"\\u0041\"", "98765432109876543210"] {
        for method in ["ping", "tools/list", "no/such"] {
            let got =
                old.post(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}"}}"#)).await;
            assert!(got.body.contains(&format!("\"id\":{id},")), "{}", got.body);
        }
    }
    let set = async |level: &str| old.ask("logging/setLevel", json!({"level": level})).await;
    assert_eq!(set("warning").await.answer()["result"], json!({}));
    assert_eq!(code(&set("loud").await), -32602);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_refused_as_single_messages_are() {
    let weir = Weir::start("", "");
    let ping = r#"[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"1.0","id":2}]"#;
    let old = Old::open(&weir.url, "2025-03-26").await;
    let got = old.post(ping).await;
    let answers: serde_json::Value = serde_json::from_str(&got.body).unwrap();
    assert_eq!((got.status, answers.as_array().unwrap().len()), (200, 2), "{answers}");
    weir.logged("\"reason\":\"invalid_message\"").await;
    let gone = [("mcp-session-id", "made-up"), ("content-type", "application/json")];
    assert_eq!(request(&weir.url, "POST", &gone, ping).await.status, 404);
    let version = [
        ("mcp-session-id", old.session.as_str()),
        ("content-type", "application/json"),
        ("mcp-protocol-version", "2031-01-01"),
    ];
    assert_eq!(request(&weir.url, "POST", &version, ping).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_says_of_itself_is_kept_within_bounds() {
    let weir = Weir::start("", "");
    let resident = |metrics: &str| {
        let line =
            metrics.lines().find_map(|l| l.strip_prefix("weir_process_resident_memory_bytes "));
        line.unwrap().parse::<f64>().unwrap()
    };
    let hello =
        initialize("2025-06-18").replace("\"old\"", &format!("\"{}\"", "x".repeat(3 << 20)));
    let before = resident(&weir.metrics().await);
    for _ in 0..60 {
        let got = request(&weir.url, "POST", &[("content-type", "application/json")], &hello).await;
        assert_eq!(got.status, 200);
    }
    let grown = resident(&weir.metrics().await) - before;
    assert!(grown < 90e6, "{grown} bytes for sixty sessions of three megabytes' talk");
}
