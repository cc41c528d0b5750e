//! HTTP+SSE of 2024-11-05.

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use weirkeeper::config::secret::{ConsumerKey, new_key};

use crate::harness::{PATIENCE, Weir, post};
use crate::{heard, hello, request, typescript, upstream, weir};

struct Door {
    body: Incoming,
    buffer: String,
    base: String,
    key: Option<String>,
    endpoint: String,
}

impl Door {
    async fn open(weir: &Weir, key: Option<&str>) -> Result<Door, u16> {
        let base = weir.url.trim_end_matches("/mcp").to_owned();
        let mut get =
            hyper::Request::get(format!("{base}/sse")).header("accept", "text/event-stream");
        if let Some(key) = key {
            get = get.header("x-api-key", key);
        }
        let client = Client::builder(TokioExecutor::new()).build_http();
        let response =
            client.request(get.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
        if response.status() != 200 {
            return Err(response.status().as_u16());
        }
        let body = response.into_body();
        let mut door = Door {
            body,
            buffer: String::new(),
            base,
            key: key.map(Into::into),
            endpoint: String::new(),
        };
        let first = door.event().await.unwrap();
        let data =
            first.strip_prefix("event: endpoint\ndata: ").unwrap_or_else(|| panic!("{first}"));
        assert!(data.starts_with("/messages?s="), "{data}");
        door.endpoint = String::from(data);
        Ok(door)
    }

    async fn event(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let event = event.to_owned();
                self.buffer = String::from(rest);
                if !event.starts_with(':') {
                    return Some(event);
                }
                continue;
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.unwrap()?.ok()?;
            self.buffer.push_str(std::str::from_utf8(frame.data_ref()?).unwrap());
        }
    }

    async fn message(&mut self) -> Option<Value> {
        let event = self.event().await?;
        Some(serde_json::from_str(event.lines().find_map(|l| l.strip_prefix("data: "))?).unwrap())
    }

    async fn say(&self, text: &str) -> u16 {
        let key = self.key.clone().unwrap_or_default();
        post(&format!("{}{}", self.base, self.endpoint), &[("x-api-key", &key)], text.to_owned())
            .await
            .status
    }

