//! Streams of notices: `subscriptions/listen`, the GET stream of old sessions, and the pipe of
//! one. What is told is the same; only the frame around it differs.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use crate::call::{Asides, Consumer, TaskName, Word};
use crate::gateway::Gateway;
use crate::gateway::subscriptions::{Changes, Topic};
use crate::protocol::message::{Frame, Kind, message, response};
use crate::protocol::meta::{Members, ObjectWriter, key};
use crate::protocol::method::ListKind;
use crate::protocol::revision::Revision;
use crate::protocol::sse;
use crate::upstream::subscriptions::{Subject, TaskNews, Updated, Watch};

use super::access::Access;
use super::body::Events;
use super::session::Session;
use super::{Edge, Slot, conversation, tasks};

/// Most resources that one stream or session watches.
pub const WATCHES_MAX: usize = 1000;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
#[allow(clippy::struct_field_names)]
struct Filter {
    #[serde(default)]
    tools_list_changed: bool,
    #[serde(default)]
    prompts_list_changed: bool,
    #[serde(default)]
    resources_list_changed: bool,
    #[serde(default)]
    resource_subscriptions: Vec<String>,
    #[serde(default)]
    task_ids: Vec<String>,
}

/// What a listen request wishes for.
pub struct Wish {
    /// Changes of lists.
    pub topics: Vec<Topic>,
    /// Changes of resources, by public URI.
    pub uris: Vec<String>,
    /// What tasks tell, by public id (`io.modelcontextprotocol/tasks`).
    pub tasks: Vec<String>,
}

/// Read a listen request; an error text if it says nothing readable.
pub fn wished(frame: &Frame) -> Result<Wish, String> {
    let params = frame.params().ok_or("params.notifications is missing")?;
    let members = Members::read(&params).map_err(|e| format!("params: {e}"))?;
    let raw = members.get("notifications").ok_or("params.notifications is missing")?;
    let filter: Filter =
        serde_json::from_str(raw.get()).map_err(|e| format!("params.notifications: {e}"))?;
    if filter.resource_subscriptions.len() > WATCHES_MAX {
        return Err(format!(
            "params.notifications.resourceSubscriptions: more than {WATCHES_MAX} entries"
        ));
    }
    if filter.task_ids.len() > WATCHES_MAX {
        return Err(format!("params.notifications.taskIds: more than {WATCHES_MAX} entries"));
    }
    let topics = Topic::ALL
        .into_iter()
        .filter(|t| match t {
            Topic::Tools => filter.tools_list_changed,
            Topic::Prompts => filter.prompts_list_changed,
            Topic::Resources => filter.resources_list_changed,
        })
        .collect();
    Ok(Wish { topics, uris: filter.resource_subscriptions, tasks: filter.task_ids })
}

/// Why a resource is not watched.
pub enum Unwatched {
    /// There is none, or its upstream tells of no changes.
    Unknown,
    /// As many of its upstream's are watched as may be.
    Full,
}

/// Watch a resource that the consumer sees, by its public URI.
///
/// # Errors
/// When that cannot be.
pub fn watch(edge: &Edge, consumer: &Consumer, public: &str) -> Result<Watch, Unwatched> {
    let snapshot = edge.gateway.current.load();
    let view = snapshot.view(consumer);
    let route = view.resolve(ListKind::Resources, public).ok_or(Unwatched::Unknown)?;
    if !view.can_subscribe(route.upstream()) {
        return Err(Unwatched::Unknown);
    }
    let home = &edge.gateway.subscriptions;
    home.watch(Subject::Resource, route.upstream(), route.native()).ok_or(Unwatched::Full)
}

/// `_meta` that names the listen request with its id's own text (2026-07-28
/// basic/patterns/subscriptions).
fn meta(id: &[u8]) -> Vec<u8> {
    ObjectWriter::new().raw(key::SUBSCRIPTION_ID, id).finish()
}

