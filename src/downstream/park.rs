//! A caller of the newest revision is asked by ending its request: `input_required`
//! (2026-07-28 basic/patterns/mrtr). Meanwhile the call is parked here, upstream and all; the
//! caller's next request brings the answers and takes it up again.
//!
//! What the caller carries in between is sealed: which park, whose, for which request, until
//! when. Each is good for one request: what was used, was taken out.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use dashmap::DashMap;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::call::heard::{self, Heard};
use crate::call::{
    ANSWER_TIME, Call, Consumer, Earlier, Form, Notices, Question, Reply, Terminal, Word,
};
use crate::failure::{Reason, Refusal};
use crate::observe::record::Record;
use crate::protocol::message::{Frame, Kind};
use crate::protocol::meta::{Members, ObjectWriter, RequestMeta, key};
use crate::protocol::method::Method;
use crate::protocol::revision::Revision;
use crate::protocol::splice::{Splice, range_of};
use crate::seal::{Purpose, random_name};

use super::legacy::{Running, Work};
use super::refused::Refused;
use super::render::{Said, render};
use super::{Edge, tasks};

/// Most parked calls, and most of one consumer: each is a call in flight upstream.
const PARKS_MAX: usize = 1024;
/// See [`PARKS_MAX`].
const PARKS_OF_ONE_MAX: usize = 64;
/// Questions that come within this time of one another are asked together.
const GATHER: Duration = Duration::from_millis(30);

/// A call that runs in a task of its own, so that it outlives the request that began it.
pub struct Conversation {
    words: mpsc::Receiver<Word>,
    end: oneshot::Receiver<Terminal>,
    task: tokio::task::JoinHandle<()>,
    // Open questions, and the key under which each was asked.
    asked: Vec<(String, Question)>,
    keys: u32,
    // The token that the call itself uses for its progress.
    token: Option<Box<str>>,
    method: &'static Method,
    revision: Revision,
    consumer: Arc<Consumer>,
    // The request that began it; what it asks for is looked at if it is parked.
    frame: Frame,
    // It was parked: the request that is open now is another, with an id of its own.
    was_parked: bool,
}

impl Drop for Conversation {
    // Nobody will come back: the call is cancelled, upstream too.
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Parked calls.
#[derive(Default)]
pub struct Parks(DashMap<Box<str>, (Conversation, Instant)>);

impl Parks {
    /// Forget those whose caller did not come back.
    pub fn expire(&self) {
        let now = Instant::now();
        self.0.retain(|_, (_, until)| *until > now);
    }

