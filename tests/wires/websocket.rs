//! WebSocket.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use weirkeeper::config::secret::{ConsumerKey, new_key};

use crate::harness::{PATIENCE, Weir};
use crate::{heard, hello, modern, request, typescript, upstream, weir};

pub type Socket = WebSocketStream<TcpStream>;

pub async fn connect(weir: &Weir, headers: &[(&'static str, &str)]) -> Result<Socket, Error> {
    let address = weir.url.trim_start_matches("http://").trim_end_matches("/mcp");
    let mut request = format!("ws://{address}/mcp").into_client_request().unwrap();
    for (k, v) in headers {
        request.headers_mut().insert(*k, v.parse().unwrap());
    }
    let stream = TcpStream::connect(address).await.unwrap();
    let (socket, response) = tokio_tungstenite::client_async(request, stream).await?;
    assert_eq!(response.headers()["sec-websocket-protocol"], "mcp");
    Ok(socket)
}

pub const MCP: (&str, &str) = ("sec-websocket-protocol", "mcp");

pub async fn say(socket: &mut Socket, text: &str) {
    socket.send(Message::text(text)).await.unwrap();
}

/// The next message; `None` when the gateway has closed.
pub async fn next(socket: &mut Socket) -> Option<Value> {
    loop {
        let frame = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
        match frame {
            Some(Ok(Message::Text(text))) => return Some(serde_json::from_str(&text).unwrap()),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            _ => return None,
        }
    }
}

async fn ask(socket: &mut Socket, id: u64, method: &str, params: &Value) -> Value {
    say(socket, &request(id, method, params)).await;
    loop {
        let message = next(socket).await.unwrap();
        if message["id"] == id {
            return message;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_eras_speak_over_one_socket() {
    let up = upstream().await;
    let weir = weir(&up, "", "").await;
    let mut socket = connect(&weir, &[MCP]).await.unwrap();
    let found = ask(&mut socket, 1, "server/discover", &modern(json!({}))).await;
    assert_eq!(found["result"]["supportedVersions"], json!(["2026-07-28"]), "{found}");
    let welcome = ask(&mut socket, 2, "initialize", &hello()).await;
    assert_eq!(welcome["result"]["protocolVersion"], "2025-06-18", "{welcome}");
    let list = ask(&mut socket, 3, "tools/list", &json!({})).await;
    assert_eq!(list["result"]["tools"].as_array().unwrap().len(), 6, "{list}");
    // Progress comes before its answer, with the caller's own token.
    let params = json!({"name": "up__steps", "arguments": {}, "_meta": {"progressToken": "p"}});
    say(&mut socket, &request(4, "tools/call", &params)).await;
    let step = next(&mut socket).await.unwrap();
    assert_eq!(
        (&step["method"], &step["params"]["progressToken"]),
        (&json!("notifications/progress"), &json!("p"))
    );
    assert_eq!(next(&mut socket).await.unwrap()["result"]["content"][0]["text"], "done");
    let done = ask(&mut socket, 5, "tools/call", &modern(json!({"name": "up__fine"}))).await;
    assert_eq!(done["result"]["resultType"], "complete", "{done}");
    // What changes is told.
    weir.rewrite("builtin = false", &up.section("up", ""));
    assert_eq!(next(&mut socket).await.unwrap()["method"], "notifications/tools/list_changed");
    // What is no message is answered, and what is cancelled reaches the upstream.
    say(&mut socket, "{nonsense").await;
    assert_eq!(next(&mut socket).await.unwrap()["error"]["code"], -32700);
    say(&mut socket, &request(6, "tools/call", &json!({"name": "up__hang"}))).await;
    heard(&up, "tools/call", 3).await;
    say(
        &mut socket,
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":6}}"#,
    )
    .await;
    heard(&up, "notifications/cancelled", 1).await;
    // So is what was under way when the socket closes.
    say(&mut socket, &request(7, "tools/call", &json!({"name": "up__hang"}))).await;
    heard(&up, "tools/call", 4).await;
    drop(socket);
    heard(&up, "notifications/cancelled", 2).await;
    assert_eq!(up.arrived("hang"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_has_the_same_keeper() {
    let up = upstream().await;
    let key = new_key();
    let digest = ConsumerKey::of(key.expose()).to_text();
    let weir = weir(
        &up,
        "max_body = \"4KiB\"\nmax_streams = 1",
        &format!("[consumers.px]\nkey = {digest:?}\n"),
    )
    .await;
    let bearer = format!("Bearer {}", key.expose());
    let own = ("authorization", bearer.as_str());
    let status = async |headers: &[(&'static str, &str)]| match connect(&weir, headers).await {
        Err(Error::Http(response)) => response.status().as_u16(),
        Ok(_) => 101,
        Err(other) => panic!("{other}"),
    };
    assert_eq!(status(&[MCP]).await, 401);
    assert_eq!(status(&[own]).await, 400, "without the subprotocol");
    assert_eq!(status(&[MCP, own, ("origin", "https://evil.example")]).await, 403);
    let mut socket = connect(&weir, &[MCP, own]).await.unwrap();
    assert_eq!(status(&[MCP, own]).await, 503, "one stream may be open");
    // Too large, or not text: closed, with the reason.
    say(&mut socket, &"x".repeat(5000)).await;
    let end = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
    match end {
        Some(Ok(Message::Close(Some(frame)))) => {
            assert!(frame.reason.contains("max_body"), "{frame}");
        }
        Some(Err(_)) | None => {}
        other => panic!("{other:?}"),
    }
    drop(socket);
    weir.until("its place is free", |_| true).await;
    let mut socket = loop {
        match connect(&weir, &[MCP, own]).await {
            Ok(socket) => break socket,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    socket.send(Message::binary(vec![1, 2])).await.unwrap();
    assert!(next(&mut socket).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_is_let_go() {
    let up = upstream().await;
    let weir = weir(&up, "keep_alive = \"100ms\"", "").await;
    // It answers no ping, since nobody reads for it.
    let socket = connect(&weir, &[MCP]).await.unwrap();
    let mut gone = false;
    for _ in 0..600 {
        gone = weir.metrics().await.contains("weir_streams 0");
        if gone {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(gone, "{}", weir.metrics().await);
    drop(socket);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_typescript_sdk_comes_in() {
    let up = upstream().await;
    let weir = weir(&up, "builtin = false", "").await;
    let url = weir.url.replace("http://", "ws://");
    let seen = tokio::task::spawn_blocking(move || typescript(&url, "WebSocketClientTransport"));
    assert_eq!(
        seen.await.unwrap(),
        json!({"names": ["up__fine", "up__steps", "up__hang"], "text": "fine"})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_ends_with_its_key() {
    let up = upstream().await;
    let key = new_key();
    let consumer = |key: &weirkeeper::config::secret::Secret| {
        format!("[consumers.px]\nkey = {:?}\n", ConsumerKey::of(key.expose()).to_text())
    };
    let weir = weir(&up, "", &consumer(&key)).await;
    let bearer = format!("Bearer {}", key.expose());
    let mut socket = connect(&weir, &[MCP, ("authorization", &bearer)]).await.unwrap();
    assert!(ask(&mut socket, 1, "initialize", &hello()).await["result"].is_object());
    weir.rewrite("", &(up.section("up", "") + &consumer(&new_key())));
    let end = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
    let Some(Ok(Message::Close(Some(frame)))) = end else { panic!("{end:?}") };
    assert!(frame.reason.contains("key"), "{frame}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_was_not_done() {
    let up = upstream().await;
    let weir = weir(&up, "", "").await;
    let mut socket = connect(&weir, &[MCP]).await.unwrap();
    // A caller that can be asked: its calls run on their own.
    let mut params = modern(json!({"name": "up__hang", "arguments": {}}));
    params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({"elicitation": {}});
    let twice = request(7, "tools/call", &params);
    say(&mut socket, &twice).await;
    say(&mut socket, &twice).await;
    let refused = next(&mut socket).await.unwrap();
    assert_eq!(refused["error"]["data"]["reason"], "duplicate_id", "{refused}");
    say(&mut socket, &request(8, "tools/list", &modern(json!({})))).await;
    assert_eq!(next(&mut socket).await.unwrap()["id"], 8);
    assert_eq!(up.asked("tools/call"), 1, "the second was not carried");
    // The first one's id is free again when it has ended.
    let cancel =
        json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}});
    say(&mut socket, &cancel.to_string()).await;
    heard(&up, "notifications/cancelled", 1).await;
    say(&mut socket, &twice).await;
    heard(&up, "tools/call", 2).await;
}
