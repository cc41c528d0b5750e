//! Clients of 2026-07-28: each request says everything itself.

use serde_json::{Value, json};

use crate::harness::{Got, Weir, call, get, modern, modern_request, post};
use crate::wire::{code, reason};

const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";

/// A modern request with some headers left out, others put in, and a body of one's own.
async fn odd(weir: &Weir, without: &[&str], with: &[(&str, &str)], body: &Value) -> Got {
    let method = body["method"].as_str().unwrap();
    let (headers, _) = modern_request(None, method, json!({}));
    let mut headers: Vec<_> = headers
        .iter()
        .map(|(k, v)| (*k, v.as_str()))
        .filter(|(k, _)| !without.contains(k) && !with.iter().any(|(w, _)| w == k))
        .collect();
    headers.extend_from_slice(with);
    post(&weir.url, &headers, body.to_string()).await
}

fn request(method: &str, params: Value) -> Value {
    serde_json::from_str(&modern_request(None, method, params).1).unwrap()
}

fn told(got: &Got) -> (u16, i64) {
    (got.status, code(got))
}

#[tokio::test]
async fn discovery_says_what_there_is() {
    let weir = Weir::start("", "");
    let got = modern(&weir.url, None, "server/discover", json!({})).await;
    assert_eq!(got.status, 200);
    assert_eq!(got.headers["content-type"], "application/json");
    assert_eq!(got.headers["cache-control"], "no-store");
    let result = &got.answer()["result"];
    assert_eq!(result["supportedVersions"], json!(["2026-07-28"]));
    assert_eq!(result["capabilities"]["tools"], json!({"listChanged": true}));
    assert_eq!(result["resultType"], "complete");
    assert!(result["ttlMs"].is_u64() && result["cacheScope"].is_string(), "{result}");
    let info = &result["serverInfo"];
    let info =
        if info.is_null() { &result["_meta"]["io.modelcontextprotocol/serverInfo"] } else { info };
    assert_eq!(info["name"], "weirkeeper", "{result}");
}

#[tokio::test]
async fn headers_mirror_the_body() {
    let weir = Weir::start("", "");
    let list = request("tools/list", json!({}));
    let status = request("tools/call", json!({"name": "weir__status", "arguments": {}}));
    let encoded = "=?base64?d2Vpcl9fc3RhdHVz?=";
    for (without, with, body, wanted) in [
        (&["mcp-protocol-version"][..], &[][..], &list, (400, -32020)),
        (&[], &[("mcp-protocol-version", "2025-11-25")], &list, (400, -32020)),
        (&["mcp-method"], &[], &list, (400, -32020)),
        (&[], &[("mcp-method", "tools/call")], &list, (400, -32020)),
        (&[], &[("mcp-method", "Tools/List")], &list, (400, -32020)),
        (&[], &[("mcp-method", " tools/list ")], &list, (200, 0)),
        (&[], &[("mcp-method", "tools/list"), ("mcp-method", "tools/list")], &list, (400, -32020)),
        (&[], &[], &status, (400, -32020)),
        (&[], &[("mcp-name", "weir__search")], &status, (400, -32020)),
        (&[], &[("mcp-name", "WEIR__status")], &status, (400, -32020)),
        (&[], &[("mcp-name", "weir__status")], &status, (200, 0)),
        (&[], &[("mcp-name", encoded)], &status, (200, 0)),
        (&[], &[("mcp-name", "=?base64?%%%?=")], &status, (400, -32020)),
        // The marker in capitals is a literal.
        (&[], &[("mcp-name", "=?BASE64?d2Vpcl9fc3RhdHVz?=")], &status, (400, -32020)),
    ] {
        let got = odd(&weir, without, with, body).await;
        assert_eq!(told(&got), wanted, "without {without:?} with {with:?}: {}", got.body);
        assert_eq!(got.answer()["id"], 1);
        if wanted.1 != 0 {
            assert_eq!(reason(&got), "header_mismatch");
        }
    }
}