    async fn ask(&mut self, id: u64, method: &str, params: &Value) -> Value {
        assert_eq!(self.say(&request(id, method, params)).await, 202);
        loop {
            let message = self.message().await.unwrap();
            if message["id"] == id {
                return message;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_client_posts_and_reads_its_stream() {
    let up = upstream().await;
    let weir = weir(&up, "", "").await;
    let mut door = Door::open(&weir, None).await.unwrap();
    let mut old = hello();
    old["protocolVersion"] = json!("2024-11-05");
    let welcome = door.ask(1, "initialize", &old).await;
    assert_eq!(welcome["result"]["protocolVersion"], "2024-11-05", "{welcome}");
    assert_eq!(door.say(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await, 202);
    let list = door.ask(2, "tools/list", &json!({})).await;
    assert_eq!(list["result"]["tools"].as_array().unwrap().len(), 6);
    let params = json!({"name": "up__steps", "arguments": {}, "_meta": {"progressToken": 7}});
    assert_eq!(door.say(&request(3, "tools/call", &params)).await, 202);
    let step = door.message().await.unwrap();
    assert_eq!(
        (&step["method"], &step["params"]["progressToken"]),
        (&json!("notifications/progress"), &json!(7))
    );
    assert_eq!(door.message().await.unwrap()["result"]["content"][0]["text"], "done");
    weir.rewrite("builtin = false", &up.section("up", ""));
    assert_eq!(door.message().await.unwrap()["method"], "notifications/tools/list_changed");
    // The stream is the session: with it, what is under way ends, and its endpoint is no more.
    assert_eq!(door.say(&request(4, "tools/call", &json!({"name": "up__hang"}))).await, 202);
    heard(&up, "tools/call", 2).await;
    let (base, endpoint) = (door.base.clone(), door.endpoint.clone());
    drop(door);
    heard(&up, "notifications/cancelled", 1).await;
    let late = post(&format!("{base}{endpoint}"), &[], request(5, "ping", &json!({}))).await;
    assert_eq!(late.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_its_consumers_own() {
    let up = upstream().await;
    let (px, sales) = (new_key(), new_key());
    let digest = |k: &weirkeeper::config::secret::Secret| ConsumerKey::of(k.expose()).to_text();
    let consumers = format!(
        "[consumers.px]\nkey = {:?}\n[consumers.sales]\nkey = {:?}\n",
        digest(&px),
        digest(&sales)
    );
    let weir = weir(&up, "max_streams = 1", &consumers).await;
    assert_eq!(Door::open(&weir, None).await.err(), Some(401));
    let mut door = Door::open(&weir, Some(px.expose())).await.unwrap();
    assert_eq!(
        Door::open(&weir, Some(px.expose())).await.err(),
        Some(503),
        "one stream may be open"
    );
    door.key = Some(sales.expose().to_owned());
    assert_eq!(door.say(&request(1, "initialize", &hello())).await, 404, "as unknown as none");
    door.key = Some(px.expose().to_owned());
    assert!(door.ask(2, "initialize", &hello()).await["result"].is_object());
    door.endpoint = "/messages?s=made-up".into();
    assert_eq!(door.say(&request(3, "ping", &json!({}))).await, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_typescript_sdk_comes_in() {
    let up = upstream().await;
    let weir = weir(&up, "builtin = false", "").await;
    let url = weir.url.replace("/mcp", "/sse");
    let seen = tokio::task::spawn_blocking(move || typescript(&url, "SSEClientTransport"));
    assert_eq!(
        seen.await.unwrap(),
        json!({"names": ["up__fine", "up__steps", "up__hang"], "text": "fine"})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_away_leaves_nothing_behind() {
    let up = watched().await;
    let weir = weir(&up, "", "").await;
    // Each watches as much as one may; together more than an upstream may be asked for.
    for n in 0..12 {
        let mut door = Door::open(&weir, None).await.unwrap();
        door.ask(1, "initialize", &hello()).await;
        for i in 0..1000 {
            let params = json!({"uri": format!("up+thing://{n}-{i}")});
            let text = request(i + 2, "resources/subscribe", &params);
            assert_eq!(door.say(&text).await, 202);
        }
        let last = loop {
            let message = door.message().await.unwrap();
            if message["id"] == 1001 {
                break message;
            }
        };
        assert_eq!(last["result"], json!({}), "{n}: {last}");
    }
}

/// An upstream that tells of changes of any `thing://`.
async fn watched() -> crate::harness::scripted::Scripted {
    use crate::harness::scripted::{Reply, Scripted, tool};
    Scripted::start(&[tool("a", false)], |a| match a.method() {
        "initialize" => Some(Reply::Json(a.result(&json!({"protocolVersion": "2025-06-18",
            "capabilities": {"tools": {}, "resources": {"subscribe": true}},
            "serverInfo": {"name": "s", "version": "1"}})))),
        "resources/list" => Some(Reply::Json(a.result(&json!({"resources": []})))),
        "resources/templates/list" => Some(Reply::Json(
            a.result(&json!({"resourceTemplates": [{"uriTemplate": "thing://{n}", "name": "n"}]})),
        )),
        "resources/subscribe" | "resources/unsubscribe" => Some(Reply::Json(a.result(&json!({})))),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_tells_who_is_cut_off_on_any_connection() {
    let up = upstream().await;
    let mut weir = weir(&up, "drain_timeout = \"300ms\"", "").await;
    let mut door = Door::open(&weir, None).await.unwrap();
    door.ask(1, "initialize", &hello()).await;
    let hang = request(2, "tools/call", &json!({"name": "up__hang", "arguments": {}}));
    assert_eq!(door.say(&hang).await, 202);
    let mut socket = crate::websocket::connect(&weir, &[crate::websocket::MCP]).await.unwrap();
    crate::websocket::say(&mut socket, &request(1, "initialize", &hello())).await;
    crate::websocket::say(&mut socket, &hang).await;
    heard(&up, "tools/call", 2).await;
    let stopping = tokio::task::spawn_blocking(move || weir.stop());
    let told = |answer: &Value| {
        let failure = &answer["result"]["_meta"]["io.weirkeeper/failure"];
        (failure["reason"].clone(), failure["outcome"].clone())
    };
    let cut = (json!("retired"), json!("unknown"));
    let answer = door.message().await.expect("an answer before the end");
    assert_eq!(told(&answer), cut, "{answer}");
    let answer = loop {
        let message = crate::websocket::next(&mut socket).await.expect("an answer before the end");
        if message["id"] == 2 {
            break message;
        }
    };
    assert_eq!(told(&answer), cut, "{answer}");
    assert!(stopping.await.unwrap().success());
}
