//! The gateway as somebody's child: one JSON-RPC message a line on stdin and stdout.
//!
//! Both eras on one pipe: each message shows which it is of, and `initialize` opens the one
//! session that a pipe can have (2026-07-28 basic/versioning).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::call::Consumer;
use crate::protocol::error::{INVALID_PARAMS, INVALID_REQUEST};
use crate::protocol::message::{Frame, Kind, one_line, response};
use crate::protocol::meta::Members;

use super::legacy::{self, Handled, Running};
use super::listen::Feed;
use super::session::{SESSION_CALLS_MAX, Session};
use super::{Edge, modern};
use crate::downstream::canonical::meta_of;

/// Messages that wait for the host to read.
const OUT_MAX: usize = 1024;

type Cancels = Arc<Mutex<HashMap<Bytes, CancellationToken>>>;

/// Serve one pipe until it ends.
pub async fn serve(
    edge: Arc<Edge>,
    consumer: Arc<Consumer>,
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin + Send + 'static,
) {
    let (tx, rx) = mpsc::channel::<Bytes>(OUT_MAX);
    let writer = tokio::spawn(write(output, rx));
    let pipe = Pipe { edge, consumer, tx, running: Cancels::default(), session: None };
    pipe.read(input).await;
    let _ = writer.await;
}

struct Pipe {
    edge: Arc<Edge>,
    consumer: Arc<Consumer>,
    tx: mpsc::Sender<Bytes>,
    // Modern requests in flight, by raw id.
    running: Cancels,
    session: Option<Arc<Session>>,
}

impl Pipe {
    async fn read(mut self, input: impl AsyncRead + Unpin) {
        let max = self.edge.gateway.current.load().config.gateway.max_body;
        let mut input = BufReader::new(input);
        let mut line = Vec::new();
        loop {
            line.clear();
            let more = tokio::select! {
                more = read_line(&mut input, &mut line, max) => more,
                () = self.edge.stop.cancelled() => break,
            };
            match more {
                Line::End => break,
                Line::TooLong => {
                    let text = format!("the line is longer than {max} bytes (gateway.max_body)");
                    self.say(legacy::error(b"", INVALID_REQUEST, text)).await;
                }
                Line::Whole if line.iter().all(u8::is_ascii_whitespace) => {}
                Line::Whole => match Frame::scan(Bytes::copy_from_slice(&line)) {
                    Ok(frame) => self.take(frame).await,
                    Err(e) => self.say(legacy::error(b"", e.code(), e.to_string())).await,
                },
            }
        }
        // Calls under way are still answered (hosts close stdin to end us, and wait).
        while !self.running.lock().expect("no panic while held").is_empty()
            || self.session.as_ref().is_some_and(|s| !s.running.is_empty())
        {
            if self.tx.is_closed() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
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
                let handled = legacy::handle(&self.edge, &session, "stdio", frame, None).await;
                self.finish(handled, id, None).await;
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
                modern::handle(&self.edge, &self.consumer, "stdio", frame, meta, revision, None)
                    .await
            }
            Err(e) => Err(e),
        };
        match handled {
            Ok(handled) => {
                let token = CancellationToken::new();
                self.finish(handled, id, Some(token)).await;
            }
            Err(e) => {
                self.say(response(&id, Kind::Error, e.to_raw().get().as_bytes())).await;
            }
        }
    }

    async fn finish(&self, handled: Handled, id: Bytes, token: Option<CancellationToken>) {
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

enum Line {
    Whole,
    TooLong,
    End,
}

async fn read_line(
    input: &mut (impl AsyncBufReadExt + Unpin),
    line: &mut Vec<u8>,
    max: usize,
) -> Line {
    let mut too_long = false;
    loop {
        let Ok(chunk) = input.fill_buf().await else { return Line::End };
        if chunk.is_empty() {
            return if line.is_empty() && !too_long { Line::End } else { whole(too_long) };
        }
        let (take, end) = match memchr::memchr(b'\n', chunk) {
            Some(at) => (at + 1, true),
            None => (chunk.len(), false),
        };
        if line.len() + take > max {
            too_long = true;
            line.clear();
        }
        if !too_long {
            line.extend_from_slice(&chunk[..take]);
        }
        input.consume(take);
        if end {
            return whole(too_long);
        }
    }
}

fn whole(too_long: bool) -> Line {
    if too_long { Line::TooLong } else { Line::Whole }
}

async fn write(mut output: impl AsyncWrite + Unpin, mut rx: mpsc::Receiver<Bytes>) {
    while let Some(message) = rx.recv().await {
        let mut line = one_line(&message).to_vec();
        line.push(b'\n');
        if output.write_all(&line).await.is_err() || output.flush().await.is_err() {
            return;
        }
    }
}
