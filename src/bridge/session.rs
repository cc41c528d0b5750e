//! The session of an old host: what it said in its handshake and since, so that a session that the
//! gateway no longer knows can be made anew without the host.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderValue;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::downstream::jobs::Place;
use crate::downstream::listen::WATCHES_MAX;
use crate::failure::{Delivery, Failure, Fault, Reason};
use crate::protocol::header;
use crate::protocol::message::{Frame, Kind, message};
use crate::protocol::meta::{Members, ObjectWriter};
use crate::protocol::revision::Revision;
use crate::upstream::transport::http::{Answer, HttpFault, Outgoing};

use super::carry::{Patience, Unanswered};
use super::headers::Header;
use super::{Bridge, words};

/// How long a message without an answer may take to be taken.
const POST_TIME: Duration = Duration::from_secs(10);
/// How long a gateway may take over a handshake, or over what is set again after it, beside the time
/// that one waits for a gateway that is away: with that, by default, the minute after which common
/// hosts give up. Without an end one silent gateway would hold up every later message.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// The code that the SDKs give the error of a session they do not know.
const SESSION_NOT_FOUND: i64 = -32001;

/// What the gateway calls the session, and what stands beside each of its messages.
pub struct Live {
    /// Revision and session.
    pub headers: Vec<Header>,
    /// Whether it has a name; without one it cannot be gone.
    pub named: bool,
}

/// How sure it is that the session is gone and the message was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The gateway says so (2025-11-25 basic/transports, "session management").
    Surely,
    /// Some say it with another status, which may also be about the message.
    Perhaps,
}

