//! Conversations with an old upstream that may ask back, each for the callers of one owner.
//!
//! An old upstream's question does not say whom it is for. Over HTTP it comes on the stream of
//! the call that caused it; on a pipe it comes on its own. So a conversation that declares what
//! can be asked belongs to one owner (`isolation`), and on a pipe it carries one call at a time:
//! then there is only one caller that a question can be for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use crate::call::{Asides, Call, Reply};
use crate::config::{EraChoice, Isolation, TransportConfig, UpstreamConfig};
use crate::failure::{Delivery, Fault, Reason};
use crate::protocol::capability::Askable;
use crate::protocol::message::{Frame, Kind, message, response};
use crate::protocol::task::{TaskSupport, Tasks};

use super::asking::Asking;
use super::connector::Connector;
use super::events;
use super::idle;
use super::keeper::{AbortOnDrop, Note, ended, is_change, refuse};
use super::link::{Link, Wire};
use super::starts::Cause;
use super::transport::Unasked;

/// Most conversations of this kind with one upstream: each is a session there, or a process here.
const LEASES_MAX: usize = 64;
/// Calls at once in one conversation on a pipe: one is carried, the others wait for it.
const LINE_MAX: usize = 32;
/// Questions for roots outside of calls that are open in one conversation: one would do, and a
/// second may overtake it.
const ROOTS_ASKED_MAX: usize = 2;
/// So long without a call, and a conversation is ended.
const LEASE_IDLE: Duration = Duration::from_secs(600);
/// How often that is looked at at least; more often where `idle_stop` is shorter.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Whose a conversation is, and what may be asked in it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    owner: Box<str>,
    askable: Askable,
}

impl Key {
    fn of_one_call(&self) -> bool {
        self.owner.starts_with("c ")
    }
}

/// All such conversations with one upstream.
#[derive(Default)]
pub struct Leases {
    open: Mutex<HashMap<Key, Arc<Lease>>>,
    unnamed: AtomicU64,
    // `idle_stop` in milliseconds, as the last call had it; 0: not set.
    idle_stop: AtomicU64,
    // Sessions whose change of roots is being told, and whether there was another since.
    telling: Mutex<HashMap<Box<str>, bool>>,
}

/// One conversation, made when first needed and again when it was lost.
struct Lease {
    live: tokio::sync::Mutex<Option<Live>>,
    turn: Arc<Semaphore>,
    users: AtomicUsize,
    used: Mutex<Instant>,
}

struct Live {
    link: Arc<Link>,
    hearing: Arc<Hearing>,
    // End with the conversation.
    _listener: AbortOnDrop,
    _stream: Option<AbortOnDrop>,
}

/// Who is listening on a pipe now: the one call that it carries.
#[derive(Default)]
pub struct Hearing(Mutex<Option<mpsc::Sender<Unasked>>>);

impl Hearing {
    /// From now on this call.
    pub fn begin(&self, call: mpsc::Sender<Unasked>) {
        *lock(&self.0) = Some(call);
    }

    /// Nobody any more.
    pub fn end(&self) {
        *lock(&self.0) = None;
    }

    fn now(&self) -> Option<mpsc::Sender<Unasked>> {
        lock(&self.0).clone()
    }
}

