//! The sessions of old clients: a bounded, expiring table, used by the legacy edge only.
//!
//! What was agreed in a handshake is sealed into the session's id, so the table is a memory and
//! not the truth: a session goes on after a restart, and at another gateway with the same key.
//! What is lost then is what it had set since (log level, open streams).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use dashmap::DashMap;
use hashbrown::DefaultHashBuilder;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::call::{Asides, Consumer, Reply, TaskName};
use crate::protocol::capability::Askable;
use crate::protocol::revision::Revision;

use crate::gateway::subscriptions::Known;

use super::cancel::Cancel;
use super::listen::Watches;
use super::replay::Replay;
use crate::seal::{Purpose, Sealer};
use crate::upstream::subscriptions::{Updated, Watch};

/// Most requests of one session in flight: more is no client at work.
pub const SESSION_CALLS_MAX: usize = 1024;

/// Most tasks of one session whose news are told: older ones are had by asking.
const TASKS_MAX: usize = 64;

/// What a handshake agrees on.
pub struct Hello {
    /// The revision that the client gets.
    pub revision: Revision,
    /// `clientInfo`, raw.
    pub client_info: Option<Arc<str>>,
    /// What the client can be asked.
    pub askable: Askable,
}

/// What a client said of itself in its handshake (any old revision, basic/lifecycle).
pub struct Session {
    /// `Mcp-Session-Id`; on a pipe a number that nobody can name.
    pub id: Arc<str>,
    /// Who opened it; nobody else may use it.
    pub consumer: Arc<Consumer>,
    /// The revision agreed on.
    pub revision: Revision,
    /// `clientInfo`, raw.
    pub client_info: Option<Arc<str>>,
    /// What the client can be asked.
    pub askable: Askable,
    /// Questions that the client has not answered yet, by our raw id.
    pub asked: DashMap<Bytes, oneshot::Sender<Reply>>,
    next_question: AtomicU64,
    /// What `resources/subscribe` asked for.
    pub watches: Mutex<Watches>,
    /// The level of `logging/setLevel`.
    pub log_level: Mutex<Option<Box<str>>>,
    /// Running requests by raw id, so that they can be cancelled.
    pub running: DashMap<Bytes, Cancel, DefaultHashBuilder>,
    /// What was said on the streams of its calls.
    pub replay: Replay,
    /// What its client is told besides, outside of its calls.
    pub asides: Arc<Asides>,
    /// The tasks that its calls became, the newest last.
    tasks: Mutex<VecDeque<(Watch, TaskName)>>,
    /// What its client was last told about, between two GET streams.
    pub told: Mutex<Option<Known>>,
    /// It has had a stream of changes, so there can be a gap before the next one.
    pub has_listened: AtomicBool,
    next_event: AtomicU64,
    /// Replaces the open GET stream by a new one.
    pub stream: Mutex<CancellationToken>,
    /// Ended: by the client, by age, or to make room.
    pub ended: CancellationToken,
    /// Open GET streams; such a session is not idle.
    pub streams: AtomicUsize,
    used_ms: AtomicU64,
    born: Instant,
}

impl Session {
    /// A session that begins now.
    pub fn new(id: Arc<str>, consumer: Arc<Consumer>, hello: Hello) -> Session {
        let Hello { revision, client_info, askable } = hello;
        Session {
            id,
            consumer,
            revision,
            client_info,
            askable,
            watches: Mutex::default(),
            asked: DashMap::with_shard_amount(2),
            next_question: AtomicU64::new(1),
            log_level: Mutex::new(None),
            running: DashMap::with_hasher_and_shard_amount(DefaultHashBuilder::default(), 2),
            replay: Replay::default(),
            asides: Arc::default(),
            tasks: Mutex::default(),
            told: Mutex::default(),
            has_listened: AtomicBool::new(false),
            next_event: AtomicU64::new(1),
            stream: Mutex::new(CancellationToken::new()),
            ended: CancellationToken::new(),
            streams: AtomicUsize::new(0),
            used_ms: AtomicU64::new(0),
            born: Instant::now(),
        }
    }

    /// One of its calls became a task.
    pub fn began(&self, watch: Watch, name: TaskName) {
        let mut tasks = self.tasks.lock().expect("no panic while held");
        if tasks.len() >= TASKS_MAX {
            tasks.pop_front();
        }
        tasks.push_back((watch, name));
    }

