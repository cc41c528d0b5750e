//! One of the two callers: what it must hear, and that it hears nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures_util::future::join_all;

use crate::axes::{Carrier, Endpoint};
use crate::caller::{Ask, Caller};
use crate::harness::PATIENCE;
use crate::peer::{FORGET, KINDS, NOBODY, Peer, meta};
use crate::text::{Message, items, quoted};
use crate::ways::Place;

/// Calls of each lane at each upstream.
const ROUNDS: usize = 5;
/// Calls at the same time at each upstream, where the transport carries more than one.
const LANES: usize = 2;

/// What a client of either revision declares that can be asked anything.
const CAPABILITIES: &str = r#"{"elicitation":{"form":{},"url":{}},"sampling":{},"roots":{},"extensions":{"io.modelcontextprotocol/tasks":{}}}"#;

/// A caller with a word of its own.
pub struct Side {
    pub name: &'static str,
    level: &'static str,
    caller: Arc<Caller>,
    /// All that was said in its exchanges.
    said: Mutex<Vec<Message>>,
    /// The words of pages that it was shown and whose visit is told.
    pages: Mutex<BTreeSet<String>>,
    /// Its tasks by upstream.
    tasks: BTreeMap<String, String>,
    _answering: Answering,
}

/// Answers what is asked outside of calls.
struct Answering(tokio::task::JoinHandle<()>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Side {
    pub async fn connect(
        name: &'static str,
        level: &'static str,
        at: Endpoint,
        url: String,
        key: String,
    ) -> Side {
        let place = Place { url, config: std::path::PathBuf::new(), key: Some(key) };
        let caller = Arc::new(Caller::connect(at, &place).await);
        let (asked, mut heard) = (caller.clone(), caller.heard.subscribe());
        let answering = tokio::spawn(async move {
            let mut seen = 0;
            while heard.changed().await.is_ok() {
                let new: Vec<Message> = heard.borrow_and_update()[seen..].to_vec();
                seen += new.len();
                for question in new.iter().filter(|m| m.is_request()) {
                    asked.reply(question, &answer("roots/list", &format!("{name}/aside"))).await;
                }
            }
        });
        let side = Side {
            name,
            level,
            caller,
            said: Mutex::default(),
            pages: Mutex::default(),
            tasks: BTreeMap::new(),
            _answering: Answering(answering),
        };
        if !at.is_modern() {
            let set = Ask::new("logging/setLevel", format!(r#""level":"{level}""#));
            side.ask(&set).await;
        }
        side
    }

    pub fn is_modern(&self) -> bool {
        self.caller.at.is_modern()
    }

    // A request that asks nothing.
    async fn ask(&self, ask: &Ask) -> Message {
        let said = self.caller.ask(ask).await.unwrap();
        self.said.lock().unwrap().push(said.clone());
        said
    }

    // With all that this side can be asked, tasks too, and the level of its log messages.
    fn meta(&self, token: Option<&str>) -> String {
        let mut all = Vec::new();
        if self.is_modern() {
            all.push(format!(r#""{}":{CAPABILITIES}"#, meta("clientCapabilities")));
            all.push(format!(r#""{}":"{}""#, meta("logLevel"), self.level));
        }
        all.extend(token.map(|token| format!(r#""progressToken":{}"#, quoted(token))));
        all.join(",")
    }

    // An old caller gets the result of a tool that becomes a task of the newest revision.
    fn knows_tasks(&self, peer: &Peer) -> bool {
        self.is_modern() || !peer.at.is_modern()
    }

    /// Begin a task at each upstream.
    pub async fn begin(&mut self, peers: &[Arc<Peer>]) {
        for peer in peers {
            if !self.knows_tasks(peer) {
                continue;
            }
            let word = format!("{}/task/{}", self.name, peer.name());
            let mut call = Ask::tool(
                &format!("{}__begin", peer.name()),
                &format!(r#"{{"word":{}}}"#, quoted(&word)),
            );
            if !self.is_modern() {
                call.params += r#","task":{"ttl":60000}"#;
            }
            let said = self.ask(&call.with(&self.meta(None))).await;
            let id = said.text(&["result", "task", "taskId"]);
            let id = id.or(said.text(&["result", "taskId"]));
            let id = id.unwrap_or_else(|| panic!("{}: {}", peer.at, said.0));
            self.tasks.insert(peer.name(), id);
        }
    }

    /// The ids of its tasks.
    pub fn tasks(&self) -> Vec<String> {
        self.tasks.values().cloned().collect()
    }

    /// Wish to hear of its own resource of each upstream, of lists, and of its tasks; it names
    /// another's too, which must come to nothing.
    pub async fn watch(&self, peers: &[Arc<Peer>], foreign: &[String]) {
        let uris: Vec<String> =
            peers.iter().map(|p| format!("{}+file:///{}", p.name(), self.name)).collect();
        if !self.is_modern() {
            for uri in &uris {
                let params = format!(r#""uri":{}"#, quoted(uri));
                let said = self.ask(&Ask::new("resources/subscribe", params)).await;
                assert_eq!(said.raw(&["result"]).as_deref(), Some("{}"), "{}", said.0);
            }
            return;
        }
        let list = |all: &[String]| all.iter().map(|one| quoted(one)).collect::<Vec<_>>().join(",");
        let own = self.tasks();
        let named = [own.clone(), foreign.to_vec()].concat();
        let filter = format!(
            r#""notifications":{{"toolsListChanged":true,"resourceSubscriptions":[{}],"taskIds":[{}]}}"#,
            list(&uris),
            list(&named)
        );
        let listen = Ask::new("subscriptions/listen", filter).with(&self.meta(None));
        self.caller.listen(&listen).await.unwrap();
        let ack = |all: &[Message]| {
            let ack = all.iter().find(|m| m.method().ends_with("acknowledged"))?;
            let tasks = ack.raw(&["params", "notifications", "taskIds"])?;
            Some(items(&tasks).into_iter().collect::<BTreeSet<_>>())
        };
        self.caller.hears("the acknowledgement", |all| ack(all).is_some()).await.unwrap();
        let honoured = ack(&self.caller.heard.borrow()).unwrap();
        assert_eq!(honoured, own.iter().map(|id| quoted(id)).collect(), "its own tasks only");
    }

    /// Call and be asked, at all upstreams at once where the transport carries more than one call.
    pub async fn rounds(&self, peers: &[Arc<Peer>], is_shared: bool) {
        if self.caller.at.carrier != Carrier::Http {
            for peer in peers {
                for n in 0..ROUNDS {
                    self.call(peer, &format!("{}/0/{n}", self.name), is_shared).await;
                }
            }
            return;
        }
        let lanes = peers.iter().flat_map(|peer| (0..LANES).map(move |lane| (peer, lane)));
        let lanes = lanes.map(|(peer, lane)| async move {
            for n in 0..ROUNDS {
                let word = format!("{}/{}/{lane}/{n}", self.name, peer.name());
                self.call(peer, &word, is_shared).await;
            }
            if lane == 0 && !self.is_modern() && !peer.at.is_modern() && !is_shared {
                self.page(peer).await;
            }
        });
        join_all(lanes).await;
    }

    async fn call(&self, peer: &Peer, word: &str, is_shared: bool) {
        let word = &format!("{word}/");
        let forget = !self.is_modern() && !peer.at.is_modern();
        let forgotten = if forget { r#","forget":true"# } else { "" };
        let arguments = format!(r#"{{"word":{}{forgotten}}}"#, quoted(word));
        let token = format!("token of {word}");
        let call = Ask::tool(&format!("{}__all", peer.name()), &arguments);
        let call = call.with(&self.meta(Some(&token)));
        let asked = Mutex::new(Vec::new());
        let respond = |method: &str, params: &Message| {
            asked.lock().unwrap().push((method.to_owned(), params.0.clone()));
            if params.0.contains(FORGET) { String::new() } else { answer(method, word) }
        };
        let all = self.caller.converse(&call, &respond).await;
        let all = all.unwrap_or_else(|e| panic!("{} -> {}: {e}", self.caller.at, peer.at));
        self.said.lock().unwrap().extend(all.iter().cloned());
        let place = || format!("{} -> {}, {word}: {all:#?}", self.caller.at, peer.at);

        // Each question is of this very call, and none is missing.
        let asked = asked.into_inner().unwrap();
        for (_, params) in &asked {
            assert!(params.contains(word.as_str()), "{params}\n{}", place());
        }
        // A modern upstream asks its caller whatever conversation carries it.
        let refused = is_shared && !peer.at.is_modern();
        let expected = if refused { 0 } else { KINDS.len() + usize::from(forget) };
        assert_eq!(asked.len(), expected, "{asked:?}\n{}", place());
        let result = all.last().unwrap();
        let told = if refused { "refused" } else { "answered" };
        assert!(result.0.contains(&format!("{word} {told}")), "{}", place());

        let of = |method: &str| -> Vec<&Message> {
            all.iter().filter(|m| m.method() == method).collect()
        };
        let progress = of("notifications/progress");
        assert!(!progress.is_empty(), "{}", place());
        for step in progress {
            let own = step.text(&["params", "progressToken"]).as_deref() == Some(&token);
            assert!(own && step.0.contains(word.as_str()), "{}\n{}", step.0, place());
        }
        let logs = of("notifications/message");
        for log in &logs {
            assert!(log.0.contains(word.as_str()), "{}\n{}", log.0, place());
        }
        let mut levels: Vec<_> = logs.iter().filter_map(|l| l.text(&["params", "level"])).collect();
        levels.dedup();
        let pipe = peer.at.carrier != Carrier::Http;
        if pipe && (peer.at.is_modern() || is_shared) {
            assert!(levels.is_empty(), "a log message that could be anybody's: {}", place());
        } else {
            assert!(levels.iter().any(|l| l == "error"), "{}", place());
            let debug = levels.iter().any(|l| l == "debug");
            assert_eq!(debug, self.level == "debug", "{}", place());
        }
        if forget && !refused {
            let question = all.iter().find(|m| m.is_request() && m.0.contains(FORGET)).unwrap();
            let cancelled = of("notifications/cancelled");
            let [cancelled] = &cancelled[..] else { panic!("{}", place()) };
            assert_eq!(cancelled.raw(&["params", "requestId"]), question.id(), "{}", place());
            self.pages.lock().unwrap().insert(word.clone());
        }
    }

    // Refused until a page is visited.
    async fn page(&self, peer: &Peer) {
        let word = format!("{}/page/{}/", self.name, peer.name());
        let arguments = format!(r#"{{"word":{}}}"#, quoted(&word));
        let call = Ask::tool(&format!("{}__page", peer.name()), &arguments);
        let said = self.ask(&call.with(&self.meta(None))).await;
        assert_eq!(said.raw(&["error", "code"]).as_deref(), Some("-32042"), "{}", said.0);
        assert!(said.0.contains(&word), "{}", said.0);
        self.pages.lock().unwrap().insert(word);
    }

    // All that it heard, in exchanges and outside of them.
    fn all(&self) -> Vec<Message> {
        let mut all = self.said.lock().unwrap().clone();
        all.extend(self.caller.heard.borrow().iter().cloned());
        all
    }

    async fn hears(&self, what: &str, ok: impl Fn(&[Message]) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !ok(&self.all()) {
            assert!(
                Instant::now() < end,
                "{} over {}: not heard: {what}",
                self.name,
                self.caller.at
            );
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// The visits of its pages, its resources, its tasks.
    pub async fn heard_its_own(&self, peers: &[Arc<Peer>]) {
        let pages = self.pages.lock().unwrap().clone();
        for word in pages {
            self.hears(&format!("the visit of {word}"), |all| {
                let done = |m: &Message| m.method().ends_with("elicitation/complete");
                all.iter().any(|m| done(m) && m.0.contains(&word))
            })
            .await;
        }
        for peer in peers {
            let uri = format!("{}+file:///{}", peer.name(), self.name);
            self.hears(&uri, |all| {
                all.iter().any(|m| m.text(&["params", "uri"]).as_deref() == Some(&uri))
            })
            .await;
            let Some(id) = self.tasks.get(&peer.name()) else { continue };
            let method =
                if self.is_modern() { "notifications/tasks" } else { "notifications/tasks/status" };
            let word = format!("{}/task/{}", self.name, peer.name());
            let news = |m: &&Message| {
                m.method() == method && m.text(&["params", "taskId"]).as_deref() == Some(id)
            };
            self.hears(&word, |all| all.iter().any(|m| news(&m))).await;
            for told in self.all().iter().filter(news) {
                assert!(told.0.contains(&word), "{}", told.0);
            }
            let got = self.task(id).await;
            assert!(got.0.contains(&word), "{} -> {}: {}", self.caller.at, peer.at, got.0);
        }
    }

    async fn task(&self, id: &str) -> Message {
        let params = format!(r#""taskId":{}"#, quoted(id));
        let name = Some(id.to_owned());
        let get = Ask { name, ..Ask::new("tasks/get", params) };
        self.ask(&get.with(&self.meta(None))).await
    }

    /// Another's tasks are unknown.
    pub async fn cannot_name(&self, foreign: &[String]) {
        for id in foreign {
            let said = self.task(id).await;
            assert_eq!(said.raw(&["error", "code"]).as_deref(), Some("-32602"), "{}", said.0);
        }
    }

    /// Say that its roots are others now.
    pub async fn roots_changed(&self) {
        let changed = r#"{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}"#;
        self.caller.tell(changed.into()).await;
    }

    /// How often it was told that tools changed.
    pub fn lists_told(&self) -> usize {
        let changed = "notifications/tools/list_changed";
        self.all().iter().filter(|m| m.method() == changed).count()
    }

    /// Wait until this tool of all upstreams is seen as it is now.
    pub async fn sees(&self, peers: &[Arc<Peer>], tool: &str, which: usize) {
        let end = Instant::now() + PATIENCE;
        let current = |listed: &BTreeMap<String, String>| {
            peers.iter().all(|peer| {
                let version = peer.versions[which].load(std::sync::atomic::Ordering::SeqCst);
                let is = listed.get(&format!("{}__{tool}", peer.name()));
                is.is_some_and(|t| t.contains(&format!(r#""v{version}""#)))
            })
        };
        while !self.caller.all("tools/list", "tools", "name").await.is_ok_and(|l| current(&l.0)) {
            assert!(Instant::now() < end, "{} does not see the new {tool}", self.name);
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        self.hears("that tools changed", |all| {
            all.iter().any(|m| m.method() == "notifications/tools/list_changed")
        })
        .await;
    }

    /// Nothing that carries the other's word or is nobody's, and no questions outside of calls but
    /// for roots.
    pub fn heard_nothing_of(&self, other: &str) {
        for message in self.all() {
            let list = message.raw(&["result", "tools"]).is_some();
            let foreign = message.0.contains(other) || message.0.contains(NOBODY);
            assert!(list || !foreign, "{} over {} heard {}", self.name, self.caller.at, message.0);
        }
        for question in self.caller.heard.borrow().iter().filter(|m| m.is_request()) {
            assert_eq!(question.method(), "roots/list", "{}", question.0);
        }
    }
}

// The answer to a question, with a word in it.
fn answer(method: &str, word: &str) -> String {
    let said = quoted(word);
    match method {
        "elicitation/create" => {
            format!(
                r#"{{"action":"accept","content":{{"word":{said}}},"_meta":{{"word":{said}}}}}"#
            )
        }
        "sampling/createMessage" => format!(
            r#"{{"role":"assistant","content":{{"type":"text","text":{said}}},"model":"m"}}"#
        ),
        _ => format!(r#"{{"roots":[{{"uri":{}}}]}}"#, quoted(&format!("file:///{word}"))),
    }
}
