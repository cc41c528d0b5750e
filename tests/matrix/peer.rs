//! The upstream engine: a message in, messages out. What carries them is in `doors`.
//!
//! A peer speaks exactly one revision, and writes down each breach of that revision's rules that
//! it sees: nothing of another revision may reach it.

pub mod tools;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::axes::Endpoint;
use crate::harness::PATIENCE;
use crate::text::{Message, items, notification, quoted, response};

/// Where the answers of one exchange go, or all that is said on a connection.
pub type Line = mpsc::Sender<String>;

/// Messages of one line that wait to be carried.
pub const LINE_MAX: usize = 256;

/// Levels of log messages, most verbose first.
pub const LEVELS: [&str; 4] = ["debug", "info", "warning", "error"];

/// The key of `_meta` under which this revision's requests say something.
pub fn meta(key: &str) -> String {
    format!("io.modelcontextprotocol/{key}")
}

/// A conversation: a connection or a session of the old revisions, one request of the newest over
/// HTTP.
#[derive(Default)]
pub struct Talk {
    begun: AtomicBool,
    ready: AtomicBool,
    capabilities: Mutex<String>,
    level: AtomicUsize,
    watched: Mutex<BTreeSet<String>>,
    asked: Mutex<HashMap<String, oneshot::Sender<Message>>>,
    running: Mutex<HashMap<String, CancellationToken>>,
}

/// Somebody who hears of changes.
struct Ear {
    line: Line,
    talk: Arc<Talk>,
    /// The id and the filter of a listen request.
    listen: Option<(String, String)>,
}

/// A server of one revision.
pub struct Peer {
    pub at: Endpoint,
    notes: watch::Sender<Vec<String>>,
    ears: Mutex<Vec<Ear>>,
    /// It has one tool more.
    changed: AtomicBool,
    ids: AtomicU64,
    /// It says no number that SDKs cannot read.
    calm: bool,
}

impl Peer {
    pub fn new(at: Endpoint) -> Arc<Peer> {
        Peer::of(at, false)
    }

    /// One for SDKs, which read all numbers and cannot read all.
    pub fn calm(at: Endpoint) -> Arc<Peer> {
        Peer::of(at, true)
    }

    fn of(at: Endpoint, calm: bool) -> Arc<Peer> {
        Arc::new(Peer {
            at,
            calm,
            notes: watch::Sender::default(),
            ears: Mutex::default(),
            changed: AtomicBool::new(false),
            ids: AtomicU64::new(0),
        })
    }

    /// Say something.
    fn say(&self, line: &Line, message: String) {
        let message = if self.calm { calmed(&message) } else { message };
        let _ = line.try_send(message);
    }

    /// Write down what happened.
    pub fn note(&self, note: String) {
        self.notes.send_modify(|notes| notes.push(note));
    }

    /// Write down a breach of the rules.
    pub fn fault(&self, what: &str) {
        self.note(format!("fault: {what}"));
    }

    /// The breaches.
    pub fn faults(&self) -> Vec<String> {
        let notes = self.notes.borrow();
        notes.iter().filter(|n| n.starts_with("fault: ")).cloned().collect()
    }

    /// How often something was written down.
    pub fn noted(&self, note: &str) -> usize {
        self.notes.borrow().iter().filter(|n| *n == note).count()
    }

    /// Wait until a note is there that begins so; the note.
    pub async fn until(&self, beginning: &str) -> Result<String, String> {
        let mut notes = self.notes.subscribe();
        let seen = notes.wait_for(|notes| notes.iter().any(|n| n.starts_with(beginning)));
        let seen = tokio::time::timeout(PATIENCE, seen).await;
        let notes = seen.map_err(|_| format!("{} did not see: {beginning}", self.at))?;
        let notes = notes.expect("the peer lives as long as the test");
        Ok(notes.iter().find(|n| n.starts_with(beginning)).unwrap().clone())
    }

    /// From now on changes are told on this line.
    pub fn listen(&self, line: &Line, talk: &Arc<Talk>, request: Option<(String, String)>) {
        let ear = Ear { line: line.clone(), talk: talk.clone(), listen: request };
        self.ears.lock().unwrap().push(ear);
        self.note("listening".into());
    }

    /// How many hear of changes of this resource.
    pub fn watchers(&self, uri: &str) -> usize {
        let ears = self.ears.lock().unwrap();
        ears.iter().filter(|ear| !ear.line.is_closed() && ear.watches(uri)).count()
    }

