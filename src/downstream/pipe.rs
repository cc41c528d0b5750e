//! A peer that has a connection to itself, whatever carries it: both eras on one pipe. Each message
//! shows which it is of, and `initialize` opens the one session that a pipe can have
//! (2026-07-28 basic/versioning; basic/transports/index, "custom transports").

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::call::Consumer;
use crate::protocol::error::{INVALID_PARAMS, INVALID_REQUEST};
use crate::protocol::message::{Frame, Kind, response};
use crate::protocol::meta::Members;

use super::canonical::meta_of;
use super::legacy::{self, Handled, Running};
use super::listen::Feed;
use super::session::{SESSION_CALLS_MAX, Session};
use super::{Edge, modern};

/// Messages that wait for the peer to read.
pub const OUT_MAX: usize = 1024;

/// How often the end of the last calls is looked for, once the peer says no more.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

type Cancels = Arc<Mutex<HashMap<Bytes, CancellationToken>>>;

/// One peer on a connection of its own.
pub struct Pipe {
    edge: Arc<Edge>,
    consumer: Arc<Consumer>,
    transport: &'static str,
    tx: mpsc::Sender<Bytes>,
    // Modern requests in flight, by raw id.
    running: Cancels,
    session: Option<Arc<Session>>,
}

impl Pipe {
    /// A pipe whose messages to the peer go to `tx`.
    pub fn new(
        edge: Arc<Edge>,
        consumer: Arc<Consumer>,
        transport: &'static str,
        tx: mpsc::Sender<Bytes>,
    ) -> Pipe {
        Pipe { edge, consumer, transport, tx, running: Cancels::default(), session: None }
    }

    /// Take one message of the peer.
    pub async fn hear(&mut self, message: Bytes) {
        match Frame::scan(message) {
            Ok(frame) => self.take(frame).await,
            Err(e) => self.say(legacy::error(b"", e.code(), e.to_string())).await,
        }
    }

    /// Refuse a message that is too large to be read.
    pub async fn too_long(&self, max: usize) {
        let text = format!("the message is longer than {max} bytes (gateway.max_body)");
        self.say(legacy::error(b"", INVALID_REQUEST, text)).await;
    }

