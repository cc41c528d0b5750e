//! What is checked before a message counts, and in which order.

use serde_json::json;
use weirkeeper::config::secret::{ConsumerKey, new_key};

use crate::harness::{Weir, modern, modern_request, post};
use crate::wire::{address, connect, exchange, raw, reason, request, status};

#[tokio::test]
async fn only_known_hosts_are_served() {
    let weir = Weir::start(r#"allowed_hosts = ["mcp.example.com"]"#, "");
    let with = |host: String| format!("GET /mcp HTTP/1.1\r\n{host}Connection: close\r\n\r\n");
    let port = address(&weir).rsplit(':').next().unwrap().to_owned();
    for good in [
        format!("127.0.0.1:{port}"),
        "localhost".into(),
        "LocalHost:1".into(),
        "[::1]:80".into(),
        "127.9.9.9".into(),
        "mcp.example.com".into(),
        "MCP.example.com:443".into(),
    ] {
        let got = raw(&weir, with(format!("Host: {good}\r\n"))).await;
        assert_eq!(status(&got), 405, "{good}: {got}");
    }
    for bad in
        ["evil.example", "mcp.example.com.evil.example", "localhost.evil", "10.0.0.1", "", "[::2]"]
    {
        let got = raw(&weir, with(format!("Host: {bad}\r\n"))).await;
        assert_eq!(status(&got), 403, "{bad:?}: {got}");
        assert!(got.contains("host_not_allowed"), "{got}");
        // An error without a request has no id.
        assert!(!got.contains("\"id\""), "{got}");
    }
    assert_eq!(status(&raw(&weir, with(String::new())).await), 403);
    let two = raw(&weir, with("Host: localhost\r\nHost: evil.example\r\n".into())).await;
    assert!(matches!(status(&two), 400 | 403), "{two}");
}

#[tokio::test]
async fn browsers_come_from_allowed_origins_only() {
    let weir = Weir::start(r#"allowed_origins = ["https://app.example"]"#, "");
    let (headers, body) = modern_request(None, "tools/list", json!({}));
    let from = async |origin: &str| {
        let mut headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        headers.push(("origin", origin));
        post(&weir.url, &headers, body.clone()).await
    };
    for good in
        ["https://app.example", "http://localhost:3000", "http://127.0.0.1", "http://[::1]:5"]
    {
        let got = from(good).await;
        assert_eq!(got.status, 200, "{good}: {}", got.body);
        assert_eq!(got.headers["access-control-allow-origin"], good);
        assert_eq!(got.headers["vary"], "Origin");
        let exposed = got.headers["access-control-expose-headers"].to_str().unwrap();
        assert!(exposed.contains("Mcp-Session-Id"), "{exposed}");
    }
    for bad in
        ["https://evil.example", "https://app.example.evil.example", "null", "http://app.example"]
    {
        let got = from(bad).await;
        assert_eq!((got.status, reason(&got).as_str()), (403, "origin_not_allowed"), "{bad}");
        assert!(!got.headers.contains_key("access-control-allow-origin"));
    }
}

#[tokio::test]
async fn a_preflight_needs_no_key() {
    let key = new_key();
    let digest = ConsumerKey::of(key.expose()).to_text();
    let weir = Weir::start(
        r#"allowed_origins = ["https://app.example"]"#,
        &format!("[consumers.a]\nkey = \"{digest}\""),
    );
    let ask = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,mcp-param-region"),
    ];
    let got = request(&weir.url, "OPTIONS", &ask, "").await;
    assert_eq!((got.status, got.body.as_str()), (204, ""));
    assert_eq!(got.headers["access-control-allow-origin"], "https://app.example");
    assert_eq!(got.headers["access-control-allow-methods"], "POST, GET, DELETE");
    let allowed = got.headers["access-control-allow-headers"].to_str().unwrap().to_lowercase();
    let allowed: Vec<_> = allowed.split(',').map(str::trim).collect();
    for needed in ["authorization", "content-type", "mcp-session-id", "mcp-method", "mcp-name"] {
        assert!(allowed.contains(&needed), "{needed} in {allowed:?}");
    }
    // The headers that a tool's schema asks for have names that nobody can list.
    assert!(allowed.contains(&"mcp-param-region") || allowed.contains(&"*"), "{allowed:?}");
    // The answer without a key is readable by the page too.
    let got = request(&weir.url, "POST", &[("origin", "https://app.example")], "{}").await;
    assert_eq!(got.status, 401);
    assert_eq!(got.headers["access-control-allow-origin"], "https://app.example");
}

#[tokio::test]
async fn with_consumers_everybody_needs_a_key() {
    let key = new_key();
    let digest = ConsumerKey::of(key.expose()).to_text();
    let weir = Weir::start("", &format!("[consumers.px-bot]\nkey = \"{digest}\""));
    let (headers, body) = modern_request(None, "tools/list", json!({}));
    let with = async |own: &[(&str, &str)]| {
        let mut headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        headers.extend_from_slice(own);
        post(&weir.url, &headers, body.clone()).await
    };
    let bearer = format!("Bearer {}", key.expose());
    let lower = format!("bearer {}", key.expose());
    for good in [("authorization", bearer.as_str()), ("authorization", &lower)] {
        assert_eq!(with(&[good]).await.status, 200);
    }
    assert_eq!(with(&[("x-api-key", key.expose())]).await.status, 200);
    // `Authorization` decides when there are both.
    let both = [("authorization", "Bearer weir_wrong"), ("x-api-key", key.expose())];
    for bad in [
        &[][..],
        &[("authorization", key.expose())],
        &[("authorization", "Basic d2Vpcg==")],
        &[("authorization", "Bearer ")],
        &[("authorization", "Bearer weir_wrong-wrong-wrong")],
        &[("x-api-key", "")],
        &[("x-api-key", &key.expose()[..20])],
        &both,
    ] {
        let got = with(bad).await;
        assert_eq!((got.status, reason(&got).as_str()), (401, "unauthenticated"), "{}", got.body);
        assert_eq!(got.headers["www-authenticate"], "Bearer realm=\"weirkeeper\"");
        assert!(!got.body.contains("weir_wrong") && !got.body.contains(&key.expose()[..20]));
    }
    assert!(!weir.log().contains("weir_wrong"), "{}", weir.log());
    assert!(!weir.log().contains(key.expose()));
    let refused = r#"weir_calls_total{upstream="_none",method="_other",outcome="refused",reason="unauthenticated"} 8"#;
    let page = weir.metrics().await;
    assert!(page.contains(refused), "{page}");
}

#[tokio::test]
async fn other_methods_and_paths_are_refused() {
    let weir = Weir::start("", "");
    for method in ["PUT", "PATCH", "HEAD", "GET", "DELETE", "BREW"] {
        let got = request(&weir.url, method, &[], "").await;
        assert_eq!(got.status, 405, "{method}");
        let says_how = got.body.contains("send its Mcp-Session-Id, or POST");
        assert_eq!(says_how, method == "GET", "{method}: {}", got.body);
        let allow = got.headers["allow"].to_str().unwrap();
        assert!(allow.contains("POST") && allow.contains("GET") && allow.contains("DELETE"));
    }
    let (headers, body) = modern_request(None, "tools/list", json!({}));
    let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    assert_eq!(post(&format!("{}/", weir.url), &headers, body.clone()).await.status, 200);
    for path in ["/", "/mcp/x", "/mcpx", "/metrics", "//mcp", "/mcp//"] {
        let url = format!("http://{}{path}", address(&weir));
        let got = post(&url, &headers, body.clone()).await;
        assert_eq!((got.status, reason(&got).as_str()), (404, "unknown_path"), "{path}");
    }
}

#[tokio::test]
async fn media_types_are_read_and_not_searched_for() {
    let weir = Weir::start("", "");
    let (headers, body) = modern_request(None, "tools/list", json!({}));
    let with = async |name: &str, value: &str| {
        let mut headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        headers.push((name, value));
        post(&weir.url, &headers, body.clone()).await
    };
    for (accept, wanted) in [
        ("application/json, text/event-stream", 200),
        ("*/*", 200),
        ("text/*;q=0.5, application/*", 200),
        ("text/html", 406),
        ("application/json-seq", 406),
        ("application/json;q=0, text/event-stream;q=0.0", 406),
    ] {
        assert_eq!(with("accept", accept).await.status, wanted, "{accept}");
    }
    // Events are what such a client gets, whatever the answer.
    let got = with("accept", "text/event-stream").await;
    assert_eq!(got.status, 200);
    for (kind, wanted) in [
        ("application/json", 200),
        ("Application/JSON;charset=UTF-8", 200),
        ("text/plain", 415),
        ("application/jsonp", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
    ] {
        assert_eq!(with("content-type", kind).await.status, wanted, "{kind}");
    }
    // A missing Accept accepts everything; a missing Content-Type names nothing.
    let mut only: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    assert_eq!(request(&weir.url, "POST", &only, &body).await.status, 415);
    only.push(("content-type", "application/json"));
    assert_eq!(request(&weir.url, "POST", &only, &body).await.status, 200);
}

/// A request that is wrong in every way is told the first of them; mended there, the next.
#[tokio::test]
async fn checks_come_in_their_order() {
    let key = new_key();
    let digest = ConsumerKey::of(key.expose()).to_text();
    let weir = Weir::start("max_body = \"1KiB\"", &format!("[consumers.a]\nkey = \"{digest}\""));
    let large = format!("{{{}", " ".repeat(2000));
    let bearer = format!("Bearer {}", key.expose());
    type Step<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, u16);
    let steps: [Step<'_>; 8] = [
        ("PUT", &[("host", "evil.example"), ("origin", "https://evil.example")], &large, 403),
        ("PUT", &[("origin", "https://evil.example")], &large, 403),
        ("PUT", &[], &large, 401),
        ("PUT", &[("authorization", &bearer)], &large, 405),
        ("POST", &[("authorization", &bearer), ("accept", "text/html")], &large, 406),
        ("POST", &[("authorization", &bearer)], &large, 415),
        ("POST", &[("authorization", &bearer), ("content-type", "application/json")], &large, 413),
        ("POST", &[("authorization", &bearer), ("content-type", "application/json")], "{", 400),
    ];
    for (at, (method, headers, body, wanted)) in steps.into_iter().enumerate() {
        let got = request(&weir.url, method, headers, body).await;
        assert_eq!(got.status, wanted, "step {at}: {}", got.body);
    }
    assert_eq!(modern(&weir.url, Some(key.expose()), "tools/list", json!({})).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_said_again_is_its_senders_until_the_file_changes() {
    let (px, new, sales) = (new_key(), new_key(), new_key());
    let file = |px: &weirkeeper::config::secret::Secret| {
        format!(
            "[consumers.px]\nkey = {:?}\n[consumers.sales]\nkey = {:?}\nview = \"none\"\n\
             [views.none]\nallow = [\"none__*\"]\n",
            ConsumerKey::of(px.expose()).to_text(),
            ConsumerKey::of(sales.expose()).to_text()
        )
    };
    let hosts = "allowed_hosts = [\"mcp.example.com\"]";
    let weir = Weir::start(hosts, &file(&px));
    let (headers, body) = modern_request(None, "tools/list", json!({}));
    let lines: String =
        headers.iter().flat_map(|(name, value)| [name, ": ", value.as_str(), "\r\n"]).collect();
    let ask = |key: &weirkeeper::config::secret::Secret| {
        format!(
            "POST /mcp HTTP/1.1\r\nhost: mcp.example.com\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\naccept: application/json, text/event-stream\r\n\
             content-length: {}\r\n{lines}\r\n{body}",
            key.expose(),
            body.len()
        )
    };
    let mut stream = connect(&weir).await;
    let sees = |got: &str| (status(got), got.contains("weir__status"));
    // Read, kept, told, known; then another one in between.
    for key in [&px, &px, &px, &px, &px, &sales, &px, &sales, &sales, &sales, &sales, &px] {
        let got = exchange(&mut stream, &ask(key)).await;
        assert_eq!(sees(&got), (200, key.expose() == px.expose()), "{got}");
    }
    let mut other = connect(&weir).await;
    for _ in 0..4 {
        assert_eq!(sees(&exchange(&mut stream, &ask(&px)).await), (200, true));
        assert_eq!(sees(&exchange(&mut other, &ask(&sales)).await), (200, false));
    }
    weir.rewrite(hosts, &file(&new));
    weir.logged("configuration reloaded").await;
    assert_eq!(status(&exchange(&mut stream, &ask(&px)).await), 401);
    assert_eq!(sees(&exchange(&mut other, &ask(&sales)).await), (200, false));
    weir.rewrite("", &file(&new));
    let reloaded = |log: String| log.matches("configuration reloaded").count() == 2;
    weir.until("reloaded again", |_| reloaded(weir.log())).await;
    let got = exchange(&mut other, &ask(&sales)).await;
    assert!(status(&got) == 403 && got.contains("host_not_allowed"), "{got}");
}