/// The last message of a listen stream that we end.
pub fn farewell(id: &[u8]) -> Bytes {
    let result =
        ObjectWriter::new().value("resultType", &"complete").raw("_meta", &meta(id)).finish();
    response(id, Kind::Result, &result)
}

fn change(topic: Topic, id: Option<&[u8]>) -> Bytes {
    let params = id.map(|id| ObjectWriter::new().raw("_meta", &meta(id)).finish());
    message(None, topic.method(), params.as_deref())
}

fn updated(public: &str, id: Option<&[u8]>) -> Bytes {
    let mut params = ObjectWriter::new();
    params.value("uri", &public);
    if let Some(id) = id {
        params.raw("_meta", &meta(id));
    }
    message(None, "notifications/resources/updated", Some(&params.finish()))
}

/// Public URIs by what they stand for, and the wishes behind them.
pub type Watches = HashMap<Updated, (Box<str>, Watch)>;

enum Watching {
    /// Those of one listen request.
    Own(Watches),
    /// Those of a session, which change while it is told.
    Session(Arc<Session>),
}

/// The tasks of one listen request: the public id by what it stands for, and the wish.
type TaskWatches = HashMap<Updated, (TaskName, Watch)>;

// A task that the consumer may have, by its public id.
fn watch_task(edge: &Edge, consumer: &Consumer, public: &str) -> Option<(TaskName, Watch)> {
    let name = tasks::open(edge, consumer, public)?;
    let view = edge.gateway.current.load().view(consumer);
    let route = view.resolve(ListKind::Tools, &name.tool)?;
    let home = &edge.gateway.subscriptions;
    let watch = home.watch(Subject::Task, route.upstream(), &Arc::from(&*name.native))?;
    Some((name, watch))
}

/// What one listener is told, message by message.
pub struct Feed {
    gateway: Arc<Gateway>,
    access: Access,
    changes: Changes,
    updates: broadcast::Receiver<Updated>,
    topics: Vec<Topic>,
    watching: Watching,
    id: Option<Bytes>,
    asides: Arc<Asides>,
    tasks: TaskWatches,
    news: broadcast::Receiver<TaskNews>,
    waiting: VecDeque<Bytes>,
}

impl Feed {
    /// What a listen request wished for, the acknowledgement of what is honoured first.
    pub fn of_request(edge: &Edge, access: Access, id: &Bytes, wish: Wish) -> Feed {
        // From now on: what changes while the wishes are read is told.
        let updates = edge.gateway.subscriptions.updates();
        let mut honoured = ObjectWriter::new();
        for topic in &wish.topics {
            honoured.raw(topic.filter_key(), b"true");
        }
        let mut watches = Watches::new();
        let mut uris = Vec::new();
        for uri in &wish.uris {
            if let Ok(watch) = watch(edge, access.consumer(), uri) {
                watches.insert(watch.what().clone(), (uri.as_str().into(), watch));
                uris.push(uri);
            }
        }
        if !uris.is_empty() {
            honoured.value("resourceSubscriptions", &uris);
        }
        let news = edge.gateway.subscriptions.news();
        let mut tasks = TaskWatches::new();
        let mut ids = Vec::new();
        for public in &wish.tasks {
            if let Some((name, watch)) = watch_task(edge, access.consumer(), public) {
                tasks.insert(watch.what().clone(), (name, watch));
                ids.push(public);
            }
        }
        if !ids.is_empty() {
            honoured.value("taskIds", &ids);
        }
        let params = ObjectWriter::new()
            .raw("notifications", &honoured.finish())
            .raw("_meta", &meta(id))
            .finish();
        let ack = message(None, "notifications/subscriptions/acknowledged", Some(&params));
        Feed {
            gateway: edge.gateway.clone(),
            changes: Changes::of(&edge.gateway, access.consumer()),
            access,
            updates,
            topics: wish.topics,
            watching: Watching::Own(watches),
            // Its own bytes: the stream may stay for long, and the request need not.
            id: Some(Bytes::copy_from_slice(id)),
            // One that nobody writes to.
            asides: Arc::default(),
            tasks,
            news,
            waiting: VecDeque::from([ack]),
        }
    }

