//! A peer that has a connection to itself, whatever carries it: both eras on one pipe. Each message
//! shows which it is of, and `initialize` opens the one session that a pipe can have
//! (2026-07-28 basic/versioning; basic/transports/index, "custom transports").

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::call::{Consumer, Strays};
use crate::failure::Reason;
use crate::protocol::message::{Frame, Kind, response};
use crate::protocol::meta::{Members, RequestMeta};

use super::canonical::meta_of;
use super::legacy::{self, Handled, Running, last_word};
use super::listen::Feed;
use super::refused::{Refused, label};
use super::session::{SESSION_CALLS_MAX, Session};
use super::{Edge, access::Access, modern};

/// Messages that wait for the peer to read.
pub const OUT_MAX: usize = 1024;

/// How often the end of the last calls is looked for, once the peer says no more.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

struct Job {
    cancel: CancellationToken,
    // It goes on until it is ended: a stream of notices.
    endless: bool,
}

type Jobs = Arc<Mutex<HashMap<Bytes, Job>>>;

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
            Err(e) => {
                let refused = Refused::with_code(Reason::InvalidMessage, e.code(), e.to_string());
                self.refuse(b"", crate::observe::metrics::OTHER, &refused).await;
            }
        }
    }

    /// Refuse a message that is too large to be read.
    pub async fn too_long(&self, max: usize) {
        let text = format!("the message is longer than {max} bytes (gateway.max_body)");
        let code = crate::protocol::error::INVALID_REQUEST;
        let refused = Refused::with_code(Reason::TooLarge, code, text);
        self.refuse(b"", crate::observe::metrics::OTHER, &refused).await;
    }

    async fn refuse(&self, id: &[u8], method: &'static str, refused: &Refused) {
        let revision = self.session.as_ref().map_or("", |s| s.revision.as_str());
        refused.note(&self.edge, &self.consumer.name, method, self.transport, revision);
        self.say(refused.message(id)).await;
    }

    /// The peer says no more: wait for the calls under way, as long as it reads. What would wait
    /// for the peer, or never end, ends.
    pub async fn finish(&self) {
        for job in self.running.lock().expect("no panic while held").values() {
            if job.endless {
                job.cancel.cancel();
            }
        }
        if let Some(session) = &self.session {
            session.ended.cancel();
        }
        while (!self.running.lock().expect("no panic while held").is_empty()
            || self.session.as_ref().is_some_and(|s| !s.running.is_empty()))
            && !self.tx.is_closed()
        {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The peer is gone: nobody waits for the calls under way, and its session is over.
    pub fn abandon(&self) {
        for job in self.running.lock().expect("no panic while held").values() {
            job.cancel.cancel();
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
                self.carry(handled, id, None).await;
            }
        }
    }

    async fn modern(&mut self, frame: Frame, meta: Result<Option<RequestMeta>, String>) {
        let (id, method) = (frame.id().unwrap_or_default(), label(&frame));
        let handled = match modern::checked(meta, |_| Ok(())) {
            Ok((meta, revision)) => {
                let (edge, consumer) = (&self.edge, &self.consumer);
                // There are no headers, so there is nothing to compare.
                let none = Strays::default();
                modern::handle(edge, consumer, self.transport, frame, meta, revision, None, none)
                    .await
            }
            Err(refused) => Err(refused),
        };
        match handled {
            Ok(handled) => self.carry(handled, id, Some(CancellationToken::new())).await,
            Err(refused) => self.refuse(&id, method, &refused).await,
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
                if let Err(refused) = self.register(&id, &token, false) {
                    return self.refuse(&id, crate::observe::metrics::OTHER, &refused).await;
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
                if let Err(refused) = self.register(&id, &token, true) {
                    return self.refuse(&id, "subscriptions/listen", &refused).await;
                }
                let (edge, tx, book) = (self.edge.clone(), self.tx.clone(), self.running.clone());
                let access = Access::of_pipe(&edge.gateway, &self.consumer);
                tokio::spawn(async move {
                    let feed = Feed::of_request(&edge, access, &id, wish);
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

    fn register(
        &self,
        id: &Bytes,
        cancel: &CancellationToken,
        endless: bool,
    ) -> Result<(), Refused> {
        let mut book = self.running.lock().expect("no panic while held");
        if book.len() >= SESSION_CALLS_MAX {
            let text = "as many requests of this connection are under way as may be";
            return Err(Refused::new(Reason::Overloaded, text));
        }
        if book.contains_key(id) {
            let text = "a request with this id is already under way";
            return Err(Refused::new(Reason::DuplicateId, text));
        }
        book.insert(id.clone(), Job { cancel: cancel.clone(), endless });
        Ok(())
    }

    // 2026-07-28 basic/transports/stdio: on a shared pipe cancellation is a notification.
    fn cancel(&self, frame: &Frame) {
        let Some(params) = frame.params() else { return };
        let Ok(members) = Members::read(&params) else { return };
        if let Some(id) = members.get("requestId") {
            let book = self.running.lock().expect("no panic while held");
            if let Some(job) = book.get(id.get().as_bytes()) {
                job.cancel.cancel();
            }
        }
    }

    fn tell_changes(&self, session: &Arc<Session>) {
        let access = Access::of_pipe(&self.edge.gateway, &self.consumer);
        let mut feed = Feed::of_session(&self.edge, access, session, false);
        let tx = self.tx.downgrade();
        tokio::spawn(async move {
            loop {
                let Some(message) = feed.next().await else { return };
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
    while let Some(notice) = last_word(&mut notices).await {
        let _ = tx.send(notice).await;
    }
    if let Some(said) = end {
        let _ = tx.send(said.message).await;
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