/// A conversation in use.
pub struct Held {
    /// The way.
    pub link: Arc<Link>,
    /// Where a pipe's questions go; over HTTP they come with their call.
    pub hearing: Option<Arc<Hearing>>,
    lease: Arc<Lease>,
    // The call has ended by itself, and nothing of it is still to come.
    over: AtomicBool,
    // Of one call only: it ends with it.
    once: Option<(Weak<Leases>, Key)>,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Whether the call ended, with an answer or without; otherwise it was broken off.
    pub fn ended(&self, over: bool) {
        self.over.store(over, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(hearing) = &self.hearing {
            hearing.end();
            // On a pipe the upstream may still be at a call that was broken off, and what it asks
            // then would reach the next caller.
            if !self.over.load(Ordering::Relaxed) {
                self.link.lost();
                let link = self.link.clone();
                tokio::spawn(async move { link.close().await });
            }
        }
        *lock(&self.lease.used) = Instant::now();
        self.lease.users.fetch_sub(1, Ordering::AcqRel);
        if let Some((leases, key)) = self.once.take()
            && let Some(leases) = leases.upgrade()
            && leases.forget(&key, &self.lease)
        {
            let lease = self.lease.clone();
            tokio::spawn(async move { lease.close().await });
        }
    }
}

impl Leases {
    /// The conversation for a call, waited for on a pipe until the calls before it are done.
    pub async fn take(
        self: &Arc<Self>,
        connector: &Arc<Connector>,
        config: &Arc<UpstreamConfig>,
        main: &Link,
        asking: Asking<'_>,
        in_turn: bool,
    ) -> Result<Held, Fault> {
        let Asking { call, deadline, guard, .. } = asking;
        let owner: Box<str> = match (config.isolation, &call.session) {
            (Isolation::Session, Some(session)) => of_session(session),
            (Isolation::Session, None) => {
                format!("c {}", self.unnamed.fetch_add(1, Ordering::Relaxed)).into()
            }
            _ => of_consumer(&call.consumer.name),
        };
        // What is asked outside of its calls is for its owner, if that is one client.
        let client = call.asides.as_ref().filter(|_| config.isolation == Isolation::Session);
        let client = client.map(Arc::downgrade).unwrap_or_default();
        let key = Key { owner, askable: call.askable };
        let idle_stop = config.child.idle_stop.map_or(0, |stop| stop.as_millis().max(1) as u64);
        self.idle_stop.store(idle_stop, Ordering::Relaxed);
        let lease = self.find(&key)?;
        // Counted before anything is waited for, so that it is not taken for idle meanwhile.
        let mut held = Using(Some(lease.clone()));
        let exclusive = main.wire.is_pipe();
        // What causes no question must not wait behind the call that does.
        let turn = if exclusive && in_turn {
            if lease.users.load(Ordering::Acquire) > LINE_MAX {
                let text = "it was not called: as many calls wait for its conversation as may";
                return Err(Fault::new(Reason::QueueFull, Delivery::NotSent, text));
            }
            let turns = lease.turn.clone();
            let turn = match turns.clone().try_acquire_owned() {
                Ok(turn) => Ok(turn),
                // Whoever waits for another's person must not keep a place from other consumers.
                Err(_) => {
                    let _aside = guard.lend();
                    let began = Instant::now();
                    let turn = deadline.run(turns.acquire_owned()).await;
                    // The upstream was not slow: it was not asked.
                    deadline.set_aside(began.elapsed());
                    turn.map_err(|_| {
                        let text = "it was not called: its conversation was in use for too long";
                        Fault::new(Reason::QueueFull, Delivery::NotSent, text)
                    })?
                }
            };
            Some(turn.expect("the semaphore is never closed"))
        } else {
            None
        };
        let mut live = lease.live.lock().await;
        let fits = |l: &Live| !l.link.is_lost() && l.link.wire.is_pipe() == exclusive;
        if !live.as_ref().is_some_and(fits) {
            *live = None;
            let _place = match config.transport {
                TransportConfig::Stdio(_) => {
                    let starts = &connector.site.starts;
                    Some(starts.enter(Cause::Wanted, config.connect_timeout).await)
                }
                TransportConfig::Http(_) => None,
            };
            let connected = connector.connect(config, EraChoice::Legacy, call.askable).await;
            // It is the making of a conversation that failed: the call was not sent.
            let (mut link, unasked) =
                connected.map_err(|fault| Fault { delivery: Delivery::NotSent, ..fault })?;
            if link.wire.is_pipe() != exclusive {
                // The upstream was found to speak otherwise while we waited.
                link.close().await;
                let text = "it was not called: how the upstream is reached has just changed";
                return Err(Fault::new(Reason::ConnectionLost, Delivery::NotSent, text));
            }
            let own = format!("{}/{}", key.owner, key.askable.bits());
            link.owner = Some(match &connector.replica {
                Some(replica) => format!("{} {own}", replica.tag).into(),
                None => own.into(),
            });
            *live = Some(Live::new(link, unasked, connector.notes.clone(), client));
        }
        let live = live.as_ref().expect("made above");
        held.0 = None;
        let once = key.of_one_call().then(|| (Arc::downgrade(self), key));
        Ok(Held {
            over: AtomicBool::new(false),
            once,
            link: live.link.clone(),
            hearing: (exclusive && in_turn).then(|| live.hearing.clone()),
            lease: lease.clone(),
            _turn: turn,
        })
    }

