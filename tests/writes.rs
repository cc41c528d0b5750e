//! What must hold when an upstream fails in the middle of a call: a write arrives once and its
//! fate is told truly, a read may be tried again, and the neighbours notice nothing.
#![allow(clippy::unwrap_used, missing_docs)]

mod harness;

use harness::scripted::{Arrival, Reply, Scripted, tool};
use harness::{Weir, call, modern, reason, tool_names};
use serde_json::{Value, json};

/// An upstream whose tools do what their names say.
async fn scripted() -> Scripted {
    let tools = [
        tool("write_cut", false),
        tool("read_cut", true),
        tool("write_hang", false),
        tool("write_busy", false),
        tool("write_away", false),
        tool("fine", true),
        tool("garbage", false),
        tool("wrong_id", false),
    ];
    Scripted::start(&tools, |arrival: &Arrival| {
        Some(match arrival.tool()? {
            // Half an answer, then the end.
            "write_cut" | "read_cut" => Reply::Cut(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{\"jso"
                    .to_vec(),
            ),
            "write_hang" => Reply::Hang(vec![]),
            "write_busy" => Reply::Http(429, vec![("retry-after", "7".into())], String::new()),
            "write_away" => {
                Reply::Http(503, vec![("retry-after", "1".into())], "<html>away</html>".into())
            }
            "garbage" => Reply::Json("<html>hello</html>".into()),
            "wrong_id" => {
                Reply::Json(json!({"jsonrpc": "2.0", "id": 999_999, "result": {}}).to_string())
            }
            _ => return None,
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_arrives_once_and_its_fate_is_told() {
    let upstream = scripted().await;
    let other = scripted().await;
    let weir = Weir::start(
        "",
        &format!(
            "[upstreams.up]\nurl = {:?}\ncall_timeout = \"1s\"\nbreaker = {{ consecutive = 100, min_calls = 100 }}\n\
             retry = {{ attempts = 2, budget = 1.0 }}\n[upstreams.other]\nurl = {:?}\n",
            upstream.url, other.url
        ),
    );
    weir.ready(&["up", "other"]).await;
    let failure = |answer: &Value| answer["result"]["_meta"]["io.weirkeeper/failure"].clone();

    let answer = call(&weir.url, "up__write_cut", json!({})).await;
    assert_eq!(
        (reason(&answer), &failure(&answer)["outcome"]),
        ("connection_lost", &json!("unknown")),
        "{answer}"
    );
    assert!(
        answer["result"]["content"][0]["text"].as_str().unwrap().contains("outcome is unknown")
    );
    assert_eq!(upstream.arrived("write_cut"), 1);

    let answer = call(&weir.url, "up__write_hang", json!({})).await;
    assert_eq!(
        (reason(&answer), &failure(&answer)["outcome"]),
        ("deadline_exceeded", &json!("unknown")),
        "{answer}"
    );
    assert_eq!(upstream.arrived("write_hang"), 1);

    for tool in ["garbage", "wrong_id"] {
        let answer = call(&weir.url, &format!("up__{tool}"), json!({})).await;
        assert_eq!(
            (reason(&answer), &failure(&answer)["outcome"]),
            ("garbled", &json!("unknown")),
            "{answer}"
        );
        assert_eq!(upstream.arrived(tool), 1);
    }

    // A read is tried again, as often as allowed.
    let answer = call(&weir.url, "up__read_cut", json!({})).await;
    assert_eq!(
        (reason(&answer), &failure(&answer)["outcome"]),
        ("connection_lost", &json!("no_effect")),
        "{answer}"
    );
    assert_eq!(upstream.arrived("read_cut"), 3);

    // 503 may come from a proxy, when the server behind it was at work already.
    let answer = call(&weir.url, "up__write_away", json!({})).await;
    assert_eq!(
        (reason(&answer), &failure(&answer)["outcome"], &failure(&answer)["retryable"]),
        ("throttled", &json!("unknown"), &json!(false)),
        "{answer}"
    );
    assert_eq!(upstream.arrived("write_away"), 1);
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;

    // 429: nothing was done, and the whole upstream pauses as it asked.
    let answer = call(&weir.url, "up__write_busy", json!({})).await;
    assert_eq!(
        (reason(&answer), &failure(&answer)["outcome"]),
        ("throttled", &json!("no_effect")),
        "{answer}"
    );
    assert_eq!(failure(&answer)["retryAfterMs"], 7000, "{answer}");
    let answer = call(&weir.url, "up__fine", json!({})).await;
    assert_eq!(reason(&answer), "throttled", "{answer}");
    assert_eq!((upstream.arrived("write_busy"), upstream.arrived("fine")), (1, 0));

    // Who has to look after them finds them: each write, and no read.
    let metrics = weir.metrics().await;
    for (reason, times) in [("connection_lost", 1), ("deadline_exceeded", 1), ("garbled", 2)] {
        let line =
            format!("weir_unknown_outcomes_total{{upstream=\"up\",reason=\"{reason}\"}} {times}");
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
    assert_eq!(weir.log().matches("\"effect\":\"unknown\"").count(), 5, "{}", weir.log());

    // The neighbour has noticed nothing.
    let answer = call(&weir.url, "other__fine", json!({})).await;
    assert_eq!(answer["result"]["content"][0]["text"], "fine", "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_opens_for_its_own_upstream_only() {
    let (bad, good) = (scripted().await, scripted().await);
    let weir = Weir::start(
        "",
        &format!(
            "[upstreams.bad]\nurl = {:?}\nbreaker = {{ consecutive = 3, open_for = \"1h\" }}\n[upstreams.good]\nurl = {:?}\n",
            bad.url, good.url
        ),
    );
    weir.ready(&["bad", "good"]).await;
    for _ in 0..3 {
        assert_eq!(reason(&call(&weir.url, "bad__write_cut", json!({})).await), "connection_lost");
    }
    let refused = call(&weir.url, "bad__write_cut", json!({})).await;
    assert_eq!(reason(&refused), "breaker_open", "{refused}");
    assert_eq!(bad.arrived("write_cut"), 3, "an open breaker lets nothing through");
    assert_eq!(
        call(&weir.url, "good__fine", json!({})).await["result"]["content"][0]["text"],
        "fine"
    );
    assert_eq!(tool_names(&weir.url, None).await.len(), 8 + 8 + 3, "lists do not depend on it");
    let status = weir.status().await;
    assert_eq!(harness::upstream(&status, "bad")["breaker"], "open");
    assert!(weir.metrics().await.lines().any(|l| l.starts_with("weir_breaker_state")
        && l.contains("\"bad\"")
        && l.ends_with(" 2")));
    // The log line has the same word.
    weir.logged("breaker_open").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_team_does_not_see_it_cannot_call() {
    let upstream = scripted().await;
    let (px, sales) =
        (weirkeeper::config::secret::new_key(), weirkeeper::config::secret::new_key());
    let digest = |k: &weirkeeper::config::secret::Secret| {
        weirkeeper::config::secret::ConsumerKey::of(k.expose()).to_text()
    };
    let weir = Weir::start(
        "",
        &format!(
            "[upstreams.up]\nurl = {:?}\n[views.px]\nupstreams = [\"up\"]\nallow = [\"up__fine\"]\n[views.sales]\nupstreams = []\n\
             [consumers.px]\nkey = {:?}\nview = \"px\"\nrate = {{ per_second = 0.001, burst = 2 }}\n[consumers.sales]\nkey = {:?}\nview = \"sales\"\n",
            upstream.url,
            digest(&px),
            digest(&sales)
        ),
    );
    weir.ready(&["up"]).await;
    assert_eq!(tool_names(&weir.url, Some(px.expose())).await, ["up__fine"]);
    assert!(tool_names(&weir.url, Some(sales.expose())).await.is_empty());
    let call = |key: String, name: &'static str| {
        let url = weir.url.clone();
        async move { modern(&url, Some(&key), "tools/call", json!({"name": name})).await.answer() }
    };
    let forbidden = call(px.expose().to_owned(), "up__write_cut").await;
    let unknown = call(px.expose().to_owned(), "up__write_xyz").await;
    assert_eq!(
        forbidden.to_string().replace("write_cut", "write_xyz"),
        unknown.to_string(),
        "forbidden and unknown are one answer"
    );
    assert_eq!(upstream.arrived("write_cut"), 0);
    for _ in 0..2 {
        let answer = call(px.expose().to_owned(), "up__fine").await;
        assert_eq!(answer["result"]["content"][0]["text"], "fine", "{answer}");
    }
    assert_eq!(reason(&call(px.expose().to_owned(), "up__fine").await), "quota_exceeded");
    let got = modern(&weir.url, None, "tools/list", json!({})).await;
    assert_eq!((got.status, got.headers.contains_key("www-authenticate")), (401, true));
    let log = weir.log();
    assert!(!log.contains(px.expose()) && !log.contains(sales.expose()));
}

/// A tool that creates something and knows a call again by its argument `key`.
fn creating(name: &str) -> Value {
    let schema = json!({"type": "object", "properties": {"key": {"type": "string"}, "n": {}}});
    json!({"name": name, "inputSchema": schema})
}

/// Cuts the connection at the first `cuts` arrivals of each call: `n` says which call.
fn cutting(cuts: usize) -> impl Fn(&Arrival) -> Option<Reply> + Send + Sync {
    let seen = std::sync::Mutex::new(std::collections::HashMap::<String, usize>::new());
    move |arrival| {
        arrival.tool()?;
        let call = arrival.message["params"]["arguments"]["n"].to_string();
        let mut seen = seen.lock().unwrap();
        let count = seen.entry(call).or_default();
        *count += 1;
        (*count <= cuts).then(|| Reply::Cut(vec![]))
    }
}

/// The raw arguments of each arrival of a tool.
fn arguments(upstream: &Scripted, tool: &str) -> Vec<String> {
    let own = |a: &Arrival| a.tool() == Some(tool);
    let raw = |a: &Arrival| {
        let from = a.body.find("\"arguments\":").unwrap();
        // The arguments of these tests hold no object.
        a.body[from..=from + a.body[from..].find('}').unwrap()].to_owned()
    };
    upstream.arrivals().iter().filter(|a| own(a)).map(raw).collect()
}

// As many retries as calls, and a few more.
const OFTEN: &str = "retry = { attempts = 3, backoff = \"1ms\", budget = 1.0 }\n\
    breaker = { enabled = false }\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_write_with_a_key_is_repeated_byte_for_byte_and_no_other() {
    let tools = [creating("create"), creating("plain"), tool("create_undeclared", false)];
    let upstream = Scripted::start(&tools, cutting(1)).await;
    let rules = "[upstreams.up.tools.\"create*\"]\nidempotency = { argument = \"key\" }";
    let weir = Weir::start("", &upstream.section("up", &format!("{OFTEN}{rules}")));
    weir.ready(&["up"]).await;
    let mut keys = std::collections::BTreeSet::new();
    for n in 0..20 {
        // Numbers and white space that no other program would write so.
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"arguments": {{ "n" : {n}.10 }},"name":"up__create","_meta":{{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{{}}}}}}}}"#
        );
        let headers = [
            ("mcp-protocol-version", "2026-07-28"),
            ("mcp-method", "tools/call"),
            ("mcp-name", "up__create"),
        ];
        let before = arguments(&upstream, "create").len();
        let answer = harness::post(&weir.url, &headers, body).await.answer();
        assert_eq!(answer["result"]["content"][0]["text"], "fine", "{answer}");
        let sent = arguments(&upstream, "create").split_off(before);
        assert_eq!(sent.len(), 2, "{sent:?}");
        assert!(sent.iter().all(|s| *s == sent[0]), "{sent:?}");
        let (key, rest) = sent[0].split_at("\"arguments\": {\"key\":\"".len() + 36);
        assert!(keys.insert(key.to_owned()), "{key} came twice");
        assert_eq!(rest, format!("\", \"n\" : {n}.10 }}"));
    }
    // What the agent gives is kept, and as good.
    let answer = call(&weir.url, "up__create", json!({"n": 100, "key": "mine"})).await;
    assert_eq!(answer["result"]["content"][0]["text"], "fine", "{answer}");
    let own = arguments(&upstream, "create");
    assert_eq!(own.iter().filter(|a| a.contains("\"mine\"")).count(), 2);
    // No key where it is no text, where the tool declares none, and where nobody asked for one.
    for (n, name, arguments) in [
        (101, "create", json!({"n": 101, "key": null})),
        (102, "create_undeclared", json!({"n": 102})),
        (103, "plain", json!({"n": 103})),
    ] {
        let answer = call(&weir.url, &format!("up__{name}"), arguments).await;
        let failure = &answer["result"]["_meta"]["io.weirkeeper/failure"];
        assert_eq!((reason(&answer), &failure["outcome"]), ("connection_lost", &json!("unknown")));
        let arrived = upstream.arrivals();
        let arrived = arrived.iter().filter(|a| a.message["params"]["arguments"]["n"] == n).count();
        assert_eq!(arrived, 1, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_a_header_is_the_same_in_each_attempt() {
    let upstream = Scripted::start(&[tool("create", false)], cutting(1)).await;
    let key = "idempotency = { header = \"Idempotency-Key\" }\n";
    let weir = Weir::start("", &upstream.section("up", &format!("{key}{OFTEN}")));
    weir.ready(&["up"]).await;
    for n in 0..3 {
        let answer = call(&weir.url, "up__create", json!({"n": n})).await;
        assert_eq!(answer["result"]["content"][0]["text"], "fine", "{answer}");
    }
    let keys: Vec<_> = upstream
        .arrivals()
        .iter()
        .filter(|a| a.tool().is_some())
        .map(|a| a.headers["idempotency-key"].clone())
        .collect();
    assert_eq!(keys.len(), 6);
    for call in keys.chunks(2) {
        assert!(call.iter().all(|k| *k == call[0] && k.len() == 36), "{keys:?}");
    }
    assert_eq!(keys.iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
    // Still no answer after all attempts: the agent learns that, and under which rule.
    let upstream = Scripted::start(&[tool("create", false)], cutting(9)).await;
    let weir = Weir::start("", &upstream.section("up", &format!("{key}{OFTEN}")));
    weir.ready(&["up"]).await;
    let answer = call(&weir.url, "up__create", json!({"n": 0})).await;
    assert_eq!(upstream.arrived("create"), 4);
    let text = answer["result"]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("outcome is unknown") && text.contains("same idempotency key"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_in_answer_to_a_repetition_leaves_the_first_attempt_in_doubt() {
    // The first is cut; the second is told that the first is still being worked on.
    let seen = std::sync::Mutex::new(std::collections::HashSet::new());
    let upstream = Scripted::start(&[tool("create", false)], move |a: &Arrival| {
        a.tool()?;
        let n = a.message["params"]["arguments"]["n"].as_i64()?;
        if seen.lock().unwrap().insert(n) {
            return Some(Reply::Cut(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{".to_vec()));
        }
        Some(match n {
            0 => Reply::Json(a.result(
                &json!({"isError": true, "content": [{"type": "text", "text": "key in progress"}]}),
            )),
            1 => Reply::Json(
                json!({"jsonrpc": "2.0", "id": a.message["id"],
                    "error": {"code": -32000, "message": "key in progress"}})
                .to_string(),
            ),
            _ => a.text("fine"),
        })
    })
    .await;
    let key = "idempotency = { header = \"Idempotency-Key\" }\n";
    let weir = Weir::start("", &upstream.section("up", &format!("{key}{OFTEN}")));
    weir.ready(&["up"]).await;
    for n in 0..2 {
        let answer = call(&weir.url, "up__create", json!({"n": n})).await;
        let failure = &answer["result"]["_meta"]["io.weirkeeper/failure"];
        assert_eq!((reason(&answer), &failure["outcome"]), ("connection_lost", &json!("unknown")));
        let text = answer["result"]["content"][0]["text"].as_str().unwrap();
        assert!(text.contains("key in progress"), "{text}");
    }
    // A good answer says what became of it.
    let answer = call(&weir.url, "up__create", json!({"n": 2})).await;
    assert_eq!(answer["result"]["content"][0]["text"], "fine", "{answer}");
    assert_eq!(upstream.arrived("create"), 6);
    assert!(!weir.log().contains("in progress"), "what upstreams say is not for the log");
}
