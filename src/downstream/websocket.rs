//! WebSocket at the endpoint: subprotocol `mcp`, one message a text frame. No revision has it; it
//! is a custom transport that keeps the messages and their order (2026-07-28
//! basic/transports/index, "custom transports").

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Response, StatusCode};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::access::Access;
use super::body::OutBody;
use super::h1::Upgrade;
use super::headers::{Head, visible};
use super::pipe::{OUT_MAX, Pipe};
use super::{Edge, Slot, UNREAD_TIME};

/// The subprotocol that clients name and we echo.
const SUBPROTOCOL: &str = "mcp";
/// A peer that answers no ping for so many keep-alive times is gone.
const MISSED_MAX: u32 = 3;

/// Whether a request asks for a WebSocket.
pub fn wanted(parts: &Head) -> bool {
    let upgrade = parts.headers.text(&UPGRADE);
    upgrade.is_some_and(|v| v.split(',').any(|p| p.trim().eq_ignore_ascii_case("websocket")))
}

/// Accept it (RFC 6455, 4.2.2); the connection is served once the response has gone out.
///
/// # Errors
/// What the request lacks.
pub fn upgrade(
    edge: &Arc<Edge>,
    access: Access,
    parts: &Head,
    slot: Slot,
) -> Result<Response<OutBody>, &'static str> {
    let key = parts.headers.get(&SEC_WEBSOCKET_KEY).ok_or("Sec-WebSocket-Key is missing")?;
    if parts.headers.get(&SEC_WEBSOCKET_VERSION).is_none_or(|v| v != b"13") {
        return Err("Sec-WebSocket-Version must be 13");
    }
    let offered = parts.headers.get_all(&SEC_WEBSOCKET_PROTOCOL);
    let mut offered = offered.filter_map(visible).flat_map(|v| v.split(','));
    if !offered.any(|p| p.trim() == SUBPROTOCOL) {
        return Err("Sec-WebSocket-Protocol must offer mcp");
    }
    let stream = parts.extensions.get::<Upgrade<TcpStream>>().and_then(Upgrade::take);
    let stream = stream.ok_or("this connection cannot be upgraded; use HTTP/1.1")?;
    let accept = HeaderValue::from_str(&derive_accept_key(key))
        .map_err(|_| "Sec-WebSocket-Key is not valid")?;
    let tasks = edge.served.clone();
    let edge = edge.clone();
    tasks.spawn(async move {
        if let Ok((stream, begun)) = stream.await {
            serve(edge, access, stream, begun).await;
        }
        drop(slot);
    });
    let mut response = Response::new(OutBody::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

// `begun`: what the client has said already.
async fn serve(edge: Arc<Edge>, mut access: Access, stream: TcpStream, begun: Bytes) {
    let (max, every) = {
        let settings = &edge.gateway.current.load().config.gateway;
        (settings.max_body, settings.keep_alive)
    };
    let bounds = WebSocketConfig::default().max_message_size(Some(max)).max_frame_size(Some(max));
    let begun = begun.to_vec();
    let socket =
        WebSocketStream::from_partially_read(stream, begun, Role::Server, Some(bounds)).await;
    let (mut sink, mut stream) = socket.split();
    let (tx, mut rx) = mpsc::channel::<Bytes>(OUT_MAX);
    let (close, mut closing) = mpsc::channel::<CloseFrame>(1);
    let stop = edge.stop.clone();
    let unread = edge.clone();
    let mut writer = tokio::spawn(async move {
        let mut tick = tokio::time::interval(every);
        tick.reset();
        loop {
            let (frame, last) = tokio::select! {
                biased;
                frame = closing.recv() => (Message::Close(frame), true),
                message = rx.recv() => match message {
                    // Ours are always text; an upstream's was read as JSON, which is UTF-8.
                    Some(message) => match String::from_utf8(message.to_vec()) {
                        Ok(text) => (Message::text(text), false),
                        Err(_) => continue,
                    },
                    None => (Message::Close(stop.is_cancelled().then(away)), true),
                },
                _ = tick.tick() => (Message::Ping(Bytes::new()), false),
            };
            let written = tokio::time::timeout(UNREAD_TIME, sink.send(frame)).await;
            if written.is_err() {
                unread.gateway.observe.metrics.unread_dropped(1);
            }
            if last || !matches!(written, Ok(Ok(()))) {
                return;
            }
        }
    });
    let mut pipe = Pipe::new(edge.clone(), access.consumer().clone(), "websocket", tx);
    loop {
        let heard = tokio::select! {
            heard = tokio::time::timeout(every * MISSED_MAX, stream.next()) => heard,
            () = access.revoked() => {
                let reason = "the key no longer lets in".into();
                let _ = close.try_send(CloseFrame { code: CloseCode::Policy, reason });
                break;
            }
            // What is under way is still answered.
            () = edge.stop.cancelled() => {
                pipe.finish().await;
                break;
            }
            // Nothing can be said any more, so nothing more is heard.
            _ = &mut writer => break,
        };
        match heard {
            Ok(Some(Ok(Message::Text(text)))) => tokio::select! {
                () = pipe.hear(text.into()) => {}
                _ = &mut writer => break,
            },
            Ok(Some(Ok(Message::Binary(_)))) => {
                let reason = "messages are text frames".into();
                let _ = close.try_send(CloseFrame { code: CloseCode::Unsupported, reason });
                break;
            }
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)))) => {}
            Ok(Some(Err(tokio_tungstenite::tungstenite::Error::Capacity(_)))) => {
                let reason = "the message is too large (gateway.max_body)".into();
                let _ = close.try_send(CloseFrame { code: CloseCode::Size, reason });
                break;
            }
            // Closed, broken, or silent for too long.
            Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) | Err(_) => break,
        }
    }
    drop(pipe);
    if !writer.is_finished() {
        let _ = writer.await;
    }
}

fn away() -> CloseFrame {
    CloseFrame { code: CloseCode::Away, reason: "the gateway is stopping".into() }
}
