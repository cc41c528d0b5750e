//! HTTP+SSE, the transport of 2024-11-05: a stream whose first event names where to post, and the
//! posts. The stream is the session (2024-11-05 basic/transports).

use std::sync::Arc;

use bytes::Bytes;
use dashmap::DashMap;
use tokio::sync::mpsc;

use crate::call::Consumer;
use crate::protocol::sse;
use crate::seal::random_name;

use super::access::Access;
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

/// Open a stream for a consumer.
pub fn open(edge: &Arc<Edge>, access: Access, slot: Slot) -> Events {
    let secret = random_name();
    let (inbox, messages) = mpsc::channel(IN_MAX);
    let consumer = access.consumer().clone();
    edge.doors.0.insert(secret.clone(), Door { consumer, inbox });
    let open = Open { edge: edge.clone(), secret };
    Events::new(move |tx| serve(open, access, messages, tx, slot))
}

async fn serve(
    open: Open,
    mut access: Access,
    messages: mpsc::Receiver<Bytes>,
    tx: mpsc::Sender<Bytes>,
    _slot: Slot,
) {
    let edge = open.edge.clone();
    let endpoint = format!("event: endpoint\ndata: {MESSAGES}?s={}\n\n", open.secret);
    if tx.send(endpoint.into()).await.is_err() {
        return;
    }
    let (say, said) = mpsc::channel::<Bytes>(OUT_MAX);
    // Ends with the body of its stream, when that is dropped.
    let mut peer = Pipe::new(edge.clone(), access.consumer().clone(), "sse", say);
    // Side by side: what is heard may have to wait until what was said is written.
    let writing = write(&edge, said, tx);
    tokio::pin!(writing);
    tokio::select! {
        () = hear(&mut peer, messages) => return,
        () = &mut writing => return,
        () = access.revoked() => return,
        () = edge.stop.cancelled() => {}
    }
    // The gateway stops: what is under way is still answered.
    tokio::select! {
        () = peer.finish() => {}
        () = &mut writing => return,
    }
    drop(peer);
    writing.await;
}

async fn hear(peer: &mut Pipe, mut messages: mpsc::Receiver<Bytes>) {
    while let Some(message) = messages.recv().await {
        peer.hear(message).await;
    }
}

async fn write(edge: &Edge, mut said: mpsc::Receiver<Bytes>, tx: mpsc::Sender<Bytes>) {
    let every = edge.gateway.current.load().config.gateway.keep_alive;
    let mut tick = tokio::time::interval(every);
    tick.reset();
    loop {
        let event = tokio::select! {
            message = said.recv() => match message {
                Some(message) => sse::event(&message),
                None => return,
            },
            _ = tick.tick() => sse::comment(""),
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
