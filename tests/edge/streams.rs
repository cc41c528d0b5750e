//! Notices that no request asked for: the GET stream of a session, and `subscriptions/listen`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Weir, modern_request, post, send};
use crate::wire::{Old, Stream, code, reason, request};

/// Time in which a change would have been told: the debounce, twice.
const QUIET: Duration = Duration::from_millis(600);

async fn listen(weir: &Weir, id: &Value, wish: Value) -> Stream {
    let (headers, body) =
        modern_request(None, "subscriptions/listen", json!({"notifications": wish}));
    let mut body: Value = serde_json::from_str(&body).unwrap();
    body["id"] = id.clone();
    let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    Stream::of(send(&weir.url, &headers, body.to_string()).await)
}

#[tokio::test]
async fn a_session_hears_of_changed_lists() {
    let weir = Weir::start("", "");
    let old = Old::open(&weir.url, "2025-11-25").await;
    let mut stream = old.listen().await;
    assert_eq!((stream.status, stream.kind.as_str()), (200, "text/event-stream"));
    weir.rewrite("builtin = false", "");
    let told = stream.message().await.unwrap();
    assert_eq!(told, json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}));
    assert!(old.tools().await.is_empty());
    // Told once, and of nothing else.
    assert_eq!(stream.message_within(QUIET).await, None);
}

#[tokio::test]
async fn a_second_stream_takes_over_and_the_end_of_the_session_ends_it() {
    let weir = Weir::start("", "");
    let old = Old::open(&weir.url, "2025-06-18").await;
    let mut first = old.listen().await;
    let mut second = old.listen().await;
    assert_eq!(first.next().await, None);
    let mut third = old.listen().await;
    assert_eq!(second.next().await, None);
    weir.rewrite("builtin = false", "");
    // What the streams before it were told may have reached nobody: it is told of all lists.
    while third.message().await.unwrap()["method"] != "notifications/tools/list_changed" {}
    assert_eq!(old.delete().await, 204);
    while third.next().await.is_some() {}
    weir.until("no stream", |s| s["sessions"] == 0).await;
    let page = weir.metrics().await;
    assert!(page.contains("weir_streams 0"), "{page}");
}

#[tokio::test]
async fn the_get_stream_is_asked_for_properly() {
    let weir = Weir::start("", "");
    let old = Old::open(&weir.url, "2025-11-25").await;
    let get = async |accept: &str, version: &str| {
        let headers = [
            ("mcp-session-id", old.session.as_str()),
            ("accept", accept),
            ("mcp-protocol-version", version),
        ];
        request(&weir.url, "GET", &headers, "").await
    };
    assert_eq!(get("application/json", "2025-11-25").await.status, 406);
    assert_eq!(get("text/event-stream", "2031-01-01").await.status, 400);
}

#[tokio::test]
async fn a_listener_hears_what_it_wished_for_under_its_own_id() {
    let weir = Weir::start("", "");
    let all = json!({"toolsListChanged": true, "promptsListChanged": true,
        "resourcesListChanged": false, "somethingNew": true});
    let mut by_number = listen(&weir, &json!(7), all).await;
    let mut by_text = listen(&weir, &json!("7"), json!({"toolsListChanged": true})).await;
    let mut other = listen(&weir, &json!(8), json!({"promptsListChanged": true})).await;
    assert_eq!((by_number.status, by_number.kind.as_str()), (200, "text/event-stream"));
    let ack = by_number.message().await.unwrap();
    assert_eq!(ack["method"], "notifications/subscriptions/acknowledged");
    assert_eq!(
        ack["params"]["notifications"],
        json!({"toolsListChanged": true, "promptsListChanged": true})
    );
    let id = |m: &Value| m["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"].clone();
    assert_eq!(id(&ack), json!(7));
    assert_eq!(id(&by_text.message().await.unwrap()), json!("7"));
    assert_eq!(id(&other.message().await.unwrap()), json!(8));
    weir.rewrite("builtin = false", "");
    for (stream, own) in [(&mut by_number, json!(7)), (&mut by_text, json!("7"))] {
        let told = stream.message().await.unwrap();
        assert_eq!(told["method"], "notifications/tools/list_changed");
        assert_eq!(id(&told), own);
    }
    assert_eq!(other.message_within(QUIET).await, None);
}

#[tokio::test]
async fn a_stopping_gateway_says_farewell() {
    let mut weir = Weir::start("drain_timeout = \"2s\"", "");
    let old = Old::open(&weir.url, "2025-11-25").await;
    let mut get = old.listen().await;
    let mut stream = listen(&weir, &json!("x"), json!({"toolsListChanged": true})).await;
    stream.message().await.unwrap();
    let stopped = tokio::task::spawn_blocking(move || weir.stop());
    let last = stream.message().await.unwrap();
    assert_eq!(last["id"], "x");
    assert_eq!(last["result"]["resultType"], "complete");
    assert_eq!(last["result"]["_meta"]["io.modelcontextprotocol/subscriptionId"], "x");
    assert_eq!(stream.next().await, None);
    assert_eq!(get.next().await, None);
    assert!(stopped.await.unwrap().success());
}

#[tokio::test]
async fn open_streams_show_signs_of_life_and_are_bounded() {
    let weir = Weir::start("keep_alive = \"100ms\"\nmax_streams = 2", "");
    let old = Old::open(&weir.url, "2025-11-25").await;
    let mut first = old.listen().await;
    assert_eq!(first.next().await.unwrap().trim(), ":");
    let second = listen(&weir, &json!(1), json!({"toolsListChanged": true})).await;
    assert_eq!(second.status, 200);
    let (headers, body) =
        modern_request(None, "subscriptions/listen", json!({"notifications": {}}));
    let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let third = post(&weir.url, &headers, body.clone()).await;
    assert_eq!((third.status, reason(&third).as_str()), (503, "overloaded"), "{}", third.body);
    assert_eq!(third.headers["retry-after"], "5");
    assert_eq!(code(&third), -32603);
    let other = Old::open(&weir.url, "2025-11-25").await;
    let get = [("mcp-session-id", other.session.as_str()), ("accept", "text/event-stream")];
    assert_eq!(request(&weir.url, "GET", &get, "").await.status, 503);
    // A client that goes away gives its place back.
    drop(second);
    for _ in 0..600 {
        if weir.metrics().await.contains("weir_streams 1") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let fourth = Stream::of(send(&weir.url, &headers, body).await);
    assert_eq!(fourth.status, 200);
}
