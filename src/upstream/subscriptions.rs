//! Which resources and tasks somebody wants to hear of, and who is told.
//!
//! One place for all upstreams, so that a wish outlives the conversation and even the upstream's
//! instance: each new link reads here what to subscribe to.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use crate::call::Form;
use crate::protocol::message::Kind;

use super::link::Link;

/// Most different resources of one upstream that are watched at once, and most tasks.
const WATCHED_MAX: usize = 10_000;
/// Updates that wait for a slow listener. One that falls further behind is told that all it
/// watches may have changed.
const UPDATES_MAX: usize = 1024;
/// The same for what tasks tell, which may carry a result. What is missed is had by asking.
const NEWS_MAX: usize = 64;
/// Longest of them: a few hundred bytes and, with luck, the result.
const NEWS_BYTES_MAX: usize = 64 << 10;
/// Wishes that change within this time are told to the upstream together.
const GATHER: Duration = Duration::from_millis(20);
/// How long it is waited whether other replicas tell of the same change, too.
const ECHO: Duration = Duration::from_millis(100);
/// How long an upstream may take to answer a subscription; the next ones wait for it.
const ASK_TIME: Duration = Duration::from_secs(10);

// How many wish for each of them, by upstream.
type Wanted = HashMap<(Subject, Arc<str>), BTreeMap<Arc<str>, usize>>;

/// What can be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A resource, by its URI.
    Resource,
    /// A task, by its id.
    Task,
}

/// A resource changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Updated {
    /// Whose it is.
    pub upstream: Arc<str>,
    /// Its URI there.
    pub uri: Arc<str>,
}

/// An upstream told how a task is.
#[derive(Clone, Debug)]
pub struct TaskNews {
    /// Whose it is.
    pub upstream: Arc<str>,
    /// Whose conversation it was told in, if that is not everybody's.
    pub owner: Option<Arc<str>>,
    /// Its id there.
    pub task: Arc<str>,
    /// The raw task, as the upstream says it.
    pub said: Bytes,
    /// Whether that is said as the extension does, or as 2025-11-25.
    pub form: Form,
}

/// See the module.
#[derive(Debug)]
pub struct Subscriptions {
    wanted: Mutex<Wanted>,
    version: watch::Sender<u64>,
    updates: broadcast::Sender<Updated>,
    news: broadcast::Sender<TaskNews>,
    // What replicas told, in the order in which it is told on.
    echoes: Mutex<VecDeque<(Instant, Updated)>>,
}

impl Default for Subscriptions {
    fn default() -> Self {
        Subscriptions {
            wanted: Mutex::default(),
            version: watch::Sender::new(0),
            updates: broadcast::Sender::new(UPDATES_MAX),
            news: broadcast::Sender::new(NEWS_MAX),
            echoes: Mutex::default(),
        }
    }
}

/// A wish; dropping it takes it back.
#[derive(Debug)]
pub struct Watch {
    home: Arc<Subscriptions>,
    subject: Subject,
    what: Updated,
}

impl Watch {
    /// What is watched.
    pub fn what(&self) -> &Updated {
        &self.what
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut wanted = self.home.lock();
        let key = (self.subject, self.what.upstream.clone());
        let Some(uris) = wanted.get_mut(&key) else { return };
        let Some(count) = uris.get_mut(&self.what.uri) else { return };
        *count -= 1;
        if *count == 0 {
            uris.remove(&self.what.uri);
            if uris.is_empty() {
                wanted.remove(&key);
            }
            drop(wanted);
            self.home.version.send_modify(|v| *v += 1);
        }
    }
}

impl Subscriptions {
    /// Wish to hear of a resource or task; `None` if too many are watched.
    pub fn watch(
        self: &Arc<Self>,
        subject: Subject,
        upstream: &Arc<str>,
        uri: &Arc<str>,
    ) -> Option<Watch> {
        let mut wanted = self.lock();
        let uris = wanted.entry((subject, upstream.clone())).or_default();
        if uris.len() >= WATCHED_MAX && !uris.contains_key(uri) {
            return None;
        }
        let count = uris.entry(uri.clone()).or_default();
        *count += 1;
        let first = *count == 1;
        drop(wanted);
        if first {
            self.version.send_modify(|v| *v += 1);
        }
        let what = Updated { upstream: upstream.clone(), uri: uri.clone() };
        Some(Watch { home: self.clone(), subject, what })
    }

