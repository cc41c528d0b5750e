//! An upstream asks back in the middle of a call: its questions are put to that call's caller,
//! whichever eras the two are of.
//!
//! An *old* upstream sends requests of its own and waits for the responses. One of the *newest*
//! revision ends the request with `input_required` and gets a new one with the answers
//! (2026-07-28 basic/patterns/mrtr). A caller of the newest revision reads the latter itself; for
//! an older one the rounds are made here.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::call::{Call, Notices, Reply, Terminal};
use crate::failure::{Delivery, Fault, Reason};
use crate::guard::{Deadline, Guard};
use crate::protocol::error::{ErrorObject, INTERNAL_ERROR};
use crate::protocol::message::{Frame, Kind, response};
use crate::protocol::meta::{Members, ObjectWriter, cancelled_id};
use crate::protocol::older;

use super::inbound;
use super::link::Link;
use super::transport::Unasked;

/// Questions of one call that wait to be looked at.
pub const ASKS_MAX: usize = 16;
/// Rounds of questions in one call: more is an upstream that goes in a circle.
const ROUNDS_MAX: u32 = 10;
/// Questions in one round.
const ROUND_MAX: usize = 32;
/// Pauses before asking again an upstream that only wants to be asked again; they double.
const AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// What a call's questions need.
#[derive(Clone, Copy)]
pub struct Asking<'a> {
    /// The call.
    pub call: &'a Call,
    /// The way to its caller.
    pub notices: &'a Notices,
    /// Stands aside while the caller thinks.
    pub guard: &'a Guard,
    /// Stands still meanwhile.
    pub deadline: &'a Deadline,
}