    /// The peer says no more: wait for the calls under way, as long as it reads.
    pub async fn finish(&self) {
        while (!self.running.lock().expect("no panic while held").is_empty()
            || self.session.as_ref().is_some_and(|s| !s.running.is_empty()))
            && !self.tx.is_closed()
        {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The peer is gone: nobody waits for the calls under way, and its session is over.
    pub fn abandon(&self) {
        for token in self.running.lock().expect("no panic while held").values() {
            token.cancel();
        }
        if let Some(session) = &self.session {
            session.ended.cancel();
            for running in &session.running {
                running.cancel();
            }
        }
    }

    async fn say(&self, message: Bytes) {
        let _ = self.tx.send(message).await;
    }

    async fn take(&mut self, frame: Frame) {
        let id = frame.id().unwrap_or_default();
        let meta = meta_of(&frame);
        if modern::is_modern(&frame, meta.as_ref().ok().and_then(Option::as_ref)) {
            return self.modern(frame, meta).await;
        }
        if frame.kind() == Kind::Notification && frame.method() == "notifications/cancelled" {
            self.cancel(&frame);
        }
        match (&self.session, frame.kind()) {
            (None, Kind::Request) if frame.method() == "initialize" => {
                match legacy::hello(&frame) {
                    Ok(hello) => {
                        let session = legacy::pipe_session(self.consumer.clone(), hello);
                        self.say(legacy::welcome(&self.edge, &session, &id)).await;
                        self.tell_changes(&session);
                        self.session = Some(session);
                    }
                    Err(text) => self.say(legacy::error(&id, INVALID_PARAMS, text)).await,
                }
            }
            (None, Kind::Request) if frame.method() == "ping" => {
                self.say(response(&id, Kind::Result, b"{}")).await;
            }
            (None, Kind::Request) => {
                self.say(legacy::error(&id, INVALID_REQUEST, "send `initialize` first")).await;
            }
            (None, _) => {}
            (Some(session), _) => {
                let session = session.clone();
                let handled =
                    legacy::handle(&self.edge, &session, self.transport, frame, None).await;
                self.carry(handled, id, None).await;
            }
        }
    }

    async fn modern(
        &mut self,
        frame: Frame,
        meta: Result<Option<crate::protocol::meta::RequestMeta>, String>,
    ) {
        let id = frame.id().unwrap_or_default();
        let checked = meta
            .map_err(|e| crate::protocol::error::ErrorObject::new(INVALID_PARAMS, e))
            .and_then(modern::required)
            .and_then(|meta| modern::served(&meta).map(|revision| (meta, revision)));
        let handled = match checked {
            Ok((meta, revision)) => {
                modern::handle(
                    &self.edge,
                    &self.consumer,
                    self.transport,
                    frame,
                    meta,
                    revision,
                    None,
                    // There are no headers, so there is nothing to compare.
                    crate::call::Strays::default(),
                )
                .await
            }
            Err(e) => Err(e),
        };
        match handled {
            Ok(handled) => {
                let token = CancellationToken::new();
                self.carry(handled, id, Some(token)).await;
            }
            Err(e) => {
                self.say(response(&id, Kind::Error, e.to_raw().get().as_bytes())).await;
            }
        }
    }

    async fn carry(&self, handled: Handled, id: Bytes, token: Option<CancellationToken>) {
        match handled {
            Handled::Accepted => {}
            Handled::Message(message) => self.say(message).await,
            Handled::Running(running) => {
                let tx = self.tx.clone();
                let Some(token) = token else {
                    // A session keeps its own book of what can be cancelled.
                    tokio::spawn(run(running, tx));
                    return;
                };
                if !self.register(&id, &token) {
                    let text = "this id is already in flight, or too many are";
                    return self.say(legacy::error(&id, INVALID_REQUEST, text)).await;
                }
                let book = self.running.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = run(running, tx) => {}
                        () = token.cancelled() => {}
                    }
                    book.lock().expect("no panic while held").remove(&id);
                });
            }
            Handled::Listen(wish) => {
                let token = token.unwrap_or_default();
                if !self.register(&id, &token) {
                    let text = "this id is already in flight, or too many are";
                    return self.say(legacy::error(&id, INVALID_REQUEST, text)).await;
                }
                let (edge, consumer, tx, book) = (
                    self.edge.clone(),
                    self.consumer.clone(),
                    self.tx.clone(),
                    self.running.clone(),
                );
                tokio::spawn(async move {
                    let feed = Feed::of_request(&edge, &consumer, &id, wish);
                    let work = listening(&edge, feed, &tx);
                    tokio::select! {
                        () = work => {}
                        () = token.cancelled() => {}
                    }
                    book.lock().expect("no panic while held").remove(&id);
                });
            }
        }
    }

    fn register(&self, id: &Bytes, token: &CancellationToken) -> bool {
        let mut book = self.running.lock().expect("no panic while held");
        if book.len() >= SESSION_CALLS_MAX || book.contains_key(id) {
            return false;
        }
        book.insert(id.clone(), token.clone());
        true
    }

    // 2026-07-28 basic/transports/stdio: on a shared pipe cancellation is a notification.
    fn cancel(&self, frame: &Frame) {
        let Some(params) = frame.params() else { return };
        let Ok(members) = Members::read(&params) else { return };
        if let Some(id) = members.get("requestId") {
            let book = self.running.lock().expect("no panic while held");
            if let Some(token) = book.get(id.get().as_bytes()) {
                token.cancel();
            }
        }
    }

    fn tell_changes(&self, session: &Arc<Session>) {
        let (mut feed, tx) = (Feed::of_session(&self.edge, session), self.tx.downgrade());
        tokio::spawn(async move {
            loop {
                let message = feed.next().await;
                // Weak, so that this stream of changes does not keep a closed pipe open.
                let Some(tx) = tx.upgrade() else { return };
                if tx.send(message).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn run(running: Running, tx: mpsc::Sender<Bytes>) {
    let Running { mut work, mut notices } = running;
    let end = loop {
        tokio::select! {
            biased;
            Some(notice) = notices.recv() => { let _ = tx.send(notice).await; }
            end = &mut work => break end,
        }
    };
    while let Ok(notice) = notices.try_recv() {
        let _ = tx.send(notice).await;
    }
    if let Some(message) = end {
        let _ = tx.send(message).await;
    }
}

async fn listening(edge: &Edge, mut feed: Feed, tx: &mpsc::Sender<Bytes>) {
    loop {
        let (message, last) = tokio::select! {
            message = feed.next() => (Some(message), false),
            () = edge.stop.cancelled() => (feed.farewell(), true),
        };
        let Some(message) = message else { return };
        if tx.send(message).await.is_err() || last {
            return;
        }
    }
}
