//! The upstream: what it says of a call carries the call's own word, so that whoever hears it
//! knows whose it is. Each conversation counts questions, pages and tasks from one, as a child
//! process does: no id is anybody's by itself.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::axes::Endpoint;
use crate::harness::PATIENCE;
use crate::text::{Message, items, notification, quoted, raw, response};

/// Where the answers of one exchange go, or all that is said on a connection.
pub type Line = mpsc::Sender<String>;

/// Messages of one line that wait to be carried.
pub const LINE_MAX: usize = 1024;

/// In the place of a word, of what no call caused.
pub const NOBODY: &str = "nobody";
/// Before the word of a question that is taken back.
pub const FORGET: &str = "forget ";

/// What says that a page was visited.
pub const VISITED: &str = "notifications/elicitation/complete";
/// How often that is said of a page: the first time may be too early.
const VISITS: usize = 5;

const TASKS: &str = "io.modelcontextprotocol/tasks";

/// The key of `_meta` under which the newest revision says something.
pub fn meta(key: &str) -> String {
    format!("io.modelcontextprotocol/{key}")
}

/// Without what some SDKs cannot read; there is nothing of that here.
pub fn calmed(message: &str) -> String {
    message.to_owned()
}

/// Whose a word is.
pub fn owner(word: &str) -> &str {
    word.split('/').next().unwrap_or_default()
}

/// A conversation: a connection or a session of the old revisions, one request of the newest over
/// HTTP.
#[derive(Default)]
pub struct Talk {
    asked: Mutex<HashMap<String, oneshot::Sender<Message>>>,
    ears: Mutex<Vec<Line>>,
    watched: Mutex<BTreeSet<String>>,
    counted: AtomicU64,
    tasks: Mutex<Vec<String>>,
    /// Pages of refused calls, and how often their visit is still told.
    pages: Mutex<Vec<(String, usize)>>,
    /// Who called here.
    owners: Mutex<BTreeSet<String>>,
    /// Who answered for the roots outside of calls.
    rooted: Mutex<BTreeSet<String>>,
}

impl Talk {
    fn count(&self) -> u64 {
        self.counted.fetch_add(1, Ordering::SeqCst) + 1
    }

    // On the stream that belongs to no call.
    fn aside(&self, message: &str) {
        for ear in &*self.ears.lock().unwrap() {
            let _ = ear.try_send(message.to_owned());
        }
    }