    /// What an old session is told, from what it was last told on. `missed`: its client may have
    /// missed something of that.
    pub fn of_session(edge: &Edge, access: Access, session: &Arc<Session>, missed: bool) -> Feed {
        let mut changes = Changes::of(&edge.gateway, access.consumer());
        let known = *session.told.lock().expect("no panic while held");
        // A session from before a restart knows nobody knows what: all may have changed.
        changes.go_on_from(known.filter(|_| !missed).unwrap_or_default());
        let mut feed = Feed {
            gateway: edge.gateway.clone(),
            changes,
            access,
            updates: edge.gateway.subscriptions.updates(),
            topics: Topic::ALL.to_vec(),
            watching: Watching::Session(session.clone()),
            id: None,
            asides: session.asides.clone(),
            tasks: TaskWatches::new(),
            news: edge.gateway.subscriptions.news(),
            waiting: VecDeque::new(),
        };
        let again = session.has_listened.swap(true, Ordering::Relaxed);
        if again || missed || known.is_none() {
            // Nobody knows which of them did: all that is watched may have changed.
            let watched = feed.public(None);
            feed.waiting.extend(watched);
        }
        feed
    }

    /// An id for the next event, where a client can come back to it.
    fn event_id(&self) -> Option<String> {
        match &self.watching {
            Watching::Own(_) => None,
            Watching::Session(session) => Some(session.event_id()),
        }
    }

    /// The next message; `None` when who listens may not any more. Safe to drop and call again.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(message) = self.waiting.pop_front() {
                return Some(message);
            }
            tokio::select! {
                topics = self.changes.next() => {
                    if let Watching::Session(session) = &self.watching {
                        let known = self.changes.known();
                        *session.told.lock().expect("no panic while held") = Some(known);
                    }
                    let id = self.id.as_deref();
                    let told = topics.into_iter().filter(|t| self.topics.contains(t));
                    self.waiting.extend(told.map(|topic| change(topic, id)));
                }
                update = self.updates.recv() => match update {
                    Ok(update) => self.waiting.extend(self.public(Some(&update))),
                    // Some were missed: all that is watched may have changed.
                    Err(RecvError::Lagged(_)) => {
                        let all: Vec<_> = self.public(None);
                        self.waiting.extend(all);
                    }
                    Err(RecvError::Closed) => std::future::pending().await,
                },
                aside = self.asides.next() => match (aside, &self.watching) {
                    (Word::Notice(notice), _) => return Some(notice),
                    (Word::Question(question), Watching::Session(session)) => {
                        self.waiting.extend(conversation::put_aside(session, question));
                    }
                    (Word::Question(_), Watching::Own(_)) | (Word::Offer(_), _) => {}
                },
                news = self.news.recv() => match news {
                    Ok(news) => self.waiting.extend(self.of_task(&news)),
                    // What was missed is had by asking; nobody is owed it.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => std::future::pending().await,
                },
                () = self.access.revoked() => return None,
            }
        }
    }

    // Of a task of this listener, as its consumer's view is now.
    fn of_task(&self, news: &TaskNews) -> Option<Bytes> {
        let what = Updated { upstream: news.upstream.clone(), uri: news.task.clone() };
        let view = || self.gateway.current.load().view(self.access.consumer());
        match &self.watching {
            Watching::Own(_) => {
                let (name, _) = self.tasks.get(&what)?;
                name.is_told_by(news.owner.as_deref()).then_some(())?;
                let route = view().resolve(ListKind::Tools, &name.tool)?;
                tasks::news(news, &name.public, &route, self.id.as_deref()?)
            }
            Watching::Session(session) => {
                let name = session.task(&what)?;
                name.is_told_by(news.owner.as_deref()).then_some(())?;
                view().resolve(ListKind::Tools, &name.tool)?;
                tasks::old_news(news, &name.public)
            }
        }
    }

    // Whether its client knows events that only bring an id.
    fn is_primed(&self) -> bool {
        matches!(&self.watching, Watching::Session(session)
            if session.revision >= Revision::R2025_11_25)
    }

    // As the consumer's view is now: it may have become narrower since the wish.
    fn public(&self, one: Option<&Updated>) -> Vec<Bytes> {
        let view = self.gateway.current.load().view(self.access.consumer());
        let told = |watched: &Updated, public: &str| {
            let now = one.unwrap_or(watched);
            if now.upstream != watched.upstream || !is_within(&now.uri, &watched.uri) {
                return None;
            }
            let route = view.resolve(ListKind::Resources, public)?;
            if *route.upstream() != watched.upstream || *route.native() != watched.uri {
                return None;
            }
            if now.uri == watched.uri {
                return Some(updated(public, self.id.as_deref()));
            }
            let part = route.public_uri(&now.uri).unwrap_or_else(|| now.uri.to_string());
            view.resolve(ListKind::Resources, &part)?;
            Some(updated(&part, self.id.as_deref()))
        };
        let of = |watches: &Watches| {
            watches.iter().filter_map(|(watched, (public, _))| told(watched, public)).collect()
        };
        match &self.watching {
            Watching::Own(watches) => of(watches),
            Watching::Session(session) => of(&session.watches.lock().expect("no panic while held")),
        }
    }

    /// The last message, if the gateway ends the stream.
    pub fn farewell(&self) -> Option<Bytes> {
        self.id.as_deref().map(farewell)
    }
}