    /// What is wished for of one upstream.
    pub fn wanted(&self, subject: Subject, upstream: &Arc<str>) -> BTreeSet<Arc<str>> {
        let wanted = self.lock();
        let of = wanted.get(&(subject, upstream.clone()));
        of.map(|uris| uris.keys().cloned().collect()).unwrap_or_default()
    }

    /// Whether nothing is wished for of one upstream.
    pub fn nothing_of(&self, subject: Subject, upstream: &Arc<str>) -> bool {
        self.lock().get(&(subject, upstream.clone())).is_none_or(BTreeMap::is_empty)
    }

    /// Changes whenever wishes do.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// What upstreams tell from now on.
    pub fn updates(&self) -> broadcast::Receiver<Updated> {
        self.updates.subscribe()
    }

    /// What upstreams tell of tasks from now on.
    pub fn news(&self) -> broadcast::Receiver<TaskNews> {
        self.news.subscribe()
    }

    /// An upstream told how a task is. What nobody wishes to hear, or is long, is had by asking.
    pub fn tell_task(&self, news: TaskNews) {
        let wanted = self.lock();
        let of = wanted.get(&(Subject::Task, news.upstream.clone()));
        let wished = of.is_some_and(|tasks| tasks.contains_key(&news.task));
        drop(wanted);
        if !wished || news.said.len() > NEWS_BYTES_MAX {
            return;
        }
        let _ = self.news.send(news);
    }

    /// An upstream told of a change, or one of its replicas did.
    pub fn changed(self: &Arc<Self>, upstream: &Arc<str>, uri: &str, replica: bool) {
        if replica {
            self.tell_once(upstream, uri);
        } else {
            self.tell(upstream, uri);
        }
    }

    fn tell(&self, upstream: &Arc<str>, uri: &str) {
        // Nobody listens: then nobody need be told.
        let _ = self.updates.send(Updated { upstream: upstream.clone(), uri: uri.into() });
    }

    // Each replica tells of a change, if what they stand for is the same: that is told once, a
    // moment later, so that whoever asks then sees all of it. Each is asked to tell, since a replica
    // may only know of what was changed by itself.
    fn tell_once(self: &Arc<Self>, upstream: &Arc<str>, uri: &str) {
        if self.nothing_of(Subject::Resource, upstream) {
            return;
        }
        let mut echoes = self.echoes.lock().unwrap_or_else(PoisonError::into_inner);
        if echoes.iter().any(|(_, told)| told.upstream == *upstream && *told.uri == *uri) {
            return;
        }
        if echoes.len() >= UPDATES_MAX {
            drop(echoes);
            return self.tell(upstream, uri);
        }
        let told = Updated { upstream: upstream.clone(), uri: uri.into() };
        echoes.push_back((Instant::now() + ECHO, told));
        if echoes.len() == 1 {
            tokio::spawn(echo(self.clone()));
        }
    }

    // What is due of what replicas told, and when the next is.
    fn due(&self) -> (Vec<Updated>, Option<Instant>) {
        let mut echoes = self.echoes.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let due = echoes.iter().take_while(|(at, _)| *at <= now).count();
        let told = echoes.drain(..due).map(|(_, told)| told).collect();
        (told, echoes.front().map(|(at, _)| *at))
    }