    /// Forget them all: nobody will come back.
    pub fn clear(&self) {
        self.0.clear();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    // Makes room by forgetting the oldest: its caller has had the most time.
    fn make_room(&self, consumer: &Consumer) {
        let of = |all: bool| {
            let mine = self.0.iter().filter(|p| all || p.0.consumer.name == consumer.name);
            let ages: Vec<_> = mine.map(|p| (p.1, p.key().clone())).collect();
            let full = ages.len() >= if all { PARKS_MAX } else { PARKS_OF_ONE_MAX };
            full.then(|| ages.into_iter().min()).flatten()
        };
        for oldest in [of(false), of(true)].into_iter().flatten() {
            self.0.remove(&oldest.1);
        }
    }
}

/// What a request's state says.
pub enum State {
    /// There is none.
    None,
    /// It was an upstream's own: the request as that upstream knows it.
    Unwrapped(Frame, Option<Box<Earlier>>),
    /// A call waits for this request.
    Parked(Conversation),
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    /// The park, or nothing if an upstream's own state is wrapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    park: Option<Box<str>>,
    /// The upstream's state, raw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<Box<str>>,
    /// What the round that was answered with it left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Box<str>>,
    consumer: Box<str>,
    /// Of the method and the params that stay the same.
    digest: Box<str>,
    /// Unix time in seconds.
    until: u64,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A wrapped state is good for as long as an upstream might keep it: a day. The upstream sets
/// its own, shorter limit.
const WRAPPED_TIME: u64 = 24 * 3600;

fn seal(edge: &Edge, sealed: &Sealed) -> String {
    let plain = serde_json::to_vec(sealed).expect("our own values serialise");
    edge.sealer.seal(Purpose::RequestState, &plain)
}

/// Whether a request may be the return of a caller who was asked something; reading its state
/// says for sure.
pub fn may_resume(frame: &Frame) -> bool {
    frame.part("requestState").is_some()
}

/// Read the state of a request.
///
/// # Errors
/// When it is not ours, somebody else's, for another request, used, or too old.
pub fn state_of(edge: &Edge, consumer: &Consumer, frame: &Frame) -> Result<State, Refused> {
    let Some(params) = frame.params() else { return Ok(State::None) };
    if frame.index().is_some() && !may_resume(frame) {
        return Ok(State::None);
    }
    let invalid = || {
        let text = "params.requestState is not valid, or no longer: start again without it";
        Refused::new(Reason::InvalidParams, text)
    };
    let members = Members::read(&params).map_err(|_| invalid())?;
    let Some(raw) = members.get("requestState") else { return Ok(State::None) };
    let text = members.get_str("requestState").ok_or_else(invalid)?;
    let plain = edge.sealer.open(Purpose::RequestState, &text).ok_or_else(invalid)?;
    let sealed: Sealed = serde_json::from_slice(&plain).map_err(|_| invalid())?;
    if *sealed.consumer != *consumer.name
        || sealed.until < now()
        || *sealed.digest != *digest(frame)
    {
        return Err(invalid());
    }
    if let Some(state) = sealed.state {
        let at = frame.params_span().expect("there are params").start;
        let place = range_of(&params, raw.get().as_bytes());
        let mut s = Splice::new();
        s.replace(place.start + at..place.end + at, state.into_string().into_bytes());
        let frame = Frame::scan(s.apply(frame.bytes())).map_err(|_| invalid())?;
        let Sealed { owner, key, .. } = sealed;
        let left = owner.is_some() || key.is_some();
        return Ok(State::Unwrapped(frame, left.then(|| Box::new(Earlier { owner, key }))));
    }
    let park = sealed.park.ok_or_else(invalid)?;
    let (_, (conversation, _)) = edge.parks.0.remove(&park).ok_or_else(invalid)?;
    Ok(State::Parked(conversation))
}

// What must be the same in the request that comes back.
fn digest(frame: &Frame) -> String {
    let params = frame.params().unwrap_or_default();
    let mut hash = Sha256::new();
    hash.update(frame.method());
    let own = ["_meta", "inputResponses", "requestState"];
    match Members::read(&params) {
        Ok(members) => feed_members(&mut hash, members, &own),
        Err(_) => hash.update(&params),
    }
    URL_SAFE_NO_PAD.encode(&hash.finalize()[..16])
}

// The order of members and the white space mean nothing, and clients change them. A number is its
// text: which texts are one number is for nobody here to say.
fn feed(hash: &mut Sha256, raw: &str) {
    match raw.as_bytes().first() {
        Some(b'{') => match Members::read(raw.as_bytes()) {
            Ok(members) => feed_members(hash, members, &[]),
            Err(_) => hash.update(raw),
        },
        Some(b'[') => match serde_json::from_str::<Vec<&RawValue>>(raw) {
            Ok(items) => {
                hash.update(b"[");
                for item in items {
                    feed(hash, item.get());
                }
                hash.update(b"]");
            }
            Err(_) => hash.update(raw),
        },
        Some(b'"') => match serde_json::from_str::<String>(raw) {
            Ok(text) => feed_text(hash, &text),
            Err(_) => hash.update(raw),
        },
        _ => {
            hash.update(raw);
            hash.update(b",");
        }
    }
}

fn feed_members(hash: &mut Sha256, members: Members<'_>, but: &[&str]) {
    let mut sorted = members.0;
    sorted.retain(|(key, _)| !but.contains(&&**key));
    sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
    hash.update(b"{");
    for (key, value) in sorted {
        feed_text(hash, &key);
        feed(hash, value.get());
    }
    hash.update(b"}");
}

// With its length in front, so that nothing can pass as the end of it.
fn feed_text(hash: &mut Sha256, text: &str) {
    hash.update(format!("\"{}:", text.len()));
    hash.update(text);
}

/// The terminal with the upstream's own request state wrapped: bound to this caller and request.
pub fn wrapped(edge: &Edge, call: &Call, terminal: Terminal) -> Terminal {
    let Terminal::Answer(frame, form) = terminal else { return terminal };
    match wrap(edge, call, &frame) {
        Some(frame) => Terminal::Answer(frame, form),
        None => Terminal::Answer(frame, form),
    }
}

fn wrap(edge: &Edge, call: &Call, frame: &Frame) -> Option<Frame> {
    const MARK: &[u8] = b"\"input_required\"";
    if frame.kind() != Kind::Result || frame.part_text("resultType") != Some(MARK) {
        return None;
    }
    let outcome = frame.outcome();
    let members = Members::read(&outcome).ok()?;
    if members.get("resultType")?.get().as_bytes() != MARK {
        return None;
    }
    let raw = members.get("requestState")?;
    let text = seal(
        edge,
        &Sealed {
            park: None,
            state: Some(raw.get().into()),
            owner: call.owner.get().map(|owner| (&**owner).into()),
            key: call.key.get().cloned(),
            consumer: (&*call.consumer.name).into(),
            digest: digest(&call.frame).into(),
            until: now() + WRAPPED_TIME,
        },
    );
    let at = frame.outcome_span()?.start;
    let place = range_of(&outcome, raw.get().as_bytes());
    let mut s = Splice::new();
    s.replace(place.start + at..place.end + at, serde_json::to_vec(&text).ok()?);
    Frame::scan(s.apply(frame.bytes())).ok()
}

/// Begin a call whose caller can be asked.
pub fn begin(edge: &Arc<Edge>, call: Box<Call>, record: Record, id: Bytes) -> Running {
    let (notices, words) = Notices::conversation();
    let (done, end) = oneshot::channel();
    let (token, method, revision) = (call.meta.progress_token.clone(), call.method, call.revision);
    let (consumer, frame) = (call.consumer.clone(), call.frame.clone());
    let task = {
        let edge = edge.clone();
        tokio::spawn(async move {
            let terminal = edge.gateway.handle(&call, record, &notices).await;
            let terminal = wrapped(&edge, &call, terminal);
            let _ = done.send(tasks::sealed(&edge, &call, terminal).0);
        })
    };
    let conversation = Conversation {
        words,
        end,
        task,
        asked: Vec::new(),
        keys: 0,
        token: token.clone(),
        method,
        revision,
        consumer,
        frame,
        was_parked: false,
    };
    run(edge, conversation, id, token)
}

/// Take a parked call up again, with the answers that this request brings.
pub fn resume(
    edge: &Arc<Edge>,
    mut parked: Conversation,
    id: Bytes,
    frame: &Frame,
    meta: RequestMeta,
) -> Running {
    parked.answer(frame);
    parked.was_parked = true;
    run(edge, parked, id, meta.progress_token)
}

fn run(
    edge: &Arc<Edge>,
    conversation: Conversation,
    id: Bytes,
    token: Option<Box<str>>,
) -> Running {
    let (tx, notices) = heard::way();
    let edge = edge.clone();
    let work = Work::new(|| async move { Some(go_on(&edge, conversation, &id, token, tx).await) });
    Running::new(work, notices)
}

async fn go_on(
    edge: &Edge,
    mut conversation: Conversation,
    id: &[u8],
    token: Option<Box<str>>,
    tx: heard::Teller,
) -> Said {
    let (method, revision) = (conversation.method, conversation.revision);
    match conversation.turn(token.as_deref(), &tx).await {
        Some(terminal) => render(terminal, id, method, revision),
        None => render(park(edge, conversation), id, method, revision),
    }
}

fn park(edge: &Edge, conversation: Conversation) -> Terminal {
    let name = random_name();
    let mut requests = ObjectWriter::new();
    for (key, question) in &conversation.asked {
        let mut request = ObjectWriter::new();
        request.value("method", &question.method);
        if let Some(params) = &question.params {
            request.raw("params", params);
        }
        requests.raw(key, &request.finish());
    }
    let state = seal(
        edge,
        &Sealed {
            park: Some(name.clone()),
            state: None,
            owner: None,
            key: None,
            consumer: (&*conversation.consumer.name).into(),
            digest: digest(&conversation.frame).into(),
            until: now() + ANSWER_TIME.as_secs(),
        },
    );
    edge.parks.make_room(&conversation.consumer);
    edge.parks.0.insert(name, (conversation, Instant::now() + ANSWER_TIME));
    let result = ObjectWriter::new()
        .value("resultType", &"input_required")
        .raw("inputRequests", &requests.finish())
        .value("requestState", &state)
        .finish();
    Terminal::Own(result.into(), Form::Canonical)
}

impl Conversation {
    // Until the end, or until there is something to ask (`None`).
    async fn turn(&mut self, token: Option<&str>, tx: &heard::Teller) -> Option<Terminal> {
        let mut gathered: Option<Instant> = None;
        loop {
            self.forget();
            // What was asked before and not answered is asked again. The time runs from the first
            // question on, whatever else is said meanwhile.
            let until = (!self.asked.is_empty())
                .then(|| *gathered.get_or_insert_with(|| Instant::now() + GATHER));
            let gather = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = gather => return None,
                Some(word) = self.words.recv() => match word {
                    Word::Notice(notice) => self.tell(notice, token, tx),
                    Word::Question(question) => {
                        self.keys += 1;
                        self.asked.push((format!("q{}", self.keys), question));
                    }
                    // An answer that leaves in pieces can't be parked any more, and has the id
                    // of the request that began it.
                    Word::Offer(offer) if self.asked.is_empty() && !self.was_parked => {
                        let _ = tx.try_send(Heard::Offer(offer));
                    }
                    Word::Offer(declined) => drop(declined),
                },
                end = &mut self.end => {
                    while let Ok(word) = self.words.try_recv() {
                        if let Word::Notice(notice) = word {
                            self.tell(notice, token, tx);
                        }
                    }
                    let gone = "the call ended without an answer";
                    return Some(end.unwrap_or_else(|_| {
                        let failure = Refusal::new(Reason::Retired, gone);
                        Terminal::Error(crate::failure::Failure::from(failure).to_error())
                    }));
                }
            }
        }
    }