impl Asking<'_> {
    /// Put the requests of an old upstream to the caller, several at once, and send the
    /// responses. Never returns: it ends with the call.
    pub async fn serve(&self, link: &Link, mut asks: mpsc::Receiver<Unasked>) {
        let mut open = FuturesUnordered::new();
        let mut withdrawn: Vec<(Bytes, CancellationToken)> = Vec::new();
        loop {
            tokio::select! {
                Some(message) = asks.recv() => match message {
                    Unasked::Request(frame) => {
                        let id = frame.id().unwrap_or_default();
                        if open.len() >= ASKS_MAX {
                            let Reply::Error(e) = error(INTERNAL_ERROR, "too many questions at once") else {
                                continue;
                            };
                            let _ = link.notify(response(&id, Kind::Error, &e)).await;
                            continue;
                        }
                        let token = CancellationToken::new();
                        withdrawn.push((id, token.clone()));
                        open.push(self.one(link, frame, token));
                    }
                    Unasked::Notification(frame) if frame.method() == "notifications/cancelled" => {
                        // 2025-11-25 basic/utilities/cancellation, in the other direction.
                        let id = cancelled_id(&frame);
                        for (_, token) in withdrawn.iter().filter(|(i, _)| Some(i) == id.as_ref()) {
                            token.cancel();
                        }
                    }
                    Unasked::Notification(frame) => {
                        if let Some(message) = inbound::notice(self.call, &link.upstream, &frame) {
                            self.notices.send(message);
                        }
                    }
                },
                Some(done) = open.next() => withdrawn.retain(|(id, _)| *id != done),
                else => std::future::pending().await,
            }
        }
    }

    // Returns the id of what is done.
    async fn one(&self, link: &Link, frame: Frame, withdrawn: CancellationToken) -> Bytes {
        let id = frame.id().unwrap_or_default();
        if frame.method() == "ping" {
            let _ = link.notify(response(&id, Kind::Result, b"{}")).await;
            return id;
        }
        let answer = tokio::select! {
            answer = self.put(link, &frame) => answer,
            // It no longer wants to know: no response is owed.
            () = withdrawn.cancelled() => return id,
        };
        let (kind, body) = match answer {
            Reply::Result(result) if frame.method() == "sampling/createMessage" => {
                (Kind::Result, older::sampled(&result, link.agreed.revision))
            }
            Reply::Result(result) => (Kind::Result, result),
            Reply::Error(error) => (Kind::Error, error),
        };
        let _ = link.notify(response(&id, kind, &body)).await;
        id
    }

    async fn put(&self, link: &Link, frame: &Frame) -> Reply {
        let params = frame.params();
        if let Err((code, text)) = link.askable.allows(frame.method(), params.as_deref()) {
            return error(code, text);
        }
        match self.ask(frame.method(), params).await {
            Some(reply) => reply,
            None if frame.method() == "elicitation/create" => Reply::Result(CANCEL),
            None => error(INTERNAL_ERROR, "the client gave no answer"),
        }
    }

    // Meanwhile the call waits for a person and not for the upstream.
    async fn ask(&self, method: &str, params: Option<Bytes>) -> Option<Reply> {
        let _aside = self.guard.asking(self.deadline);
        self.notices.ask(method, params).await
    }

    /// The answers to one round of a modern upstream: the members that its retry carries.
    ///
    /// # Errors
    /// When the caller does not answer what has no way to say so, or the upstream asks what it
    /// was not told it may.
    pub async fn round(
        &self,
        rounds: u32,
        terminal: &Terminal,
    ) -> Result<Vec<(&'static str, Bytes)>, Fault> {
        let garbled = |text: &str| Fault::new(Reason::Garbled, Delivery::Unknown, text);
        let Terminal::Answer(frame, _) = terminal else {
            return Err(garbled("the upstream's questions cannot be read"));
        };
        if rounds > ROUNDS_MAX {
            return Err(garbled("the upstream asks again and again"));
        }
        let outcome = frame.outcome();
        let members = Members::read(&outcome)
            .map_err(|_| garbled("the upstream's questions cannot be read"))?;
        let state = members.get("requestState").map(raw);
        let asked = members.get("inputRequests").map(|r| Members::read(r.get().as_bytes()));
        let asked = match asked {
            None => Members::default(),
            Some(Ok(asked)) if asked.0.len() <= ROUND_MAX => asked,
            Some(_) => return Err(garbled("the upstream's questions cannot be read")),
        };
        let mut retry = Vec::new();
        if asked.0.is_empty() {
            if state.is_none() {
                return Err(garbled("the upstream asks and does not say what"));
            }
            let pause = AGAIN.0.saturating_mul(1 << rounds.min(5)).min(AGAIN.1);
            tokio::time::sleep(pause).await;
        } else {
            let answers = asked.0.iter().map(|(key, request)| self.answer(key, request));
            let answers: FuturesUnordered<_> = answers.collect();
            let answers: Vec<_> = answers.collect().await;
            let mut responses = ObjectWriter::new();
            for answer in answers {
                let (key, result) = answer?;
                responses.raw(&key, &result);
            }
            retry.push(("inputResponses", responses.finish().into()));
        }
        // Byte for byte: it may be signed.
        retry.extend(state.map(|s| ("requestState", s)));
        Ok(retry)
    }

    async fn answer(&self, key: &str, request: &RawValue) -> Result<(String, Bytes), Fault> {
        let failed = |text: String| Fault::new(Reason::CapabilityMissing, Delivery::Refused, text);
        let members = Members::read(request.get().as_bytes())
            .map_err(|_| failed("the upstream's question cannot be read".into()))?;
        let method = members.get_str("method").unwrap_or_default();
        let params = members.get("params").map(raw);
        if let Err((_, text)) = self.call.askable.allows(&method, params.as_deref()) {
            return Err(failed(format!("the upstream asks for {method}, but {text}")));
        }
        match self.ask(&method, params).await {
            Some(Reply::Result(result)) => Ok((key.into(), result)),
            // There is no way to send an error; a person who does not answer cancels.
            _ if method == "elicitation/create" => Ok((key.into(), CANCEL)),
            Some(Reply::Error(_)) => Err(failed(format!("the client refused {method}"))),
            None => Err(failed(format!("the client gave no answer to {method}"))),
        }
    }
}

const CANCEL: Bytes = Bytes::from_static(br#"{"action":"cancel"}"#);

fn raw(value: &RawValue) -> Bytes {
    Bytes::copy_from_slice(value.get().as_bytes())
}

fn error(code: i32, text: &str) -> Reply {
    Reply::Error(Bytes::copy_from_slice(ErrorObject::new(code, text).to_raw().get().as_bytes()))
}