    /// An upstream's changes may have been missed: all that is wished for of it may have changed.
    pub fn tell_all(self: &Arc<Self>, upstream: &Arc<str>, replica: bool) {
        for uri in self.wanted(Subject::Resource, upstream) {
            self.changed(upstream, &uri, replica);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Wanted> {
        // Only additions and removals happen under it.
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// Tell on what replicas told, as long as there is any.
async fn echo(home: Arc<Subscriptions>) {
    let mut next = Some(Instant::now() + ECHO);
    while let Some(at) = next {
        tokio::time::sleep_until(at).await;
        let (told, after) = home.due();
        for one in told {
            let _ = home.updates.send(one);
        }
        next = after;
    }
}

/// Keep an old upstream's subscriptions as they are wished for (2025-11-25 server/resources,
/// "subscriptions"). Ends with its link.
pub async fn follow(home: Arc<Subscriptions>, link: Arc<Link>) {
    if !link.agreed.offers("resources.subscribe") {
        return;
    }
    let mut changes = home.changes();
    let mut have: BTreeSet<Arc<str>> = BTreeSet::new();
    loop {
        changes.mark_unchanged();
        let wanted = home.wanted(Subject::Resource, &link.upstream);
        let new = wanted.difference(&have).map(|uri| ("resources/subscribe", uri));
        let gone = have.difference(&wanted).map(|uri| ("resources/unsubscribe", uri));
        let mut taken = wanted.clone();
        for (method, uri) in new.chain(gone) {
            let raw = serde_json::to_vec(&**uri).expect("a string serialises");
            let params = [("uri", Bytes::from(raw))];
            let answer = tokio::time::timeout(ASK_TIME, link.ask(method, &params)).await;
            if !matches!(answer, Ok(Ok(frame)) if frame.kind() == Kind::Result) {
                tracing::debug!(upstream = %link.upstream, method, "a subscription was not taken");
                // Tried again when wishes change next.
                taken.remove(uri);
            }
        }
        have = taken;
        if changes.changed().await.is_err() {
            return;
        }
        tokio::time::sleep(GATHER).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_counted_and_taken_back() {
        let home = Arc::new(Subscriptions::default());
        let (up, a): (Arc<str>, Arc<str>) = ("up".into(), "file:///a".into());
        let mut changes = home.changes();
        changes.mark_unchanged();
        let one = home.watch(Subject::Resource, &up, &a).unwrap();
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        let two = home.watch(Subject::Resource, &up, &a).unwrap();
        assert!(!changes.has_changed().unwrap(), "one more of the same is nothing new");
        drop(one);
        assert_eq!(home.wanted(Subject::Resource, &up), BTreeSet::from([a.clone()]));
        drop(two);
        assert!(changes.has_changed().unwrap());
        assert!(home.wanted(Subject::Resource, &up).is_empty() && home.lock().is_empty());
        let mut updates = home.updates();
        home.tell(&up, "file:///a");
        assert_eq!(updates.try_recv().unwrap(), Updated { upstream: up, uri: a });
    }

    #[tokio::test(start_paused = true)]
    async fn what_each_replica_tells_is_told_once() {
        let home = Arc::new(Subscriptions::default());
        let up: Arc<str> = "up".into();
        home.tell_once(&up, "file:///a");
        assert!(home.echoes.lock().unwrap().is_empty(), "nobody wants to hear of it");
        let _watch = home.watch(Subject::Resource, &up, &"file:///".into()).unwrap();
        let mut updates = home.updates();
        let mut heard = || std::iter::from_fn(|| updates.try_recv().ok()).count();
        for pause in [0, 10, 60] {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            home.tell_once(&up, "file:///a");
        }
        home.tell_once(&up, "file:///b");
        assert_eq!(heard(), 0, "not before all have told");
        tokio::time::sleep(ECHO / 2).await;
        assert_eq!(heard(), 1);
        tokio::time::sleep(ECHO).await;
        assert_eq!(heard(), 1);
        // A change after it was told is another one.
        home.tell_once(&up, "file:///a");
        tokio::time::sleep(ECHO + Duration::from_millis(1)).await;
        assert_eq!(heard(), 1);
        assert!(home.echoes.lock().unwrap().is_empty());
        // What has no room is told at once.
        for n in 0..=UPDATES_MAX {
            home.tell_once(&up, &format!("file:///{n}"));
        }
        assert_eq!(heard(), 1);
    }
}