    /// The task that this is, if it is one of its own.
    pub fn task(&self, what: &Updated) -> Option<TaskName> {
        let tasks = self.tasks.lock().expect("no panic while held");
        tasks.iter().find(|(own, _)| own.what() == what).map(|(_, name)| name.clone())
    }

    /// A raw id for a question; never used twice in a session.
    pub fn question_id(&self) -> Bytes {
        let n = self.next_question.fetch_add(1, Ordering::Relaxed);
        format!("\"weir-{n}\"").into()
    }

    /// An id for an event on the GET stream; never used twice in a session.
    pub fn event_id(&self) -> String {
        format!("g{}", self.next_event.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether events came on the GET stream behind the one that this names.
    pub fn has_more_than(&self, event_id: &str) -> bool {
        let newest = self.next_event.load(Ordering::Relaxed) - 1;
        event_id.strip_prefix('g').is_some_and(|n| n.parse() != Ok(newest))
    }

    fn touch(&self) {
        self.used_ms.store(self.born.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn idle(&self) -> Duration {
        if self.streams.load(Ordering::Relaxed) > 0 || !self.running.is_empty() {
            return Duration::ZERO;
        }
        self.born
            .elapsed()
            .saturating_sub(Duration::from_millis(self.used_ms.load(Ordering::Relaxed)))
    }
}

/// What a session id says of its session, sealed: whoever presents it to this gateway, or to
/// another with the same key, finds the session as it was agreed, also after a restart.
#[derive(Serialize, Deserialize)]
struct Sealed {
    consumer: Box<str>,
    revision: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_info: Option<Box<RawValue>>,
    askable: u8,
    /// Unix time in seconds until which it is found again.
    until: u64,
}

/// How long an id opens its session again where it is not remembered: a session that somebody
/// works in is, and after so long the client has been started anew.
const FOUND_AGAIN: Duration = Duration::from_secs(30 * 24 * 3600);

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What a session id leads to.
pub enum Found {
    /// This.
    Session(Arc<Session>),
    /// Nothing: it never was, has ended, or is somebody else's.
    Unknown,
    /// A session that is good, and for which there is no room now.
    NoRoom,
}

/// Longest `clientInfo` that is sealed in; an id travels with each request.
const CLIENT_INFO_MAX: usize = 1024;

/// How many ended sessions are remembered at most, so that their ids open nothing. Eight bytes each.
const ENDED_MAX: usize = 65_536;
/// Of so many whose digests share a row of the table the oldest gives way to the next. Rows fill
/// unevenly: with sixteen places all of the last half of [`ENDED_MAX`] are known, but for one or two
/// in a hundred.
const ENDED_ROW: usize = 16;

/// Ended sessions. A table that is made once and never grows, so that a gateway on which sessions
/// begin and end for days takes no more memory than after an hour.
struct Ended(Box<[[u64; ENDED_ROW]]>);

impl Default for Ended {
    fn default() -> Ended {
        Ended(vec![[0; ENDED_ROW]; ENDED_MAX / ENDED_ROW].into())
    }
}

impl Ended {
    // The digest of an id, which is not 0 as an empty place is, and where it belongs.
    fn row(&mut self, id: &str) -> (u64, &mut [u64; ENDED_ROW]) {
        let digest = Sha256::digest(id.as_bytes());
        let short = digest.iter().take(8).fold(0, |n, byte| n << 8 | u64::from(*byte)).max(1);
        let at = (short % self.0.len() as u64) as usize;
        (short, &mut self.0[at])
    }

    fn insert(&mut self, id: &str) {
        let (short, row) = self.row(id);
        if !row.contains(&short) {
            row.rotate_right(1);
            row[0] = short;
        }
    }

    fn contains(&mut self, id: &str) -> bool {
        let (short, row) = self.row(id);
        row.contains(&short)
    }
}

/// All sessions.
#[derive(Default)]
pub struct Sessions {
    open: DashMap<Arc<str>, Arc<Session>, DefaultHashBuilder>,
    ended: Mutex<Ended>,
}

impl Sessions {
    /// Open one. When `max` are open the longest idle one makes room, to be found again when its
    /// client comes back; when none is idle, `None`.
    pub fn open(
        &self,
        sealer: &Sealer,
        consumer: Arc<Consumer>,
        hello: Hello,
        max: usize,
    ) -> Option<Arc<Session>> {
        let info = hello.client_info.clone().filter(|info| info.len() <= CLIENT_INFO_MAX);
        let sealed = Sealed {
            consumer: (&*consumer.name).into(),
            revision: hello.revision.as_str().into(),
            client_info: info.and_then(|info| RawValue::from_string((*info).into()).ok()),
            askable: hello.askable.bits(),
            until: unix_now() + FOUND_AGAIN.as_secs(),
        };
        let plain = serde_json::to_vec(&sealed).expect("our own values serialise");
        let id: Arc<str> = sealer.seal(Purpose::Session, &plain).into();
        self.insert(Session::new(id, consumer, hello), max)
    }

    fn insert(&self, session: Session, max: usize) -> Option<Arc<Session>> {
        if self.open.len() >= max {
            let idlest = self
                .open
                .iter()
                .map(|s| (s.idle(), s.key().clone()))
                .max_by_key(|(idle, _)| *idle)
                .filter(|(idle, _)| !idle.is_zero())?;
            self.close(&idlest.1);
        }
        // Two requests may bring the same sealed id at once: one session comes of it.
        let session = self.open.entry(session.id.clone()).or_insert_with(|| Arc::new(session));
        Some(session.clone())
    }

    /// The session of this id, if it is this consumer's. Somebody else's is as unknown as none.
    /// `max`: how many may be open.
    pub fn find(
        &self,
        sealer: &Sealer,
        id: &str,
        consumer: &Arc<Consumer>,
        max: impl FnOnce() -> usize,
    ) -> Found {
        let known = self.open.get(id).map(|s| s.clone());
        let found = match known {
            Some(session) => Found::Session(session),
            None => self.found_again(sealer, id, consumer, max()),
        };
        match found {
            Found::Session(session) if session.consumer.name == consumer.name => {
                session.touch();
                Found::Session(session)
            }
            Found::NoRoom => Found::NoRoom,
            _ => Found::Unknown,
        }
    }

    // Begun before a restart, at another gateway, or gone to make room.
    fn found_again(
        &self,
        sealer: &Sealer,
        id: &str,
        consumer: &Arc<Consumer>,
        max: usize,
    ) -> Found {
        let Some(hello) = self.unsealed(sealer, id, consumer) else { return Found::Unknown };
        match self.insert(Session::new(id.into(), consumer.clone(), hello), max) {
            // Ended while it was being opened.
            Some(_) if self.has_ended(id) => {
                self.close(id);
                Found::Unknown
            }
            Some(session) => Found::Session(session),
            None => Found::NoRoom,
        }
    }

    fn unsealed(&self, sealer: &Sealer, id: &str, consumer: &Consumer) -> Option<Hello> {
        let plain = sealer.open(Purpose::Session, id)?;
        let sealed: Sealed = serde_json::from_slice(&plain).ok()?;
        if *sealed.consumer != *consumer.name || sealed.until < unix_now() || self.has_ended(id) {
            return None;
        }
        Some(Hello {
            revision: Revision::parse(&sealed.revision)?,
            client_info: sealed.client_info.map(|info| info.get().into()),
            askable: Askable::from_bits(sealed.askable),
        })
    }

    fn has_ended(&self, id: &str) -> bool {
        self.ended.lock().expect("no panic while held").contains(id)
    }

    /// End one for good: its calls are cancelled, its stream closes, its id opens nothing.
    pub fn end(&self, id: &str) -> bool {
        self.ended.lock().expect("no panic while held").insert(id);
        self.close(id)
    }

    fn close(&self, id: &str) -> bool {
        let Some((_, session)) = self.open.remove(id) else { return false };
        session.ended.cancel();
        for running in &session.running {
            running.cancel();
        }
        true
    }

    /// End those that have been idle for longer.
    pub fn expire(&self, idle: Duration) {
        let old: Vec<Arc<str>> =
            self.open.iter().filter(|s| s.idle() > idle).map(|s| s.key().clone()).collect();
        for id in old {
            self.end(&id);
        }
        for session in &self.open {
            session.replay.expire();
        }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn consumer(name: &str) -> Arc<Consumer> {
        Arc::new(Consumer { name: name.into(), view: None })
    }

    fn found(found: Found) -> Option<Arc<Session>> {
        match found {
            Found::Session(session) => Some(session),
            Found::Unknown | Found::NoRoom => None,
        }
    }

    fn hello() -> Hello {
        let info = Some(r#"{"name":"c","version":"1"}"#.into());
        Hello { revision: Revision::R2025_06_18, client_info: info, askable: Askable::FORM }
    }

    #[test]
    fn so_many_ended_ones_are_remembered_and_the_newest_of_all() {
        let mut ended = Ended::default();
        let id = |n: usize| format!("session {n}");
        for n in 0..ENDED_MAX / 4 {
            ended.insert(&id(n));
            ended.insert(&id(n));
        }
        let forgotten = (0..ENDED_MAX / 4).filter(|n| !ended.contains(&id(*n))).count();
        assert!(forgotten < 100, "{forgotten} of a quarter of the table");
        for n in 0..ENDED_MAX * 2 {
            ended.insert(&id(n));
            assert!(ended.contains(&id(n)));
        }
        let known = (0..ENDED_MAX * 2).filter(|n| ended.contains(&id(*n))).count();
        assert!((ENDED_MAX / 2..=ENDED_MAX).contains(&known), "{known}");
        assert!(!ended.contains(&id(ENDED_MAX * 3)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_makes_room_and_is_found_again() {
        let (sessions, sealer, px) = (Sessions::default(), Sealer::random(), consumer("px"));
        let find = |id: &str, who: &str| found(sessions.find(&sealer, id, &consumer(who), || 2));
        let a = sessions.open(&sealer, px.clone(), hello(), 2).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        let b = sessions.open(&sealer, px.clone(), hello(), 2).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(find(&a.id, "sales").is_none());
        assert!(find(&a.id, "px").is_some());
        assert!(sessions.open(&sealer, px.clone(), hello(), 2).is_some());
        assert!(b.ended.is_cancelled(), "b was idle for longer than a");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(find(&b.id, "sales").is_none());
        let again = find(&b.id, "px").unwrap();
        assert_eq!((again.revision, again.askable), (b.revision, b.askable));
        assert_eq!(again.client_info, b.client_info);
        assert_eq!(sessions.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_ones_expire_and_busy_ones_stay() {
        let (sessions, sealer, px) = (Sessions::default(), Sealer::random(), consumer("px"));
        let idle = sessions.open(&sealer, px.clone(), hello(), 9).unwrap();
        let busy = sessions.open(&sealer, px.clone(), hello(), 9).unwrap();
        let token = Cancel::default();
        busy.running.insert(Bytes::from_static(b"1"), token.clone());
        tokio::time::advance(Duration::from_secs(61)).await;
        sessions.expire(Duration::from_secs(60));
        assert!(found(sessions.find(&sealer, &idle.id, &px, || 9)).is_none(), "ended for good");
        assert!(found(sessions.find(&sealer, &busy.id, &px, || 9)).is_some());
        assert!(sessions.end(&busy.id) && token.is_cancelled());
        assert!(!sessions.end(&busy.id));
        assert!(found(sessions.find(&sealer, &busy.id, &px, || 9)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_are_busy_a_good_id_is_not_unknown() {
        let (sessions, sealer, px) = (Sessions::default(), Sealer::random(), consumer("px"));
        let gone = Sessions::default().open(&sealer, px.clone(), hello(), 1).unwrap();
        let busy = sessions.open(&sealer, px.clone(), hello(), 1).unwrap();
        busy.running.insert(Bytes::from_static(b"1"), Cancel::default());
        assert!(matches!(sessions.find(&sealer, &gone.id, &px, || 1), Found::NoRoom));
        assert!(matches!(sessions.find(&sealer, "made-up", &px, || 1), Found::Unknown));
    }

    #[test]
    fn an_id_does_not_open_a_session_for_ever() {
        let (sealer, px) = (Sealer::random(), consumer("px"));
        let sealed = |until| {
            let sealed = Sealed {
                consumer: "px".into(),
                revision: "2025-06-18".into(),
                client_info: None,
                askable: 0,
                until,
            };
            let id = sealer.seal(Purpose::Session, &serde_json::to_vec(&sealed).unwrap());
            Sessions::default().unsealed(&sealer, &id, &px).is_some()
        };
        assert!(sealed(unix_now() + 60) && !sealed(unix_now() - 1));
    }

    #[tokio::test]
    async fn a_session_is_found_by_every_gateway_with_the_key_and_by_no_other() {
        let px = consumer("px");
        let id = Sessions::default().open(&Sealer::new(b"k"), px.clone(), hello(), 9).unwrap();
        let opens = |secret: &[u8], id: &str| {
            found(Sessions::default().find(&Sealer::new(secret), id, &px, || 9)).is_some()
        };
        assert!(opens(b"k", &id.id) && !opens(b"other", &id.id));
        assert!(!opens(b"k", "made-up") && !opens(b"k", ""));
        assert!(id.id.bytes().all(|b| b.is_ascii_graphic()) && id.id.len() < 400, "{}", id.id);
    }
}