impl Live {
    /// Whether this answer says that the session is gone.
    pub fn gone(&self, answer: &Result<Answer, Unanswered>) -> Option<Gone> {
        if !self.named {
            return None;
        }
        match answer {
            Err((_, Some(404))) => Some(Gone::Surely),
            Ok(answer) if answer.frame.kind() == Kind::Error => {
                let error: Value = serde_json::from_slice(&answer.frame.outcome()).ok()?;
                let nameless = answer.frame.id().is_none();
                let ours = error["data"]["reason"] == Reason::UnknownSession.as_str();
                match answer.status {
                    404 if nameless || ours => Some(Gone::Surely),
                    404 if error["code"] == SESSION_NOT_FOUND => Some(Gone::Perhaps),
                    400 if nameless && error.to_string().to_lowercase().contains("session") => {
                        Some(Gone::Perhaps)
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

struct State {
    hello: Frame,
    initialized: Option<Bytes>,
    live: Arc<Live>,
    // Notifications of changes that the gateway said it sends.
    changes: Vec<&'static str>,
    level: Option<Frame>,
    watched: BTreeMap<String, Frame>,
}

/// Where the session lives. There is one, as on any pipe.
pub struct Home {
    state: Mutex<Option<State>>,
    // One makes it anew, the others find it made.
    renewing: tokio::sync::Mutex<()>,
    /// The session whose stream is to be open.
    pub open: watch::Sender<Option<Arc<Live>>>,
}

impl Default for Home {
    fn default() -> Home {
        Home {
            state: Mutex::default(),
            renewing: tokio::sync::Mutex::default(),
            open: watch::Sender::new(None),
        }
    }
}

impl Home {
    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().expect("no panic while held")
    }

    /// The session as it is now.
    pub fn live(&self) -> Option<Arc<Live>> {
        self.lock().as_ref().map(|state| state.live.clone())
    }

    /// Remember what a request that was granted has set, as far as it must be set again.
    pub fn note(&self, frame: &Frame) {
        let mut state = self.lock();
        let Some(state) = state.as_mut() else { return };
        let uri = || {
            let params = frame.params()?;
            Members::read(&params).ok()?.get_str("uri").map(String::from)
        };
        match frame.method() {
            "logging/setLevel" => state.level = Some(frame.clone()),
            "resources/subscribe" => {
                if let Some(uri) = uri().filter(|_| state.watched.len() < WATCHES_MAX) {
                    state.watched.insert(uri, frame.clone());
                }
            }
            "resources/unsubscribe" => {
                uri().map(|uri| state.watched.remove(&uri));
            }
            _ => {}
        }
    }
}

// What the answer to a handshake says: the way on, and which changes are told.
fn agreed(answer: &Answer) -> (Live, Vec<&'static str>) {
    let result: Value = serde_json::from_slice(&answer.frame.outcome()).unwrap_or_default();
    let mut headers = Vec::new();
    let revision = result["protocolVersion"].as_str().unwrap_or_default();
    // 2025-06-18 basic/transports, "protocol version header". Dates compare as text.
    if revision >= Revision::R2025_06_18.as_str()
        && let Ok(value) = HeaderValue::from_str(revision)
    {
        headers.push((header::PROTOCOL_VERSION, value));
    }
    let named = answer.session.is_some();
    headers.extend(answer.session.clone().map(|value| (header::SESSION_ID, value)));
    let offers = &result["capabilities"];
    let changes = [
        ("tools", "notifications/tools/list_changed"),
        ("prompts", "notifications/prompts/list_changed"),
        ("resources", "notifications/resources/list_changed"),
    ];
    let changes = changes.into_iter().filter(|(of, _)| offers[of]["listChanged"] == true);
    (Live { headers, named }, changes.map(|(_, method)| method).collect())
}

impl Bridge {
    /// Carry the host's handshake. It is not cancelled, and what comes behind it waits for it.
    pub async fn open(&self, frame: Frame, place: Place) {
        let answer = tokio::select! {
            answer = self.handshake(&frame, self.answer_by()) => answer,
            () = self.cut.cancelled() => return self.end(&place.id, Err(words::cut(true))).await,
        };
        if let Ok(answer) = &answer
            && answer.frame.kind() == Kind::Result
        {
            let (live, changes) = agreed(answer);
            self.home.open.send_replace(None);
            let live = Arc::new(live);
            let old = self.home.lock().replace(State {
                hello: frame,
                initialized: None,
                live: live.clone(),
                changes,
                level: None,
                watched: BTreeMap::new(),
            });
            if let Some(old) = old {
                self.leave(&old.live, &live);
            }
        }
        self.end(&place.id, answer.map(|answer| answer.frame)).await;
    }

    // The end of what begins now and waits for the gateway's answers.
    fn answer_by(&self) -> Instant {
        Instant::now() + self.patience + ANSWER_TIME
    }

    async fn handshake(&self, hello: &Frame, by: Instant) -> Result<Answer, Failure> {
        let sent = AtomicU64::new(0);
        let answer = tokio::time::timeout_at(by, self.persist(hello, &[], true, &sent)).await;
        let answer = answer.map_err(|_| words::silent())?;
        answer.map_err(|(fault, status)| words::failure(fault, status, true))
    }

    // The host has begun another session; nobody uses the old one any more.
    fn leave(&self, old: &Live, new: &Live) {
        if old.named && old.headers.last() != new.headers.last() {
            let (wire, headers) = (self.wire.clone(), old.headers.clone());
            self.tasks.spawn(async move { wire.delete(&headers).await });
        }
    }

    /// The host is ready: from now on the gateway may speak unasked.
    pub async fn initialized(&self, message: Bytes) {
        if let Some(state) = self.home.lock().as_mut() {
            state.initialized = Some(message.clone());
        }
        self.post(message, true).await;
        self.home.open.send_replace(self.home.live());
    }

    /// Post a message that has no answer. `again`: it means the same in another session.
    pub async fn post(&self, message: Bytes, again: bool) {
        let mut renewed = false;
        while let Some(live) = self.home.live() {
            let Err(failed) = self.push(&message, &live.headers).await else { return };
            if failed.status == Some(404) && live.named && !renewed {
                renewed = true;
                if self.renew(&live).await.is_ok() && again {
                    continue;
                }
            }
            tracing::warn!(cause = %failed.fault.cause, "a message without an answer is lost");
            return;
        }
    }

    async fn push(&self, message: &Bytes, headers: &[Header]) -> Result<(), HttpFault> {
        let mut patience = Patience::new(self);
        loop {
            let told = self.wire.notify(Outgoing {
                id: 0,
                message: message.clone(),
                standing: &[],
                headers,
            });
            let Ok(told) = tokio::time::timeout(POST_TIME, told).await else {
                let text = "the gateway does not take what it is told";
                return Err(Fault::new(Reason::DeadlineExceeded, Delivery::Unknown, text).into());
            };
            let Err(HttpFault { fault, status }) = told else {
                self.rose();
                return Ok(());
            };
            let failed = (fault, status);
            if !patience.again(self, &failed, false).await {
                return Err(HttpFault { fault: failed.0, status });
            }
        }
    }

    /// Make the session anew with the host's own words, unless somebody has done so already.
    pub async fn renew(&self, old: &Arc<Live>) -> Result<(), Failure> {
        // Who waits for another's handshake waits no longer than for its own.
        let by = self.answer_by();
        let one = tokio::time::timeout_at(by, self.home.renewing.lock()).await;
        let _one = one.map_err(|_| words::silent())?;
        let (hello, initialized) = match &*self.home.lock() {
            Some(state) if Arc::ptr_eq(&state.live, old) => {
                (state.hello.clone(), state.initialized.clone())
            }
            _ => return Ok(()),
        };
        tracing::info!("the gateway no longer knows the session; a new one is made");
        let answer = self.handshake(&hello, by).await?;
        if answer.frame.kind() != Kind::Result {
            return Err(words::no_session());
        }
        let (live, changes) = agreed(&answer);
        let live = Arc::new(live);
        if let Some(initialized) = &initialized {
            let _ = self.push(initialized, &live.headers).await;
        }
        let current = match &mut *self.home.lock() {
            Some(state) if Arc::ptr_eq(&state.live, old) => {
                (state.live, state.changes) = (live.clone(), changes);
                None
            }
            state => state.as_ref().map(|state| state.live.clone()),
        };
        if let Some(current) = current {
            // The host has begun one itself meanwhile.
            self.leave(&live, &current);
            return Ok(());
        }
        self.restore(&live).await;
        let changes = self.home.lock().as_ref().map(|s| s.changes.clone()).unwrap_or_default();
        for method in changes {
            self.tell(message(None, method, None));
        }
        if initialized.is_some() {
            // Last: who attends the old one stops at it.
            self.home.open.send_replace(Some(live));
        }
        Ok(())
    }

    /// Set again what the host has set; and since something may have been missed, its resources may
    /// have changed.
    pub async fn restore(&self, live: &Live) {
        let (level, watched) = match &*self.home.lock() {
            Some(state) => (state.level.clone(), state.watched.clone()),
            None => return,
        };
        let by = self.answer_by();
        for frame in level.iter().chain(watched.values()) {
            let sent = AtomicU64::new(0);
            let answer = self.persist(frame, &live.headers, true, &sent);
            let answer = tokio::time::timeout_at(by, answer).await;
            if !answer.is_ok_and(|a| a.is_ok_and(|a| a.frame.kind() == Kind::Result)) {
                tracing::warn!(method = frame.method(), "what the host had set is not taken again");
            }
        }
        for uri in watched.keys() {
            let params = ObjectWriter::new().value("uri", uri).finish();
            self.tell(message(None, "notifications/resources/updated", Some(&params)));
        }
    }

    /// End the session.
    pub async fn close(&self) {
        if let Some(live) = self.home.live().filter(|live| live.named) {
            self.wire.delete(&live.headers).await;
        }
    }
}
