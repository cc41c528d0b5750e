//! HTTP+SSE, the transport of 2024-11-05: a stream whose first event names where to post, and the
//! posts. The stream is the session (2024-11-05 basic/transports).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use dashmap::DashMap;
use tokio::sync::mpsc;

use crate::call::Consumer;
use crate::protocol::sse;

use super::body::Events;
use super::pipe::{OUT_MAX, Pipe};
use super::{Edge, Slot};

/// Where a client opens its stream.
pub const STREAM: &str = "/sse";
/// Where it posts to.
pub const MESSAGES: &str = "/messages";

/// Messages of a client that wait to be looked at; the next one waits with its request.
const IN_MAX: usize = 64;

struct Door {
    consumer: Arc<Consumer>,
    inbox: mpsc::Sender<Bytes>,
}

/// Open streams, by the secret in their endpoint. As many as there are streams.
#[derive(Default)]
pub struct Doors(DashMap<Box<str>, Door>);

// Forgets the stream when it ends, however that comes.
struct Open {
    edge: Arc<Edge>,
    secret: Box<str>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.edge.doors.0.remove(&self.secret);
    }
}

// The peer is gone when the body of its stream is dropped.
struct Peer(Pipe);

impl Drop for Peer {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// Open a stream for a consumer.
pub fn open(edge: &Arc<Edge>, consumer: &Arc<Consumer>, slot: Slot) -> Events {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    let secret: Box<str> = URL_SAFE_NO_PAD.encode(bytes).into();
    let (inbox, messages) = mpsc::channel(IN_MAX);
    edge.doors.0.insert(secret.clone(), Door { consumer: consumer.clone(), inbox });
    let open = Open { edge: edge.clone(), secret };
    let consumer = consumer.clone();
    Events::new(move |tx| serve(open, consumer, messages, tx, slot))
}

async fn serve(
    open: Open,
    consumer: Arc<Consumer>,
    mut messages: mpsc::Receiver<Bytes>,
    tx: mpsc::Sender<Bytes>,
    _slot: Slot,
) {
    let edge = open.edge.clone();
    let endpoint = format!("event: endpoint\ndata: {MESSAGES}?s={}\n\n", open.secret);
    if tx.send(endpoint.into()).await.is_err() {
        return;
    }
    let (say, mut said) = mpsc::channel::<Bytes>(OUT_MAX);
    let mut peer = Peer(Pipe::new(edge.clone(), consumer, "sse", say));
    let every = edge.gateway.current.load().config.gateway.keep_alive;
    let mut tick = tokio::time::interval(every);
    tick.reset();
    loop {
        let event = tokio::select! {
            message = messages.recv() => {
                let Some(message) = message else { return };
                peer.0.hear(message).await;
                continue;
            }
            message = said.recv() => match message {
                Some(message) => sse::event(&message),
                None => return,
            },
            _ = tick.tick() => sse::comment(""),
            () = edge.stop.cancelled() => return,
        };
        if tx.send(event).await.is_err() {
            return;
        }
    }
}

/// Hand a posted message to its stream; `false` if there is none, or it is somebody else's.
pub async fn deliver(
    edge: &Edge,
    consumer: &Consumer,
    query: Option<&str>,
    message: Bytes,
) -> bool {
    let secret = query.and_then(|q| q.split('&').find_map(|p| p.strip_prefix("s=")));
    let inbox = secret
        .and_then(|secret| edge.doors.0.get(secret))
        .filter(|door| door.consumer.name == consumer.name)
        .map(|door| door.inbox.clone());
    match inbox {
        Some(inbox) => inbox.send(message).await.is_ok(),
        None => false,
    }
}