// Whether a resource is the watched one or a part of it: a server may tell of the part that
// changed (2025-11-25 server/resources, "subscriptions").
fn is_within(uri: &str, watched: &str) -> bool {
    uri.strip_prefix(watched).is_some_and(|rest| {
        rest.is_empty() || watched.ends_with('/') || rest.starts_with(['/', '?', '#'])
    })
}

/// A feed as an event stream.
pub struct Listener {
    /// What is told.
    pub feed: Feed,
    /// Ends the stream: the session ended, or a newer stream took over.
    pub ends: Vec<CancellationToken>,
    /// Its place among the streams.
    pub slot: Slot,
}

impl Listener {
    /// The stream.
    pub fn stream(self, edge: &Arc<Edge>) -> Events {
        let edge = edge.clone();
        Events::new(|tx| self.events(edge, tx))
    }

    /// Write the stream as events until the gateway stops or the stream is ended.
    pub async fn events(self, edge: Arc<Edge>, tx: mpsc::Sender<Bytes>) {
        let Listener { mut feed, ends, slot: _slot } = self;
        // The first bytes tell the client that the stream is open.
        if feed.id.is_none() {
            let primed = feed.is_primed().then(|| feed.event_id()).flatten();
            let first = match primed {
                Some(id) => sse::priming(&id, None),
                None => sse::comment("open"),
            };
            if tx.send(first).await.is_err() {
                return;
            }
        }
        let every = edge.gateway.current.load().config.gateway.keep_alive;
        let mut tick = tokio::time::interval(every);
        tick.reset();
        let ended = futures_util::future::select_all(
            ends.into_iter()
                .chain([CancellationToken::new()])
                .map(|t| Box::pin(t.cancelled_owned())),
        );
        tokio::pin!(ended);
        loop {
            let event = tokio::select! {
                message = feed.next() => match message {
                    Some(message) => {
                        let id = feed.event_id();
                        sse::event_with(&message, id.as_deref(), Some(sse::MESSAGE))
                    }
                    None => return,
                },
                _ = tick.tick() => sse::comment(""),
                () = edge.stop.cancelled() => {
                    if let Some(last) = feed.farewell() {
                        let _ = tx.send(sse::event(&last)).await;
                    }
                    return;
                }
                _ = &mut ended => return,
            };
            // A reader that has stalled must not keep an ended stream open.
            let sent = tokio::select! {
                sent = tx.send(event) => sent,
                () = edge.stop.cancelled() => return,
                _ = &mut ended => return,
            };
            if sent.is_err() {
                return;
            }
        }
    }
}