#[tokio::test]
async fn metadata_is_required_and_the_version_is_served() {
    let weir = Weir::start("", "");
    let mut bare = request("tools/list", json!({}));
    bare["params"] = json!({});
    let mut no_params = bare.clone();
    no_params.as_object_mut().unwrap().remove("params");
    let with = |meta: Value| {
        let mut body = bare.clone();
        body["params"]["_meta"] = meta;
        body
    };
    for body in [
        bare.clone(),
        no_params,
        with(json!({})),
        with(json!({CAPABILITIES: {}})),
        with(json!({VERSION: "2026-07-28"})),
        with(json!({VERSION: "2026-07-28", CAPABILITIES: true})),
        with(json!({VERSION: 20_260_728, CAPABILITIES: {}})),
        with(json!([])),
        with(json!("2026-07-28")),
    ] {
        let got = odd(&weir, &[], &[], &body).await;
        assert_eq!(told(&got), (400, -32602), "{body}: {}", got.body);
        assert_eq!(got.answer()["id"], 1);
    }
    // Who the client is may stay unsaid.
    let body = with(json!({VERSION: "2026-07-28", CAPABILITIES: {}}));
    assert_eq!(told(&odd(&weir, &[], &[], &body).await), (200, 0));
    for version in ["2031-01-01", "2025-11-25", "nonsense", ""] {
        let body = with(json!({VERSION: version, CAPABILITIES: {}}));
        let got = odd(&weir, &[], &[("mcp-protocol-version", version)], &body).await;
        assert_eq!(told(&got), (400, -32022), "{version}: {}", got.body);
        let data = &got.answer()["error"]["data"];
        assert_eq!(data["supported"], json!(["2026-07-28"]));
        assert_eq!(data["requested"], version);
    }
}

#[tokio::test]
async fn the_first_wrong_thing_is_told() {
    let weir = Weir::start("", "");
    let with = |version: &str, capabilities: bool, method: &str| {
        let mut meta = json!({VERSION: version});
        if capabilities {
            meta[CAPABILITIES] = json!({});
        }
        json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"_meta": meta}})
    };
    let method = &[("mcp-method", "x")][..];
    let wrong = &[("mcp-protocol-version", "2027-01-01"), ("mcp-method", "x")][..];
    let future = &[("mcp-protocol-version", "2031-01-01"), ("mcp-method", "x")][..];
    for (headers, body, wanted) in [
        (wrong, with("2031-01-01", false, "no/such"), (400, -32602)),
        (wrong, with("2031-01-01", true, "no/such"), (400, -32020)),
        (future, with("2031-01-01", true, "no/such"), (400, -32022)),
        (method, with("2026-07-28", true, "no/such"), (400, -32020)),
        (&[], with("2026-07-28", true, "no/such"), (404, -32601)),
    ] {
        let got = odd(&weir, &[], headers, &body).await;
        assert_eq!(told(&got), wanted, "{headers:?} {body}: {}", got.body);
    }
}

#[tokio::test]
async fn what_the_revision_removed_is_unknown() {
    let weir = Weir::start("", "");
    for method in [
        "initialize",
        "ping",
        "logging/setLevel",
        "resources/subscribe",
        "resources/unsubscribe",
        "roots/list",
        "sampling/createMessage",
        "Tools/list",
        "tools/list/",
        "",
    ] {
        let got = modern(&weir.url, None, method, json!({"protocolVersion": "2025-11-25"})).await;
        assert_eq!(told(&got), (404, -32601), "{method}: {}", got.body);
        assert!(!got.headers.contains_key("mcp-session-id"));
    }
    // A long name is not told back whole.
    let got = modern(&weir.url, None, &"x".repeat(5000), json!({})).await;
    assert_eq!(told(&got), (404, -32601));
    assert!(got.body.len() < 300, "{}", got.body);
}

#[tokio::test]
async fn unknown_names_and_wrong_params_are_answers() {
    let weir = Weir::start("", "");
    for (method, params) in [
        ("tools/call", json!({"name": "weir__nothing", "arguments": {}})),
        ("tools/call", json!({"name": "nothing", "arguments": {}})),
        ("tools/call", json!({"arguments": {}})),
        ("tools/call", json!({"name": 7})),
        ("tools/list", json!({"cursor": "not-one-of-ours"})),
        ("tools/list", json!({"cursor": ""})),
        ("tools/list", json!({"cursor": 7})),
        ("prompts/get", json!({"name": "weir__nothing"})),
        ("resources/read", json!({"uri": "file:///nothing"})),
        ("subscriptions/listen", json!({})),
        ("subscriptions/listen", json!({"notifications": 1})),
    ] {
        let got = modern(&weir.url, None, method, params.clone()).await;
        assert_eq!(told(&got), (200, -32602), "{method} {params}: {}", got.body);
    }
    // A wrong argument is the model's to mend, so it reads it.
    let answer = call(&weir.url, "weir__search", json!({})).await;
    assert_eq!(answer["result"]["isError"], true, "{answer}");
    assert_eq!(answer["result"]["resultType"], "complete");
}

