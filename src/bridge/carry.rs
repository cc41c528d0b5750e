//! One request on its way to the gateway, until it has its answer or its failure.
//!
//! What is sent twice, and what is not: a request that provably never left, or that the gateway
//! refused because it is stopping or full, waits for the gateway and goes again; one that may have
//! arrived goes again only if by the protocol's own meaning it changes nothing. Everything else
//! fails, and says that its outcome is unknown.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::downstream::jobs::Place;
use crate::failure::{Delivery, Failure, Fault, Reason};
use crate::protocol::error::{ErrorObject, HEADER_MISMATCH, INTERNAL_ERROR};
use crate::protocol::message::{Frame, Kind, message, response};
use crate::protocol::meta::{Members, RequestMeta, cancelled_id};
use crate::protocol::method::METHODS;
use crate::protocol::splice::{Splice, range_of};
use crate::upstream::transport::Unasked;
use crate::upstream::transport::http::{Answer, Outgoing, RequestError};

use super::headers::{Header, list_like};
use super::questions::Asker;
use super::session::Gone;
use super::{Bridge, words};

/// First pause before a message goes again: a gateway that takes over a socket needs no longer.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause: what a person notices of a gateway that is back.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Questions on one answer's stream that wait to be handed on.
const ASKS_MAX: usize = 16;
/// How long the gateway's lists may take to be fetched for a call whose headers it refused.
const RELIST_TIME: Duration = Duration::from_secs(10);
/// Most pages of them.
const RELIST_PAGES_MAX: usize = 100;

/// Called with each notification that comes with an answer, and the id of its request.
pub type Hear<'a> = &'a (dyn Fn(Asker, Frame) + Send + Sync);

/// Why a request has no answer: the fault, and the HTTP status behind it.
pub type Unanswered = (Fault, Option<u16>);

/// Whether a request changes nothing by the protocol's own meaning.
pub fn repeatable(frame: &Frame) -> bool {
    METHODS.iter().any(|m| m.name == frame.method() && m.read_only)
}

/// The time that one message may wait for the gateway.
pub struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    /// From now on.
    pub fn new(bridge: &Bridge) -> Patience {
        Patience { until: Instant::now() + bridge.patience, pause: PAUSE }
    }

    /// Whether the message may go again after this fault; waits for the moment.
    pub async fn again(
        &mut self,
        bridge: &Bridge,
        (fault, status): &Unanswered,
        repeatable: bool,
    ) -> bool {
        bridge.fell(fault, *status);
        let safe = match fault.delivery {
            Delivery::NotSent => true,
            // It is stopping, or as full as it may be, and says so.
            Delivery::Refused => *status == Some(503),
            Delivery::Unknown => repeatable && passes(fault, *status),
        };
        let pause = self.pause.max(fault.retry_after.unwrap_or_default());
        if !safe || Instant::now() + pause > self.until {
            return false;
        }
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        tokio::select! {
            () = tokio::time::sleep(pause) => true,
            () = bridge.ending.cancelled() => false,
        }
    }
}

// Whether a fault is one of a gateway, or of a proxy before it, that is about to be back.
fn passes(fault: &Fault, status: Option<u16>) -> bool {
    match fault.reason {
        Reason::ConnectionLost => true,
        _ => matches!(status, Some(408 | 502..=504)),
    }
}

// The end of a request's stream is the end of what was asked on it.
struct Asking<'a> {
    bridge: &'a Bridge,
    id: Asker,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.bridge.withdraw(self.id);
    }
}

