//! A peer that has a connection to itself, whatever carries it: both eras on one pipe. Each message
//! shows which it is of, and `initialize` opens the one session that a pipe can have
//! (2026-07-28 basic/versioning; basic/transports/index, "custom transports").

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::call::{Consumer, Strays};
use crate::failure::Reason;
use crate::observe::metrics::OTHER;
use crate::protocol::message::{Frame, Kind, response};
use crate::protocol::meta::{RequestMeta, cancelled_id};

use super::canonical::meta_of;
use super::jobs::{Jobs, Place};
use super::legacy::{self, Handled, Running, Step};
use super::listen::Feed;
use super::refused::{Refused, label};
use super::session::Session;
use super::{Edge, access::Access, modern};

/// Messages that wait for the peer to read.
pub const OUT_MAX: usize = 1024;

/// How often the end of the last calls is looked for, once the peer says no more.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// One peer on a connection of its own.
pub struct Pipe {
    edge: Arc<Edge>,
    consumer: Arc<Consumer>,
    transport: &'static str,
    tx: mpsc::Sender<Bytes>,
    // Modern requests in flight, by raw id.
    running: Jobs,
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
        Pipe { edge, consumer, transport, tx, running: Jobs::default(), session: None }
    }

    /// Take one message of the peer.
    pub async fn hear(&mut self, message: Bytes) {
        match Frame::scan(message) {
            Ok(frame) => self.take(frame).await,
            Err(e) => self.refuse(b"", OTHER, &e.into()).await,
        }
    }

    /// Refuse a message that is too large to be read.
    pub async fn too_long(&self, max: usize) {
        let text = format!("the message is longer than {max} bytes (gateway.max_body)");
        self.refuse(b"", OTHER, &Refused::too_large(text)).await;
    }

    async fn refuse(&self, id: &[u8], method: &'static str, refused: &Refused) {
        let revision = self.session.as_ref().map_or("", |s| s.revision.as_str());
        refused.note(&self.edge, &self.consumer.name, method, self.transport, revision);
        self.say(refused.message(id)).await;
    }

    /// The peer says no more: wait for the calls under way, as long as it reads. What would wait
    /// for the peer, or never end, ends.
    pub async fn finish(&self) {
        // Streams of notices say farewell by themselves when the gateway stops.
        let stopping = self.edge.stop.is_cancelled();
        if !stopping {
            self.running.cancel_endless();
        }
        if let Some(session) = &self.session {
            session.ended.cancel();
            session.watches.lock().expect("no panic while held").clear();
        }
        while (!self.running.is_empty()
            || self.session.as_ref().is_some_and(|s| !s.running.is_empty()))
            && !self.tx.is_closed()
        {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The peer is gone: nobody waits for the calls under way, and its session is over.
    pub fn abandon(&self) {
        self.running.cancel_all();
        if let Some(session) = &self.session {
            session.ended.cancel();
            session.watches.lock().expect("no panic while held").clear();
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
                    Err(text) => {
                        let refused = Refused::new(Reason::InvalidParams, text);
                        self.refuse(&id, label(&frame), &refused).await;
                    }
                }
            }
            (None, Kind::Request) if frame.method() == "ping" => {
                self.say(response(&id, Kind::Result, b"{}")).await;
            }
            (None, Kind::Request) => {
                let refused = Refused::new(Reason::NoSession, "send `initialize` first");
                self.refuse(&id, label(&frame), &refused).await;
            }
            (None, _) => {}
            (Some(session), _) => {
                let session = session.clone();
                let handled =
                    legacy::handle(&self.edge, &session, self.transport, frame, None).await;
                self.carry(handled, None).await;
            }
        }
    }

    async fn modern(&mut self, frame: Frame, meta: Result<Option<RequestMeta>, String>) {
        let (id, method) = (frame.id().unwrap_or_default(), label(&frame));
        if frame.kind() != Kind::Request {
            return;
        }
        let begun = match modern::checked(meta, |_| Ok(())) {
            // Before anything is begun: what is refused must not have been done.
            Ok(checked) => self.running.register(&id).map(|place| (checked, place)),
            Err(refused) => Err(refused),
        };
        let handled = match begun {
            Ok(((meta, revision), place)) => {
                let (edge, consumer) = (&self.edge, &self.consumer);
                modern::handle(
                    edge,
                    consumer,
                    self.transport,
                    frame,
                    meta,
                    revision,
                    None,
                    Strays::default(),
                )
                .await
                .map(|handled| (handled, place))
            }
            Err(refused) => Err(refused),
        };
        match handled {
            Ok((handled, place)) => self.carry(handled, Some(place)).await,
            Err(refused) => self.refuse(&id, method, &refused).await,
        }
    }

    // A session keeps its own book; for a request of the newest revision there is a place in ours.
    async fn carry(&self, handled: Handled, place: Option<Place>) {
        match handled {
            Handled::Accepted => {}
            Handled::Message(message) => self.say(message).await,
            Handled::Prepared(prepared, id) => self.say(prepared.whole(&id)).await,
            Handled::Running(running) => {
                let tx = self.tx.clone();
                tokio::spawn(async move {
                    let Some(place) = place else { return run(running, tx).await };
                    tokio::select! {
                        () = run(running, tx) => {}
                        () = place.cancel.cancelled() => {}
                    }
                });
            }
            Handled::Listen(wish) => {
                let Some(place) = place else { return };
                place.endless();
                let (edge, tx) = (self.edge.clone(), self.tx.clone());
                let access = Access::of_pipe(&edge.gateway, &self.consumer);
                tokio::spawn(async move {
                    let feed = Feed::of_request(&edge, access, &place.id, wish);
                    tokio::select! {
                        () = listening(&edge, feed, &tx) => {}
                        () = place.cancel.cancelled() => {}
                    }
                });
            }
        }
    }

    // 2026-07-28 basic/transports/stdio: on a shared pipe cancellation is a notification.
    fn cancel(&self, frame: &Frame) {
        if let Some(id) = cancelled_id(frame) {
            self.running.cancel(&id);
        }
    }

    fn tell_changes(&self, session: &Arc<Session>) {
        let access = Access::of_pipe(&self.edge.gateway, &self.consumer);
        legacy::told_now(&self.edge, session);
        let mut feed = Feed::of_session(&self.edge, access, session, false);
        let (tx, ended) = (self.tx.downgrade(), session.ended.clone());
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    message = feed.next() => message,
                    () = ended.cancelled() => None,
                };
                let Some(message) = message else { return };
                // Weak, so that this stream of changes does not keep a closed pipe open.
                let Some(tx) = tx.upgrade() else { return };
                if tx.send(message).await.is_err() {
                    return;
                }
            }
        });
    }
}

impl Drop for Pipe {
    // However the connection was lost.
    fn drop(&mut self) {
        self.abandon();
    }
}

async fn run(mut running: Running, tx: mpsc::Sender<Bytes>) {
    loop {
        match running.next().await {
            Step::Notice(notice) => {
                let _ = tx.send(notice).await;
            }
            Step::End(end) => {
                if let Some(said) = end {
                    let _ = tx.send(said.whole()).await;
                }
                return;
            }
        }
    }
}

async fn listening(edge: &Edge, mut feed: Feed, tx: &mpsc::Sender<Bytes>) {
    loop {
        let (message, last) = tokio::select! {
            message = feed.next() => (message, false),
            () = edge.stop.cancelled() => (feed.farewell(), true),
        };
        let Some(message) = message else { return };
        if tx.send(message).await.is_err() || last {
            return;
        }
    }
}