    fn find(self: &Arc<Self>, key: &Key) -> Result<Arc<Lease>, Fault> {
        let mut open = lock(&self.open);
        if !open.contains_key(key) && open.len() >= LEASES_MAX {
            let idlest = open
                .iter()
                .filter(|(_, l)| l.users.load(Ordering::Acquire) == 0)
                .min_by_key(|(_, l)| *lock(&l.used))
                .map(|(k, _)| k.clone());
            let Some(lease) = idlest.and_then(|k| open.remove(&k)) else {
                return Err(Fault::new(
                    Reason::Overloaded,
                    Delivery::NotSent,
                    "as many conversations that can ask back as may be are in use",
                ));
            };
            tokio::spawn(async move { lease.close().await });
        }
        let lease = open.entry(key.clone()).or_insert_with(|| {
            let lease = Arc::new(Lease {
                live: tokio::sync::Mutex::new(None),
                turn: Arc::new(Semaphore::new(1)),
                users: AtomicUsize::new(0),
                used: Mutex::new(Instant::now()),
            });
            let weak = (Arc::downgrade(self), Arc::downgrade(&lease));
            tokio::spawn(look_after(weak.0, key.clone(), weak.1));
            lease
        });
        lease.users.fetch_add(1, Ordering::AcqRel);
        Ok(lease.clone())
    }

    // Whether this one was, or long is, of no use to anybody.
    fn forget(&self, key: &Key, lease: &Arc<Lease>) -> bool {
        let mut open = lock(&self.open);
        // Another has its place, or there is none.
        if open.get(key).is_none_or(|l| !Arc::ptr_eq(l, lease)) {
            return true;
        }
        let idle = lock(&lease.used).elapsed();
        let over = lease.users.load(Ordering::Acquire) == 0
            && (idle >= self.idle_max() || key.of_one_call());
        if over {
            open.remove(key);
        }
        over
    }

    fn idle_max(&self) -> Duration {
        match self.idle_stop.load(Ordering::Relaxed) {
            0 => LEASE_IDLE,
            stop => LEASE_IDLE.min(Duration::from_millis(stop)),
        }
    }

    /// End them all.
    pub async fn close(&self) {
        let all: Vec<_> = lock(&self.open).drain().map(|(_, lease)| lease).collect();
        let mut ends = tokio::task::JoinSet::new();
        for lease in all {
            ends.spawn(async move { lease.close().await });
        }
        while ends.join_next().await.is_some() {}
    }

    /// See [`Upstream::roots_changed`](super::Upstream::roots_changed). However often that is
    /// said meanwhile, it is handed on once more.
    pub fn roots_changed(self: &Arc<Self>, consumer: &str, session: &str) {
        if let Some(again) = lock(&self.telling).get_mut(session) {
            *again = true;
            return;
        }
        let (leases, consumer, session) = (self.clone(), Box::from(consumer), Box::from(session));
        lock(&self.telling).insert(Box::clone(&session), false);
        tokio::spawn(async move {
            loop {
                leases.tell_roots(&consumer, &session).await;
                let mut telling = lock(&leases.telling);
                match telling.get_mut(&session) {
                    Some(again) if *again => *again = false,
                    _ => {
                        telling.remove(&session);
                        return;
                    }
                }
            }
        });
    }