    // Over HTTP the stream of a conversation is opened after its first call is under way.
    async fn heard(&self) -> bool {
        let end = Instant::now() + PATIENCE;
        while self.ears.lock().unwrap().iter().all(mpsc::Sender::is_closed) {
            if Instant::now() > end {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }
}

/// A listen request of the newest revision.
struct Listen {
    line: Line,
    id: String,
    filter: String,
}

/// A server of one revision.
pub struct Peer {
    pub at: Endpoint,
    /// Every call has a conversation of its own owner, or else nobody may be asked.
    pub is_shared: AtomicBool,
    talks: Mutex<Vec<Arc<Talk>>>,
    listens: Mutex<Vec<Listen>>,
    /// How often its two changing tools have changed.
    pub versions: [AtomicUsize; 2],
    faults: Mutex<Vec<String>>,
    tasks: Mutex<Vec<String>>,
}

impl Peer {
    pub fn new(at: Endpoint, is_shared: bool) -> Arc<Peer> {
        Arc::new(Peer {
            at,
            is_shared: AtomicBool::new(is_shared),
            talks: Mutex::default(),
            listens: Mutex::default(),
            versions: Default::default(),
            faults: Mutex::default(),
            tasks: Mutex::default(),
        })
    }

    pub fn name(&self) -> String {
        self.at.name()
    }

    /// Write down what must not be.
    pub fn fault(&self, what: &str) {
        self.faults.lock().unwrap().push(format!("{}: {what}", self.at));
    }

    pub fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap().clone()
    }

    /// From now on a conversation hears here what belongs to no call.
    pub fn listen(&self, line: &Line, talk: &Arc<Talk>, _: Option<(String, String)>) {
        talk.ears.lock().unwrap().push(line.clone());
        self.known(talk);
    }

    fn known(&self, talk: &Arc<Talk>) {
        let mut talks = self.talks.lock().unwrap();
        if !talks.iter().any(|known| Arc::ptr_eq(known, talk)) {
            talks.push(talk.clone());
        }
    }

    fn talks(&self) -> Vec<Arc<Talk>> {
        self.talks.lock().unwrap().clone()
    }

    /// How many watch this resource.
    pub fn watchers(&self, uri: &str) -> usize {
        let old = self.talks().iter().filter(|t| t.watched.lock().unwrap().contains(uri)).count();
        let listens = self.listens.lock().unwrap();
        let of = |l: &&Listen| !l.line.is_closed() && names(l, "resourceSubscriptions", uri);
        old + listens.iter().filter(of).count()
    }

    /// A resource changed.
    pub fn update(&self, uri: &str) {
        let uri_member = format!(r#""uri":{}"#, quoted(uri));
        let method = "notifications/resources/updated";
        for talk in self.talks().iter().filter(|t| t.watched.lock().unwrap().contains(uri)) {
            talk.aside(&notification(method, &format!("{{{uri_member}}}")));
        }
        self.announce(method, &uri_member, |l| names(l, "resourceSubscriptions", uri));
    }

    /// One of the changing tools changed.
    pub fn change(&self, which: usize) {
        self.versions[which].fetch_add(1, Ordering::SeqCst);
        let method = "notifications/tools/list_changed";
        for talk in self.talks() {
            talk.aside(&notification(method, "{}"));
        }
        self.announce(method, "", |l| raw(&l.filter, &["toolsListChanged"]).is_some());
    }

    /// Say how all tasks are.
    pub fn tell_tasks(&self) {
        for talk in self.talks() {
            for (n, word) in talk.tasks.lock().unwrap().iter().enumerate() {
                let news = old_task(n + 1, word);
                talk.aside(&notification("notifications/tasks/status", &format!("{{{news}}}")));
            }
        }
        for (n, word) in self.tasks.lock().unwrap().iter().enumerate() {
            let id = format!("t-{}", n + 1);
            let news = new_task(n + 1, word);
            self.announce("notifications/tasks", &news, |l| names(l, "taskIds", &id));
        }
    }

    /// Say what pages were visited, and what belongs to nothing.
    pub fn stray(&self) {
        let token = format!(r#"{{"progressToken":"{NOBODY}","progress":1,"message":"{NOBODY}"}}"#);
        for talk in self.talks() {
            talk.pages.lock().unwrap().retain_mut(|(page, left)| {
                talk.aside(&notification(VISITED, &visit(page)));
                *left -= 1;
                *left > 0
            });
            talk.aside(&notification("notifications/progress", &token));
            if self.is_shared.load(Ordering::SeqCst) {
                let log = format!(r#"{{"level":"error","data":"{NOBODY}"}}"#);
                talk.aside(&notification("notifications/message", &log));
            }
        }
    }

    /// Who answered for the roots outside of calls, by conversation.
    pub fn rooted(&self) -> Vec<BTreeSet<String>> {
        self.talks().iter().map(|talk| talk.rooted.lock().unwrap().clone()).collect()
    }

    fn announce(&self, method: &str, params: &str, wants: impl Fn(&Listen) -> bool) {
        for listen in self.listens.lock().unwrap().iter().filter(|l| wants(l)) {
            let comma = if params.is_empty() { "" } else { "," };
            let meta = format!(r#""_meta":{{"{}":{}}}"#, meta("subscriptionId"), listen.id);
            let said = notification(method, &format!("{{{params}{comma}{meta}}}"));
            let _ = listen.line.try_send(said);
        }
    }

    /// A message came in a conversation.
    pub fn take(self: &Arc<Self>, talk: &Arc<Talk>, line: &Line, message: Message) {
        if message.is_response() {
            let asked = talk.asked.lock().unwrap().remove(&message.id().unwrap_or_default());
            match asked {
                Some(asked) => drop(asked.send(message)),
                None => self.fault(&format!("an answer to nothing: {}", message.0)),
            }
            return;
        }
        let (peer, talk, line) = (self.clone(), talk.clone(), line.clone());
        tokio::spawn(async move { peer.answer(&talk, &line, &message).await });
    }

    fn result(&self, members: &str) -> String {
        if self.at.is_modern() {
            let cache = r#""resultType":"complete","ttlMs":0,"cacheScope":"private""#;
            return format!("{{{cache},{members}}}");
        }
        format!("{{{members}}}")
    }

    async fn answer(self: &Arc<Self>, talk: &Arc<Talk>, line: &Line, message: &Message) {
        let id = message.id().unwrap_or_default();
        let params = Message(message.raw(&["params"]).unwrap_or("{}".into()));
        let say = |kind: &str, body: &str| {
            let _ = line.try_send(response(&id, kind, body));
        };
        let modern = self.at.is_modern();
        let task = || params.text(&["taskId"]).and_then(|t| t.strip_prefix("t-")?.parse().ok());
        match message.method().as_str() {
            "server/discover" if modern => {
                let extension = format!(r#","extensions":{{"{TASKS}":{{}}}}"#);
                let offers = format!(r#""capabilities":{{{OFFERS}{extension}}}"#);
                let members = format!(r#""supportedVersions":["2026-07-28"],{offers}"#);
                say("result", &self.result(&members));
            }
            "initialize" if !modern => {
                let tasks = r#","tasks":{"cancel":{},"requests":{"tools":{"call":{}}}}"#;
                let server = r#""serverInfo":{"name":"peer","version":"1"}"#;
                let offers = format!(r#""capabilities":{{{OFFERS}{tasks}}}"#);
                say("result", &format!(r#"{{"protocolVersion":"2025-11-25",{offers},{server}}}"#));
            }
            "ping" | "logging/setLevel" => say("result", "{}"),
            "resources/subscribe" | "resources/unsubscribe" => {
                let uri = params.text(&["uri"]).unwrap();
                let mut watched = talk.watched.lock().unwrap();
                match message.method().as_str() {
                    "resources/subscribe" => watched.insert(uri),
                    _ => watched.remove(&uri),
                };
                drop(watched);
                say("result", "{}");
            }
            "subscriptions/listen" if modern => {
                let filter = params.raw(&["notifications"]).unwrap_or("{}".into());
                let meta = format!(r#"{{"{}":{id}}}"#, meta("subscriptionId"));
                let ack = format!(r#"{{"notifications":{filter},"_meta":{meta}}}"#);
                let ack = notification("notifications/subscriptions/acknowledged", &ack);
                let _ = line.try_send(ack);
                let listen = Listen { line: line.clone(), id, filter };
                self.listens.lock().unwrap().push(listen);
                line.closed().await;
            }
            "tools/list" => {
                let tools = self.tools();
                say("result", &self.result(&format!(r#""tools":[{tools}]"#)));
            }
            "resources/list" => {
                let all =
                    ["alpha", "bravo"].map(|n| format!(r#"{{"uri":"file:///{n}","name":"{n}"}}"#));
                say("result", &self.result(&format!(r#""resources":[{}]"#, all.join(","))));
            }
            "resources/templates/list" => say("result", &self.result(r#""resourceTemplates":[]"#)),
            "prompts/list" => say("result", &self.result(r#""prompts":[]"#)),
            "tasks/get" => {
                let tasks = if modern { &self.tasks } else { &talk.tasks };
                let n: usize = task().unwrap_or_default();
                let word = tasks.lock().unwrap().get(n.wrapping_sub(1)).cloned();
                match word {
                    Some(word) if modern => say("result", &self.result(&new_task(n, &word))),
                    Some(word) => say("result", &format!("{{{}}}", old_task(n, &word))),
                    None => say("error", r#"{"code":-32602,"message":"no such task"}"#),
                }
            }
            "tools/call" => {
                self.known(talk);
                let word = params.text(&["arguments", "word"]).unwrap_or_default();
                talk.owners.lock().unwrap().insert(owner(&word).to_owned());
                match params.text(&["name"]).unwrap().as_str() {
                    "begin" => say("result", &self.begin(talk, &params, &word)),
                    "page" => {
                        let page = page(talk.count(), &word, true);
                        let error = format!(
                            r#"{{"code":-32042,"message":{},"data":{{"elicitations":[{{{page}}}]}}}}"#,
                            quoted(&word)
                        );
                        say("error", &error);
                        // Nobody visits a page before the error is read.
                        talk.pages.lock().unwrap().push((page, VISITS));
                    }
                    _ if modern => say("result", &self.new_call(line, &params, &word)),
                    _ => {
                        let told = self.old_call(talk, line, &params, &word).await;
                        say("result", &content(&format!("{word} {told}")));
                    }
                }
            }
            "notifications/roots/list_changed" => self.ask_roots(talk).await,
            method if method.starts_with("notifications/") => {}
            _ => say("error", r#"{"code":-32601,"message":"Method not found"}"#),
        }
    }

    fn tools(&self) -> String {
        let plain =
            |name: &str| format!(r#"{{"name":"{name}","inputSchema":{{"type":"object"}}}}"#);
        let changing = |name: &str, which: usize| {
            let version = self.versions[which].load(Ordering::SeqCst);
            format!(
                r#"{{"name":"{name}","description":"v{version}","inputSchema":{{"type":"object"}}}}"#
            )
        };
        let begin = r#"{"name":"begin","inputSchema":{"type":"object"},"execution":{"taskSupport":"required"}}"#;
        let tools =
            [plain("all"), plain("page"), begin.into(), changing("fresh", 0), changing("plain", 1)];
        tools.join(",")
    }

    fn begin(&self, talk: &Talk, params: &Message, word: &str) -> String {
        if self.at.is_modern() {
            let declared = params.raw(&["_meta", &meta("clientCapabilities"), "extensions", TASKS]);
            if declared.is_none() {
                self.fault("a task for one that did not declare it");
            }
            let mut tasks = self.tasks.lock().unwrap();
            tasks.push(word.to_owned());
            return format!(r#"{{"resultType":"task",{}}}"#, new_task(tasks.len(), word));
        }
        let mut tasks = talk.tasks.lock().unwrap();
        tasks.push(word.to_owned());
        format!(r#"{{"task":{{{}}}}}"#, old_task(tasks.len(), word))
    }

    // Progress and logs of both levels.
    fn tell(line: &Line, params: &Message, word: &str) {
        let said = quoted(word);
        if let Some(token) = params.raw(&["_meta", "progressToken"]) {
            let step = format!(r#"{{"progressToken":{token},"progress":1,"message":{said}}}"#);
            let _ = line.try_send(notification("notifications/progress", &step));
        }
        for level in ["debug", "error"] {
            let log = format!(r#"{{"level":"{level}","logger":"l","data":{said}}}"#);
            let _ = line.try_send(notification("notifications/message", &log));
        }
    }

    fn new_call(&self, line: &Line, params: &Message, word: &str) -> String {
        Peer::tell(line, params, word);
        if params.raw(&["inputResponses"]).is_none() {
            let all = questions(word, None).map(|(kind, method, params)| {
                format!(r#""{kind}":{{"method":"{method}","params":{params}}}"#)
            });
            let all = all.join(",");
            let state = quoted(word);
            return format!(
                r#"{{"resultType":"input_required","inputRequests":{{{all}}},"requestState":{state}}}"#
            );
        }
        if params.text(&["requestState"]).as_deref() != Some(word) {
            self.fault(&format!("{word} came with {:?}", params.text(&["requestState"])));
        }
        for kind in KINDS {
            let answer = params.raw(&["inputResponses", kind]).unwrap_or_default();
            if !answer.contains(word) {
                self.fault(&format!("{kind} of {word} was answered with {answer}"));
            }
        }
        let text = content(&format!("{word} answered"));
        format!(r#"{{"resultType":"complete",{}"#, &text[1..])
    }

    // What the questions came to.
    async fn old_call(
        &self,
        talk: &Arc<Talk>,
        line: &Line,
        params: &Message,
        word: &str,
    ) -> &'static str {
        Peer::tell(line, params, word);
        let number = talk.count();
        let mut answers = Vec::new();
        for (kind, method, params) in questions(word, Some(number)) {
            answers.push((kind, ask(talk, line, method, &params)));
        }
        let forgotten = raw(&params.0, &["arguments", "forget"]).map(|_| {
            let (_, method, params) = &questions(&format!("{FORGET}{word}"), None)[0];
            let (id, answer) = ask(talk, line, method, params);
            (id, answer)
        });
        let mut refused = 0;
        for (kind, (_, answer)) in answers {
            let answer = answer.await.map(|m| m.0).unwrap_or_default();
            if Message(answer.clone()).raw(&["error"]).is_some() {
                refused += 1;
            } else if !answer.contains(word) {
                self.fault(&format!("{kind} of {word} was answered with {answer}"));
            }
        }
        if refused == KINDS.len() {
            if let Some((_, answer)) = forgotten {
                let _ = answer.await;
            }
            return "refused";
        }
        if let Some((id, _)) = forgotten {
            // Where the answer has set out already, or the call's end overtakes this, one comes.
            let cancel = format!(r#"{{"requestId":{id},"reason":{}}}"#, quoted(word));
            let _ = line.try_send(notification("notifications/cancelled", &cancel));
        }
        if refused > 0 {
            self.fault(&format!("{word}: {refused} questions were refused"));
        }
        self.visited(talk, &page(number, word, true)).await;
        "answered"
    }

    async fn visited(&self, talk: &Talk, page: &str) {
        if !talk.heard().await {
            return self.fault("a conversation that may be shown pages has no stream");
        }
        talk.aside(&notification(VISITED, &visit(page)));
    }

    async fn ask_roots(&self, talk: &Arc<Talk>) {
        let ears = talk.ears.lock().unwrap().clone();
        for ear in ears {
            let (_, answer) = ask(talk, &ear, "roots/list", "{}");
            let Ok(answer) = answer.await else { continue };
            let Some(roots) = answer.raw(&["result", "roots"]) else { continue };
            let uri = items(&roots).first().and_then(|root| Message(root.clone()).text(&["uri"]));
            let whose = uri.unwrap_or_default().trim_start_matches("file:///").to_owned();
            let owners = talk.owners.lock().unwrap().clone();
            if owners.len() != 1 || !owners.contains(owner(&whose)) {
                self.fault(&format!("{whose} answered for the roots of {owners:?}"));
            }
            talk.rooted.lock().unwrap().insert(owner(&whose).to_owned());
        }
    }

    /// Conversations in which more than one called.
    pub fn mixed(&self) -> Vec<BTreeSet<String>> {
        let all = self.talks().iter().map(|t| t.owners.lock().unwrap().clone()).collect::<Vec<_>>();
        all.into_iter().filter(|owners| owners.len() > 1).collect()
    }
}

const OFFERS: &str = r#""tools":{"listChanged":true},"resources":{"subscribe":true},"logging":{}"#;

/// The kinds of questions.
pub const KINDS: [&str; 4] = ["form", "url", "sampling", "roots"];

// Kind, method and params; with a number the page has an id.
fn questions(word: &str, page_number: Option<u64>) -> [(&'static str, &'static str, String); 4] {
    let said = quoted(word);
    let form = r#"{"type":"object","properties":{"n":{"type":"number"}}}"#;
    let page = page(page_number.unwrap_or_default(), word, page_number.is_some());
    let text = format!(r#"{{"role":"user","content":{{"type":"text","text":{said}}}}}"#);
    [
        (
            "form",
            "elicitation/create",
            format!(r#"{{"mode":"form","message":{said},"requestedSchema":{form}}}"#),
        ),
        ("url", "elicitation/create", format!("{{{page}}}")),
        (
            "sampling",
            "sampling/createMessage",
            format!(r#"{{"messages":[{text}],"maxTokens":10}}"#),
        ),
        ("roots", "roots/list", format!(r#"{{"_meta":{{"word":{said}}}}}"#)),
    ]
}

fn page(number: u64, word: &str, with_id: bool) -> String {
    let id = if with_id { format!(r#","elicitationId":"e-{number}""#) } else { String::new() };
    let said = quoted(word);
    format!(r#""mode":"url","message":{said},"url":"https://pay.example/"{id}"#)
}

// What is said of a page that was visited.
fn visit(page: &str) -> String {
    let part = |name: &str| raw(&format!("{{{page}}}"), &[name]).unwrap();
    let (id, word) = (part("elicitationId"), part("message"));
    format!(r#"{{"elicitationId":{id},"_meta":{{"word":{word}}}}}"#)
}

// The id and what will be answered.
fn ask(
    talk: &Talk,
    line: &Line,
    method: &str,
    params: &str,
) -> (String, oneshot::Receiver<Message>) {
    let id = format!(r#""q-{}""#, talk.count());
    let (tx, answer) = oneshot::channel();
    talk.asked.lock().unwrap().insert(id.clone(), tx);
    let _ = line.try_send(format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#
    ));
    (id, answer)
}

fn content(text: &str) -> String {
    format!(r#"{{"content":[{{"type":"text","text":{}}}]}}"#, quoted(text))
}

const TIMES: &str = r#""createdAt":"2026-11-21T00:00:00Z","lastUpdatedAt":"2026-11-21T00:00:00Z""#;

fn old_task(number: usize, word: &str) -> String {
    let said = quoted(word);
    format!(
        r#""taskId":"t-{number}","status":"working","statusMessage":{said},"ttl":60000,{TIMES}"#
    )
}

fn new_task(number: usize, word: &str) -> String {
    let said = quoted(word);
    format!(
        r#""taskId":"t-{number}","status":"working","statusMessage":{said},"ttlMs":null,{TIMES}"#
    )
}

fn names(listen: &Listen, list: &str, what: &str) -> bool {
    raw(&listen.filter, &[list]).is_some_and(|list| items(&list).contains(&quoted(what)))
}
