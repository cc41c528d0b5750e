//! An upstream asks back in the middle of a call: its questions are put to that call's caller,
//! whichever eras the two are of.
//!
//! An *old* upstream sends requests of its own and waits for the responses. One of the *newest*
//! revision ends the request with `input_required` and gets a new one with the answers
//! (2026-07-28 basic/patterns/mrtr). A caller of the newest revision reads the latter itself; for
//! an older one the rounds are made here.

use std::sync::Arc;
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
use crate::protocol::task::{self, Tasks};

use super::inbound;
use super::link::Link;
use super::pages::Pages;
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
    /// Who waits to hear that a page was visited.
    pub pages: &'a Pages,
    /// Stands aside while the caller thinks.
    pub guard: &'a Guard,
    /// Stands still meanwhile.
    pub deadline: &'a Deadline,
    /// The task whose questions these are, if the call waits for one; its place then serves others
    /// already.
    pub task: Option<&'a str>,
}

impl Asking<'_> {
    /// Put the requests of an old upstream to the caller, several at once, and send the
    /// responses. Never returns: it ends with the call.
    pub async fn serve(&self, link: &Arc<Link>, mut asks: mpsc::Receiver<Unasked>) {
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
                    // That of what is under way does not come here; late progress of a call that
                    // is over is not this one's.
                    Unasked::Notification(frame) if frame.method() == "notifications/progress" => {}
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
    async fn one(&self, link: &Arc<Link>, frame: Frame, withdrawn: CancellationToken) -> Bytes {
        let id = frame.id().unwrap_or_default();
        if frame.method() == "ping" {
            let _ = link.notify(response(&id, Kind::Result, b"{}")).await;
            return id;
        }
        let mut owed = Owed { link: link.clone(), question: Some(frame.clone()) };
        let answer = tokio::select! {
            answer = self.put(link, &frame) => answer,
            // It no longer wants to know: no response is owed.
            () = withdrawn.cancelled() => {
                owed.question = None;
                return id;
            }
        };
        owed.question = None;
        let answer = match answer {
            Reply::Result(result) if frame.method() == "sampling/createMessage" => {
                Reply::Result(older::sampled(&result, link.agreed.revision))
            }
            answer => answer,
        };
        let _ = link.notify(answered(&id, answer)).await;
        id
    }

    async fn put(&self, link: &Link, frame: &Frame) -> Reply {
        let mut params = frame.params();
        let of = params.as_ref().and_then(|raw| task::related_id(raw));
        if of.is_some() && of.as_deref() != self.task {
            // A task of another call, and perhaps of another caller: who waits for its result is
            // asked (2025-11-25 basic/utilities/tasks, "input required").
            return error(INTERNAL_ERROR, "this task is asked for with tasks/result");
        }
        if let Some(raw) = &mut params
            && self.call.tasks != Tasks::Asked
        {
            *raw = task::related(raw, self.call.task.as_ref().map(|task| &*task.public));
        }
        if let Err((code, text)) = link.askable.allows(frame.method(), params.as_deref()) {
            return error(code, text);
        }
        if let (Some(asides), Some(page)) = (&self.call.asides, &params) {
            self.pages.shown(page, asides, link.owner.as_ref());
        }
        match self.ask(frame.method(), params).await {
            Some(reply) => reply,
            None if frame.method() == "elicitation/create" => Reply::Result(CANCEL),
            None => error(INTERNAL_ERROR, "the client gave no answer"),
        }
    }

    // Meanwhile the call waits for a person and not for the upstream.
    async fn ask(&self, method: &str, params: Option<Bytes>) -> Option<Reply> {
        // A call that waits for a task has lent its place already.
        let _paused = self.task.is_some().then(|| self.deadline.pause());
        let _aside = self.task.is_none().then(|| self.guard.asking(self.deadline));
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
        let asked = members.get("inputRequests").map_or("{}", |r| r.get()).as_bytes();
        let mut retry = Vec::new();
        if Members::read(asked).is_ok_and(|asked| asked.0.is_empty()) {
            if state.is_none() {
                return Err(garbled("the upstream asks and does not say what"));
            }
            let pause = AGAIN.0.saturating_mul(1 << rounds.min(5)).min(AGAIN.1);
            tokio::time::sleep(pause).await;
        } else {
            retry.push(("inputResponses", self.answers(asked).await?));
        }
        // Byte for byte: it may be signed.
        retry.extend(state.map(|s| ("requestState", s)));
        Ok(retry)
    }

    /// The caller's answers to raw `inputRequests`, as raw `inputResponses`.
    ///
    /// # Errors
    /// See [`Asking::round`].
    pub async fn answers(&self, asked: &[u8]) -> Result<Bytes, Fault> {
        let asked = match Members::read(asked) {
            Ok(asked) if asked.0.len() <= ROUND_MAX => asked,
            _ => return Err(garbled("the upstream's questions cannot be read")),
        };
        let answers = asked.0.iter().map(|(key, request)| self.answer(key, request));
        let answers: FuturesUnordered<_> = answers.collect();
        let answers: Vec<_> = answers.collect().await;
        let mut responses = ObjectWriter::new();
        for answer in answers {
            let (key, result) = answer?;
            responses.raw(&key, &result);
        }
        Ok(responses.finish().into())
    }

    /// Show the caller the pages that the upstream wants visited before it takes the call
    /// (2025-11-25 client/elicitation, "URL elicitation required error").
    ///
    /// # Errors
    /// When the caller does not visit them all, or the upstream wants it again and again.
    pub async fn show(&self, rounds: u32, pages: &[Bytes]) -> Result<(), Fault> {
        if rounds > ROUNDS_MAX || pages.len() > ROUND_MAX {
            // It said each time that it did nothing.
            let text = "the upstream wants pages visited again and again";
            return Err(Fault::new(Reason::Garbled, Delivery::Refused, text));
        }
        let shown = pages.iter().map(|page| self.ask("elicitation/create", Some(page.clone())));
        let shown: FuturesUnordered<_> = shown.collect();
        let shown: Vec<_> = shown.collect().await;
        let accepted = |reply: &Option<Reply>| match reply {
            Some(Reply::Result(raw)) => Members::read(raw)
                .is_ok_and(|m| m.get_str("action").is_some_and(|action| action == "accept")),
            _ => false,
        };
        if shown.iter().all(accepted) {
            return Ok(());
        }
        // The upstream said that it did nothing.
        let text = "the upstream wants a page visited first, and the client declined";
        Err(Fault::new(Reason::CapabilityMissing, Delivery::Refused, text))
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

fn garbled(text: &str) -> Fault {
    Fault::new(Reason::Garbled, Delivery::Unknown, text)
}

fn answered(id: &[u8], reply: Reply) -> Bytes {
    match reply {
        Reply::Result(result) => response(id, Kind::Result, &result),
        Reply::Error(error) => response(id, Kind::Error, &error),
    }
}

/// A response that the upstream waits for, also when the call that it is tied to is over: it may
/// have asked for a reason of its own.
struct Owed {
    link: Arc<Link>,
    question: Option<Frame>,
}

impl Drop for Owed {
    fn drop(&mut self) {
        let Some(question) = self.question.take() else { return };
        let (Some(id), Ok(runtime)) = (question.id(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let reply = match question.method() {
            "elicitation/create" => Reply::Result(CANCEL),
            _ => error(INTERNAL_ERROR, "the call is over"),
        };
        let link = self.link.clone();
        runtime.spawn(async move { link.notify(answered(&id, reply)).await });
    }
}

const CANCEL: Bytes = Bytes::from_static(br#"{"action":"cancel"}"#);

fn raw(value: &RawValue) -> Bytes {
    Bytes::copy_from_slice(value.get().as_bytes())
}

fn error(code: i32, text: &str) -> Reply {
    Reply::Error(Bytes::copy_from_slice(ErrorObject::new(code, text).to_raw().get().as_bytes()))
}
