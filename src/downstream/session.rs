//! The session table of old clients: bounded, expiring, used by the legacy edge only.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use dashmap::DashMap;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::call::{Consumer, Reply};
use crate::protocol::capability::Askable;
use crate::protocol::revision::Revision;

/// Most requests of one session in flight: more is no client at work.
pub const SESSION_CALLS_MAX: usize = 1024;

/// What a client said of itself in its handshake (any old revision, basic/lifecycle).
pub struct Session {
    /// `Mcp-Session-Id`; on a pipe a number that nobody can name.
    pub id: Arc<str>,
    /// Who opened it; nobody else may use it.
    pub consumer: Arc<Consumer>,
    /// The revision agreed on.
    pub revision: Revision,
    /// `clientInfo`, raw.
    pub client_info: Option<Box<str>>,
    /// What the client can be asked.
    pub askable: Askable,
    /// Questions that the client has not answered yet, by our raw id.
    pub asked: DashMap<Bytes, oneshot::Sender<Reply>>,
    next_question: AtomicU64,
    /// The level of `logging/setLevel`.
    pub log_level: Mutex<Option<Box<str>>>,
    /// Running requests by raw id, so that they can be cancelled.
    pub running: DashMap<Bytes, CancellationToken>,
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
    pub fn new(
        id: Arc<str>,
        consumer: Arc<Consumer>,
        revision: Revision,
        client_info: Option<Box<str>>,
        askable: Askable,
    ) -> Session {
        Session {
            id,
            consumer,
            revision,
            client_info,
            askable,
            asked: DashMap::with_shard_amount(2),
            next_question: AtomicU64::new(1),
            log_level: Mutex::new(None),
            running: DashMap::with_shard_amount(2),
            stream: Mutex::new(CancellationToken::new()),
            ended: CancellationToken::new(),
            streams: AtomicUsize::new(0),
            used_ms: AtomicU64::new(0),
            born: Instant::now(),
        }
    }

    /// A raw id for a question; never used twice in a session.
    pub fn question_id(&self) -> Bytes {
        let n = self.next_question.fetch_add(1, Ordering::Relaxed);
        format!("\"weir-{n}\"").into()
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

/// All sessions.
#[derive(Default)]
pub struct Sessions(DashMap<Arc<str>, Arc<Session>>);

impl Sessions {
    /// Open one. When `max` are open the longest idle one makes room; when none is idle, `None`.
    pub fn open(
        &self,
        consumer: Arc<Consumer>,
        revision: Revision,
        client_info: Option<Box<str>>,
        askable: Askable,
        max: usize,
    ) -> Option<Arc<Session>> {
        if self.0.len() >= max {
            let idlest = self
                .0
                .iter()
                .map(|s| (s.idle(), s.key().clone()))
                .max_by_key(|(idle, _)| *idle)
                .filter(|(idle, _)| !idle.is_zero())?;
            self.end(&idlest.1);
        }
        let mut bytes = [0u8; 16];
        getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
        let id: Arc<str> = URL_SAFE_NO_PAD.encode(bytes).into();
        let session = Arc::new(Session::new(id.clone(), consumer, revision, client_info, askable));
        self.0.insert(id, session.clone());
        Some(session)
    }

    /// The session of this id, if it is this consumer's. Somebody else's is as unknown as none.
    pub fn find(&self, id: &str, consumer: &Consumer) -> Option<Arc<Session>> {
        let session = self.0.get(id)?.clone();
        if session.consumer.name != consumer.name {
            return None;
        }
        session.touch();
        Some(session)
    }

    /// End one: its calls are cancelled, its stream closes.
    pub fn end(&self, id: &str) -> bool {
        let Some((_, session)) = self.0.remove(id) else { return false };
        session.ended.cancel();
        for running in &session.running {
            running.cancel();
        }
        true
    }

    /// End those that have been idle for longer.
    pub fn expire(&self, idle: Duration) {
        let old: Vec<Arc<str>> =
            self.0.iter().filter(|s| s.idle() > idle).map(|s| s.key().clone()).collect();
        for id in old {
            self.end(&id);
        }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumer(name: &str) -> Arc<Consumer> {
        Arc::new(Consumer { name: name.into(), view: None })
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_makes_room_and_strangers_find_nothing() {
        let sessions = Sessions::default();
        let px = consumer("px");
        let a =
            sessions.open(px.clone(), Revision::R2025_06_18, None, Askable::default(), 2).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        let b =
            sessions.open(px.clone(), Revision::R2025_06_18, None, Askable::default(), 2).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(sessions.find(&a.id, &consumer("sales")).is_none());
        assert!(sessions.find(&a.id, &px).is_some());
        assert!(
            sessions.open(px.clone(), Revision::R2025_06_18, None, Askable::default(), 2).is_some()
        );
        assert!(sessions.find(&b.id, &px).is_none(), "b was idle for longer than a");
        assert!(b.ended.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn idle_ones_expire_and_busy_ones_stay() {
        let sessions = Sessions::default();
        let px = consumer("px");
        let idle =
            sessions.open(px.clone(), Revision::R2025_06_18, None, Askable::default(), 9).unwrap();
        let busy =
            sessions.open(px.clone(), Revision::R2025_06_18, None, Askable::default(), 9).unwrap();
        let token = CancellationToken::new();
        busy.running.insert(Bytes::from_static(b"1"), token.clone());
        tokio::time::advance(Duration::from_secs(61)).await;
        sessions.expire(Duration::from_secs(60));
        assert!(sessions.find(&idle.id, &px).is_none());
        assert!(sessions.find(&busy.id, &px).is_some());
        assert!(sessions.end(&busy.id) && token.is_cancelled());
        assert!(!sessions.end(&busy.id));
    }
}