    // Questions that the upstream took back.
    fn forget(&mut self) {
        self.asked.retain(|(_, question)| !question.reply.is_closed());
    }

    fn answer(&mut self, frame: &Frame) {
        let Some(params) = frame.params() else { return };
        let Ok(members) = Members::read(&params) else { return };
        let Some(Ok(responses)) =
            members.get("inputResponses").map(|r| Members::read(r.get().as_bytes()))
        else {
            return;
        };
        let mut open = Vec::new();
        for (key, question) in std::mem::take(&mut self.asked) {
            match responses.get(&key) {
                Some(raw) => {
                    let answer = Bytes::copy_from_slice(raw.get().as_bytes());
                    let _ = question.reply.send(Reply::Result(answer));
                }
                None => open.push((key, question)),
            }
        }
        self.asked = open;
    }

    // With the token of the request that is open now; without one the caller wants no progress.
    fn tell(&self, notice: Bytes, token: Option<&str>, tx: &heard::Teller) {
        let notice =
            if token == self.token.as_deref() { Some(notice) } else { with_token(notice, token) };
        if let Some(notice) = notice {
            let _ = tx.try_send(Heard::Notice(notice));
        }
    }
}

fn with_token(notice: Bytes, token: Option<&str>) -> Option<Bytes> {
    let frame = Frame::scan(notice).ok()?;
    if frame.method() != "notifications/progress" {
        return Some(frame.bytes().clone());
    }
    let params = frame.params()?;
    let members = Members::read(&params).ok()?;
    let place = range_of(&params, members.get(key::PROGRESS_TOKEN)?.get().as_bytes());
    let at = frame.params_span()?.start;
    let mut s = Splice::new();
    s.replace(place.start + at..place.end + at, token?.as_bytes().to_vec());
    Some(s.apply(frame.bytes()))
}