    async fn tell_roots(&self, consumer: &str, session: &str) {
        let owners = [of_consumer(consumer), of_session(session)];
        let concerned =
            |key: &Key| owners.contains(&key.owner) && key.askable.has(Askable::ROOTS_CHANGE);
        let all: Vec<_> = lock(&self.open)
            .iter()
            .filter(|(key, _)| concerned(key))
            .map(|(_, lease)| lease.clone())
            .collect();
        for lease in all {
            let link = lease.live.lock().await.as_ref().map(|live| live.link.clone());
            if let Some(link) = link {
                let _ = link.notify(message(None, "notifications/roots/list_changed", None)).await;
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        lock(&self.open).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

// Gives back a use that came to nothing.
struct Using(Option<Arc<Lease>>);

impl Drop for Using {
    fn drop(&mut self) {
        if let Some(lease) = &self.0 {
            lease.users.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Lease {
    async fn close(&self) {
        if let Some(live) = self.live.lock().await.take() {
            live.link.close().await;
        }
    }
}

impl Live {
    fn new(
        link: Link,
        mut unasked: mpsc::Receiver<Unasked>,
        notes: mpsc::Sender<Note>,
        client: Weak<Asides>,
    ) -> Live {
        let (link, hearing) = (Arc::new(link), Arc::<Hearing>::default());
        if let Wire::Pipe(pipe) = &link.wire {
            pipe.carries_one_call();
        }
        // Over HTTP what belongs to no call comes on a stream of its own, which is worth having
        // where there may be something for the owner.
        let roots = link.askable.has(Askable::ROOTS) && client.strong_count() > 0;
        let stream = (roots || link.askable.has(Askable::URL))
            .then(|| AbortOnDrop(tokio::spawn(events::follow_leased(link.clone()))));
        let listener = {
            let (link, hearing) = (link.clone(), hearing.clone());
            let places = Arc::new(Semaphore::new(ROOTS_ASKED_MAX));
            tokio::spawn(async move {
                let lost = link.clone();
                let gone = ended(&lost);
                tokio::pin!(gone);
                loop {
                    let message = tokio::select! {
                        message = unasked.recv() => message,
                        _ = &mut gone => {
                            link.lost();
                            return;
                        }
                    };
                    let Some(message) = message else {
                        // HTTP has nobody who says anything here; wait for the end.
                        gone.as_mut().await;
                        return link.lost();
                    };
                    // Never waits: what finds no room is refused.
                    let concerns_all = matches!(&message, Unasked::Notification(frame)
                        if is_change(frame.method()));
                    let left = match hearing.now() {
                        Some(call) if !concerns_all => {
                            call.try_send(message).err().map(|e| match e {
                                mpsc::error::TrySendError::Full(m)
                                | mpsc::error::TrySendError::Closed(m) => m,
                            })
                        }
                        _ => Some(message),
                    };
                    match left {
                        Some(Unasked::Request(frame)) => {
                            aside(&link, frame, &client, &places).await;
                        }
                        Some(Unasked::Notification(frame)) => {
                            let owner = link.owner.clone();
                            let _ = notes.try_send(Note { frame, owner });
                        }
                        None => {}
                    }
                }
            })
        };
        Live { link, hearing, _listener: AbortOnDrop(listener), _stream: stream }
    }
}

// A question that belongs to no call. Where the conversation is one client's, that client can say
// what its roots are; nothing else is anybody's to answer (2025-11-25 client/roots).
async fn aside(link: &Arc<Link>, frame: Frame, client: &Weak<Asides>, places: &Arc<Semaphore>) {
    let client = client
        .upgrade()
        .filter(|_| frame.method() == "roots/list" && link.askable.has(Askable::ROOTS));
    let place = places.clone().try_acquire_owned();
    let (Some(client), Some(id), Ok(place)) = (client, frame.id(), place) else {
        return refuse(link, &frame).await;
    };
    let link = link.clone();
    tokio::spawn(async move {
        let _place = place;
        let answer = tokio::select! {
            answer = client.ask(frame.method(), frame.params()) => answer,
            () = link.when_lost() => return,
        };
        let answer = match answer {
            Some(Reply::Result(result)) => response(&id, Kind::Result, &result),
            Some(Reply::Error(error)) => response(&id, Kind::Error, &error),
            None => return refuse(&link, &frame).await,
        };
        let _ = link.notify(answer).await;
    });
}

fn of_session(session: &str) -> Box<str> {
    format!("s {session}").into()
}

fn of_consumer(consumer: &str) -> Box<str> {
    format!("n {consumer}").into()
}

// Ends a conversation that is lost or that nobody has used for long.
async fn look_after(leases: Weak<Leases>, key: Key, lease: Weak<Lease>) {
    let mut every = LOOK_EVERY;
    loop {
        if let Some(leases) = leases.upgrade() {
            every = idle::pause(leases.idle_max()).min(LOOK_EVERY);
        }
        tokio::time::sleep(every).await;
        let (Some(leases), Some(lease)) = (leases.upgrade(), lease.upgrade()) else { return };
        if leases.forget(&key, &lease) {
            return lease.close().await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can panic half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a conversation of this kind is needed: the upstream's era cannot say in a call what
/// its caller can be asked, and this caller can be asked something.
///
/// A task outlives its call. Where the conversation would not, it belongs to the shared one.
pub fn needed(main: &Link, config: &UpstreamConfig, call: &Call, support: TaskSupport) -> bool {
    let becomes_task = call.tasks == Tasks::Welcome && support == TaskSupport::Required;
    let outlives = (call.task.is_some() || becomes_task) && call.session.is_none();
    main.era() == crate::protocol::revision::Era::Legacy
        && !call.askable.is_nothing()
        && config.isolation != Isolation::Shared
        && !(outlives && config.isolation == Isolation::Session)
}