impl Bridge {
    /// Carry a request of the host to its end. `modern`: its metadata, if it is of that era.
    pub async fn request(self: Arc<Self>, frame: Frame, modern: Option<RequestMeta>, place: Place) {
        let sent = AtomicU64::new(0);
        let work = async {
            match &modern {
                Some(meta) if frame.method() == "subscriptions/listen" => {
                    self.listen(&frame, meta, &place.id).await
                }
                Some(meta) => self.modern(&frame, meta).await,
                None => self.in_session(&frame, &sent).await,
            }
        };
        let end = tokio::select! {
            end = work => end,
            () = place.cancel.cancelled() => {
                // 2025-11-25 basic/utilities/cancellation; for a modern gateway the end of the
                // response stream says it.
                let id = sent.load(Ordering::Relaxed);
                if modern.is_none() && id != 0 {
                    let params = format!(r#"{{"requestId":{id}}}"#);
                    let told = message(None, "notifications/cancelled", Some(params.as_bytes()));
                    self.post(told, false).await;
                }
                return;
            }
            () = self.cut.cancelled() => Err(words::cut(repeatable(&frame))),
        };
        self.end(&place.id, end).await;
    }

    /// Tell the host how its request ended.
    pub async fn end(&self, id: &[u8], end: Result<Frame, Failure>) {
        let message = match end {
            Ok(answer) => answer.with_id(id),
            Err(failure) => {
                tracing::warn!(reason = %failure.reason, outcome = failure.outcome(), "{}", failure.cause);
                response(id, Kind::Error, failure.to_error().to_raw().get().as_bytes())
            }
        };
        self.say(message).await;
    }

    // Each request says everything itself: there is no session to lose.
    async fn modern(&self, frame: &Frame, meta: &RequestMeta) -> Result<Frame, Failure> {
        let mut headers = self.tools.headers(frame, meta);
        let mut answer = self.persist(frame, &headers, false, &AtomicU64::new(0)).await;
        if answer.as_ref().is_ok_and(|a| refuses_headers(frame, a)) {
            // The gateway says that it did nothing; the tool's newest schema may ask for others.
            self.relist(frame, meta).await;
            let other = self.tools.headers(frame, meta);
            if other != headers {
                headers = other;
                answer = self.persist(frame, &headers, false, &AtomicU64::new(0)).await;
            }
        }
        let answer =
            answer.map_err(|(fault, status)| words::failure(fault, status, repeatable(frame)))?;
        if frame.method() == "tools/list" && answer.frame.kind() == Kind::Result {
            self.tools.learn(&answer.frame.outcome());
        }
        Ok(answer.frame)
    }

    async fn relist(&self, frame: &Frame, meta: &RequestMeta) {
        let pages = async {
            let mut cursor = None;
            for _ in 0..RELIST_PAGES_MAX {
                let list = list_like(frame, b"0", cursor.as_ref());
                let headers = self.tools.headers(&list, meta);
                let Ok(page) = self.persist(&list, &headers, false, &AtomicU64::new(0)).await
                else {
                    return;
                };
                cursor = self.tools.learn(&page.frame.outcome());
                if cursor.is_none() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(RELIST_TIME, pages).await;
    }

    async fn in_session(
        self: &Arc<Self>,
        frame: &Frame,
        sent: &AtomicU64,
    ) -> Result<Frame, Failure> {
        let mut renewed = false;
        loop {
            let live = self.home.live().ok_or_else(words::no_session)?;
            let answer = self.persist(frame, &live.headers, true, sent).await;
            match live.gone(&answer) {
                Some(gone) if !renewed => {
                    renewed = true;
                    self.renew(&live).await?;
                    if gone == Gone::Perhaps && !repeatable(frame) {
                        return Err(words::no_session());
                    }
                    continue;
                }
                _ => {}
            }
            let answer = answer
                .map_err(|(fault, status)| words::failure(fault, status, repeatable(frame)))?;
            if answer.frame.kind() == Kind::Result {
                self.home.note(frame);
            }
            return Ok(answer.frame);
        }
    }

    /// Send a request, again where that is safe, until there is an answer. `legacy`: its stream
    /// can be resumed. `sent` gets the id it went out with.
    pub async fn persist(
        &self,
        frame: &Frame,
        headers: &[Header],
        legacy: bool,
        sent: &AtomicU64,
    ) -> Result<Answer, Unanswered> {
        let mut patience = Patience::new(self);
        let hear = |asker, frame| self.notice(asker, &frame);
        loop {
            let id = self.mint();
            sent.store(id, Ordering::Relaxed);
            match self.once(id, frame, headers, legacy, &hear).await {
                Ok(answer) => {
                    self.rose();
                    return Ok(answer);
                }
                Err(error) => {
                    let status = error.status();
                    let failed = (error.into_fault(), status);
                    if !patience.again(self, &failed, repeatable(frame)).await {
                        return Err(failed);
                    }
                }
            }
        }
    }

    /// Send a request once. The id towards the gateway is ours: a number, which every server gives
    /// back as it got it, and which no two attempts share.
    pub async fn once(
        &self,
        id: Asker,
        frame: &Frame,
        headers: &[Header],
        legacy: bool,
        hear: Hear<'_>,
    ) -> Result<Answer, RequestError> {
        let (asks, mut asked) = mpsc::channel(ASKS_MAX);
        let _asking = Asking { bridge: self, id };
        let hear = |frame| hear(id, frame);
        let request = async {
            let message = frame.with_id(id.to_string().as_bytes());
            match self
                .wire
                .request(Outgoing { id, message, standing: &[], headers }, &hear, &asks)
                .await
            {
                Err(RequestError::StreamEnded(end)) if legacy && end.last_event_id.is_some() => {
                    let status = end.status;
                    let frame = self.wire.resume(id, headers, end, &hear, &asks).await?;
                    Ok(Answer { frame, status, session: None, rest: None })
                }
                answer => answer,
            }
        };
        tokio::pin!(request);
        let mut answer = loop {
            tokio::select! {
                biased;
                answer = &mut request => break answer?,
                Some(Unasked::Request(question)) = asked.recv() => self.ask(id, &question).await,
            }
        };
        if let Some(rest) = answer.rest.take() {
            self.tasks.spawn(rest.drain());
        }
        Ok(answer)
    }

    /// Hand a question of the gateway on to the host.
    pub async fn ask(&self, asker: Asker, question: &Frame) {
        let raw = question.id().unwrap_or_default();
        if let Some(minted) = self.questions.open(asker, raw.clone()) {
            return self.say(question.with_id(&minted)).await;
        }
        let error = ErrorObject::new(INTERNAL_ERROR, "too many questions at once");
        let no = response(&raw, Kind::Error, error.to_raw().get().as_bytes());
        if let Some(live) = self.home.live() {
            let _ = self
                .wire
                .notify(Outgoing { id: 0, message: no, standing: &[], headers: &live.headers })
                .await;
        }
    }

    /// Hand a notification of the gateway on to the host.
    pub fn notice(&self, asker: Asker, frame: &Frame) {
        if frame.method() != "notifications/cancelled" {
            return self.tell(frame.bytes().clone());
        }
        let Some(minted) =
            cancelled_id(frame).and_then(|raw| self.questions.withdrawn(asker, &raw))
        else {
            return;
        };
        let params = frame.params().unwrap_or_default();
        let members = Members::read(&params).unwrap_or_default();
        if let Some(theirs) = members.get("requestId") {
            let mut splice = Splice::new();
            splice.replace(range_of(frame.bytes(), theirs.get().as_bytes()), minted.to_vec());
            self.tell(splice.apply(frame.bytes()));
        }
    }

    /// What was asked on a stream that has ended needs no answer any more.
    pub fn withdraw(&self, asker: Asker) {
        for minted in self.questions.forget(asker) {
            let params = [b"{\"requestId\":", &minted[..], b"}"].concat();
            self.tell(message(None, "notifications/cancelled", Some(&params)));
        }
    }
}

// With another status it may be anybody's word, and proves nothing.
fn refuses_headers(frame: &Frame, answer: &Answer) -> bool {
    frame.method() == "tools/call"
        && answer.status == 400
        && answer.frame.error_code() == Some(i64::from(HEADER_MISMATCH))
}