#[tokio::test]
async fn the_gateways_own_tools_answer() {
    let weir = Weir::start(
        "",
        "[upstreams.pay]\nurl = \"https://x.example/\"\nbearer = \"${T3_NOT_SET}\"",
    );
    let answer = call(&weir.url, "weir__status", json!({})).await;
    let text = answer["result"]["content"][0]["text"].as_str().unwrap();
    let status: Value = serde_json::from_str(text).unwrap();
    assert_eq!(status["upstreams"][0]["upstream"], "pay");
    assert_eq!(status["upstreams"][0]["state"], "dormant");
    assert!(status["upstreams"][0]["why"].as_str().unwrap().contains("T3_NOT_SET"));
    let answer = call(&weir.url, "weir__search", json!({"query": "STATE of servers"})).await;
    let text = answer["result"]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("weir__status"), "{text}");
}

#[tokio::test]
async fn ids_come_back_as_they_were_written() {
    let weir = Weir::start("", "");
    for id in [
        "0",
        "-1",
        "1.0",
        "1e3",
        "12345678901234567890123",
        "\"\"",
        "\"7\"",
        r#""a\u0041\/é""#,
        "\"\u{1F980}\"",
    ] {
        for (method, extra) in
            [("tools/list", ""), ("no/such", ""), ("tools/call", r#""name":"weir__status","#)]
        {
            let body = format!(
                r#"{{"id": {id} ,"jsonrpc":"2.0","method":"{method}","params":{{{extra}"_meta":{{"{VERSION}":"2026-07-28","{CAPABILITIES}":{{}}}}}}}}"#
            );
            let mut headers = vec![("mcp-protocol-version", "2026-07-28"), ("mcp-method", method)];
            if !extra.is_empty() {
                headers.push(("mcp-name", "weir__status"));
            }
            let got = post(&weir.url, &headers, body).await;
            assert!(got.body.contains(&format!("\"id\":{id},")), "{id}: {}", got.body);
        }
    }
}

#[tokio::test]
async fn sessions_mean_nothing() {
    let weir = Weir::start("", "");
    let list = request("tools/list", json!({}));
    for (name, value) in [("mcp-session-id", "made-up"), ("last-event-id", "s/1")] {
        let got = odd(&weir, &[], &[(name, value)], &list).await;
        assert_eq!(got.status, 200, "{}", got.body);
        assert!(!got.headers.contains_key("mcp-session-id"));
    }
    assert_eq!(weir.status().await["sessions"], 0);
}

#[tokio::test]
async fn notifications_are_accepted_and_answers_are_not() {
    let weir = Weir::start("", "");
    let cancelled = json!({"jsonrpc": "2.0", "method": "notifications/cancelled",
        "params": {"requestId": 1}});
    let got = odd(&weir, &[], &[], &cancelled).await;
    assert_eq!((got.status, got.body.as_str()), (202, ""));
    let headers = [("mcp-protocol-version", "2026-07-28")];
    let got = post(&weir.url, &headers, r#"{"jsonrpc":"2.0","id":1,"result":{}}"#).await;
    assert_eq!(told(&got), (400, -32600), "{}", got.body);
}

#[tokio::test]
async fn lists_come_in_pages() {
    let weir = Weir::start("page_size = 1", "");
    let mut names = Vec::new();
    let mut cursor = None;
    loop {
        let params = cursor.as_ref().map_or(json!({}), |c| json!({"cursor": c}));
        let result = modern(&weir.url, None, "tools/list", params).await.answer()["result"].clone();
        let tools = result["tools"].as_array().unwrap().clone();
        assert_eq!(tools.len(), 1, "{result}");
        names.push(tools[0]["name"].as_str().unwrap().to_owned());
        assert_eq!(result["resultType"], "complete");
        match result["nextCursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => break,
        }
    }
    assert_eq!(names, ["weir__status", "weir__search", "weir__why"]);
    // A cursor is good for its own list only, and not when it was tampered with.
    let good = cursor.unwrap();
    for (method, cursor) in [
        ("prompts/list", good.clone()),
        ("tools/list", format!("{good}A")),
        ("tools/list", "A".repeat(9000)),
    ] {
        let got = modern(&weir.url, None, method, json!({"cursor": cursor})).await;
        assert_eq!(told(&got), (200, -32602), "{method}: {}", got.body);
        assert!(got.body.len() < 500);
    }
}

#[tokio::test]
async fn calls_are_counted_with_their_outcome() {
    let weir = Weir::start("", "");
    call(&weir.url, "weir__status", json!({})).await;
    call(&weir.url, "weir__nothing", json!({})).await;
    let (status, page) = get(&format!("{}/metrics", weir.admin)).await;
    assert_eq!(status, 200);
    for line in [
        r#"weir_calls_total{upstream="weir",method="tools/call",outcome="ok",reason=""} 1"#,
        r#"outcome="refused",reason="unknown_name"} 1"#,
    ] {
        assert!(page.contains(line), "{line} in\n{page}");
    }
}