    /// Tell whoever watches it that a resource changed.
    pub fn announce_update(&self, uri: &str) {
        let uri_member = format!(r#""uri":{}"#, quoted(uri));
        self.tell("notifications/resources/updated", &uri_member, |ear| ear.watches(uri));
    }

    /// Have one tool more from now on, and tell it.
    pub fn announce_tool(&self) {
        self.changed.store(true, Ordering::SeqCst);
        self.tell("notifications/tools/list_changed", "", |ear| match &ear.listen {
            Some((_, filter)) => Message(filter.clone()).raw(&["toolsListChanged"]).is_some(),
            None => true,
        });
    }

    fn tell(&self, method: &str, params: &str, wants: impl Fn(&Ear) -> bool) {
        for ear in self.ears.lock().unwrap().iter().filter(|ear| wants(ear)) {
            let params = match &ear.listen {
                Some((id, _)) => {
                    let comma = if params.is_empty() { "" } else { "," };
                    format!(r#"{{{params}{comma}"_meta":{{"{}":{id}}}}}"#, meta("subscriptionId"))
                }
                None => format!("{{{params}}}"),
            };
            self.say(&ear.line, notification(method, &params));
        }
    }

    /// A message came in a conversation.
    pub fn take(self: &Arc<Self>, talk: &Arc<Talk>, line: &Line, message: Message) {
        if message.is_response() {
            let id = message.id().unwrap_or_default();
            if let Some(asked) = talk.asked.lock().unwrap().remove(&id) {
                let _ = asked.send(message);
            }
            return;
        }
        self.judge(talk, &message);
        match message.method().as_str() {
            "notifications/initialized" => talk.ready.store(true, Ordering::SeqCst),
            "notifications/cancelled" => {
                let id = message.raw(&["params", "requestId"]).unwrap_or_default();
                if let Some(token) = talk.running.lock().unwrap().get(&id) {
                    token.cancel();
                }
            }
            method if method.starts_with("notifications/") => {}
            _ => {
                let (peer, talk, line) = (self.clone(), talk.clone(), line.clone());
                tokio::spawn(async move { peer.answer(&talk, &line, &message).await });
            }
        }
    }

    // Whether it is a message of this revision.
    fn judge(&self, talk: &Talk, message: &Message) {
        let method = message.method();
        let of_request = |key: &str| message.raw(&["params", "_meta", &meta(key)]);
        let revision = of_request("protocolVersion");
        if self.at.is_modern() {
            let gone = ["initialize", "ping", "logging/setLevel", "resources/subscribe"];
            if gone.contains(&method.as_str()) {
                self.fault(&format!("{method} is gone"));
            }
            let request = !method.starts_with("notifications/");
            if request && revision.as_deref() != Some(r#""2026-07-28""#) {
                self.fault(&format!("{method} names revision {revision:?}"));
            }
            if request && of_request("clientCapabilities").is_none_or(|c| !c.starts_with('{')) {
                self.fault(&format!("{method} has no capabilities"));
            }
            return;
        }
        match method.as_str() {
            // The probe, which an old server may get before the handshake and never after.
            "server/discover" if !talk.begun.load(Ordering::SeqCst) => {}
            "initialize" => {
                if talk.begun.swap(true, Ordering::SeqCst) {
                    self.fault("a second handshake");
                }
            }
            _ => {
                if method != "notifications/initialized" && !talk.ready.load(Ordering::SeqCst) {
                    self.fault(&format!("{method} before the handshake was over"));
                }
                if message.0.contains("io.modelcontextprotocol/") {
                    self.fault(&format!("{method} says what only the newest revision knows"));
                }
                if matches!(method.as_str(), "server/discover" | "subscriptions/listen") {
                    self.fault(&format!("{method} is not known yet"));
                }
            }
        }
    }

    /// The members of a result as a whole one.
    fn result(&self, members: &str, cacheable: bool) -> String {
        if !self.at.is_modern() {
            return format!("{{{members}}}");
        }
        let cache = if cacheable { r#""ttlMs":0,"cacheScope":"private","# } else { "" };
        format!(r#"{{"resultType":"complete",{cache}{members}}}"#)
    }

    async fn answer(&self, talk: &Arc<Talk>, line: &Line, message: &Message) {
        let id = message.id().unwrap();
        let params = Message(message.raw(&["params"]).unwrap_or("{}".into()));
        let say = |kind: &str, body: &str| {
            self.say(line, response(&id, kind, body));
        };
        let modern = self.at.is_modern();
        let method = message.method();
        let list = self.list(&method, &params);
        match method.as_str() {
            "server/discover" if modern => {
                let versions = r#""supportedVersions":["2026-07-28"]"#;
                say("result", &self.result(&format!("{versions},{CAPABILITIES}"), true));
            }
            "initialize" if !modern => {
                let asked = params.text(&["protocolVersion"]);
                if asked.as_deref() != Some("2025-11-25") {
                    self.fault(&format!("the handshake asks for {asked:?}"));
                }
                *talk.capabilities.lock().unwrap() = params.raw(&["capabilities"]).unwrap();
                let revision = self.at.revision;
                let server = r#""serverInfo":{"name":"peer","version":"1"}"#;
                let result =
                    format!(r#"{{"protocolVersion":"{revision}",{CAPABILITIES},{server}}}"#);
                say("result", &result);
            }
            "ping" if !modern => say("result", "{}"),
            "logging/setLevel" if !modern => {
                let level = params.text(&["level"]).unwrap_or_default();
                talk.level.store(rank(&level), Ordering::SeqCst);
                say("result", "{}");
            }
            "resources/subscribe" | "resources/unsubscribe" if !modern => {
                let uri = params.text(&["uri"]).unwrap_or_default();
                let mut watched = talk.watched.lock().unwrap();
                if method == "resources/subscribe" {
                    watched.insert(uri);
                } else {
                    watched.remove(&uri);
                }
                drop(watched);
                say("result", "{}");
                self.note("listening".into());
            }
            "subscriptions/listen" if modern => {
                let filter = params.raw(&["notifications"]).unwrap_or("{}".into());
                let meta = format!(r#"{{"{}":{id}}}"#, meta("subscriptionId"));
                let ack = format!(r#"{{"notifications":{filter},"_meta":{meta}}}"#);
                let ack = notification("notifications/subscriptions/acknowledged", &ack);
                self.say(line, ack);
                self.listen(line, talk, Some((id, filter)));
                // The stream is open for as long as somebody holds it.
                line.closed().await;
            }
            "tools/call" => {
                let token = CancellationToken::new();
                talk.running.lock().unwrap().insert(id.clone(), token.clone());
                self.call(talk, line, &id, &params, &token).await;
                talk.running.lock().unwrap().remove(&id);
            }
            "prompts/get" => say("result", &self.result(tools::GREETING, false)),
            "resources/read" => match params.text(&["uri"]).as_deref() {
                Some(WATCHED) => say("result", &self.result(tools::CONTENTS, true)),
                _ => say("error", &tools::not_found(modern)),
            },
            _ => match list {
                Some(result) => say("result", &self.result(&result, true)),
                None => say("error", r#"{"code":-32601,"message":"Method not found"}"#),
            },
        }
    }

    // A page of a list, if the method is one of those. The cursors are `""` and `"more"`.
    fn list(&self, method: &str, params: &Message) -> Option<String> {
        let cursor = params.text(&["cursor"]);
        let (member, items) = tools::list(method, self.changed.load(Ordering::SeqCst))?;
        let third = items.len().div_ceil(3);
        let (page, next) = match cursor.as_deref() {
            None => (items.get(..third), Some("")),
            Some("") => (items.get(third..2 * third), Some("more")),
            Some("more") => (items.get(2 * third..), None),
            Some(_) => (None, None),
        };
        self.note(format!("{method} page {cursor:?}"));
        let page = page.unwrap_or_else(|| {
            self.fault(&format!("{method} with the cursor {cursor:?}"));
            &[]
        });
        let next = next.map(|n| format!(r#","nextCursor":"{n}""#)).unwrap_or_default();
        Some(format!(r#""{member}":[{}]{next}"#, page.join(",")))
    }
}

impl Ear {
    fn watches(&self, uri: &str) -> bool {
        match &self.listen {
            Some((_, filter)) => {
                let uris = Message(filter.clone()).raw(&["resourceSubscriptions"]);
                uris.is_some_and(|uris| items(&uris).contains(&quoted(uri)))
            }
            None => self.talk.watched.lock().unwrap().contains(uri),
        }
    }
}

/// Without the number that no float holds.
pub fn calmed(message: &str) -> String {
    message.replace("1e400", "1.5")
}

/// How verbose a level is; the least is 0.
pub fn rank(level: &str) -> usize {
    LEVELS.iter().position(|l| *l == level).unwrap_or_default()
}

/// The resource that callers watch.
pub const WATCHED: &str = "file:///watched";
/// The one that only some of them watch.
pub const OTHER: &str = "file:///other";

const CAPABILITIES: &str = r#""capabilities":{"tools":{"listChanged":true},"prompts":{},"resources":{"subscribe":true,"listChanged":true},"logging":{},"experimental":{"x":{"n":1e400}}}"#;
