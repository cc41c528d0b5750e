//! The downstream engine: requests of one revision, and all that is said until their answer. What
//! carries them is in `ways`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use crate::axes::Endpoint;
use crate::harness::PATIENCE;
use crate::peer::{calmed, meta};
use crate::text::{Message, items, members, quoted, raw};
use crate::ways::{Exchange, Way};

/// What a client of each revision declares, and what else it can be asked it declares too: a
/// gateway must know what the revision makes of it.
const CAPABILITIES: &str = r#"{"elicitation":{"form":{},"url":{}},"sampling":{},"roots":{"listChanged":true},"experimental":{"x":{"n":1e400}}}"#;

/// A request before it has an id and an envelope.
#[derive(Clone, Default)]
pub struct Ask {
    pub method: &'static str,
    /// Members of the params, without braces.
    pub params: String,
    /// Members of `_meta`, without braces.
    pub meta: String,
    /// What stands in the `Mcp-Name` header of the newest revision.
    pub name: Option<String>,
}

impl Ask {
    pub fn new(method: &'static str, params: impl Into<String>) -> Ask {
        Ask { method, params: params.into(), ..Ask::default() }
    }

    pub fn tool(name: &str, arguments: &str) -> Ask {
        let params = format!(r#""name":"{name}","arguments":{arguments}"#);
        Ask { name: Some(name.into()), ..Ask::new("tools/call", params) }
    }

    pub fn resource(uri: &str) -> Ask {
        Ask { name: Some(uri.into()), ..Ask::new("resources/read", format!(r#""uri":"{uri}""#)) }
    }

    pub fn prompt(name: &str) -> Ask {
        Ask { name: Some(name.into()), ..Ask::new("prompts/get", format!(r#""name":"{name}""#)) }
    }

    /// With more in its `_meta`.
    pub fn with(mut self, meta: &str) -> Ask {
        self.meta = meta.into();
        self
    }
}

/// What is answered to a question, by its method and params: the raw result; nothing if empty.
pub type Answer<'a> = &'a (dyn Fn(&str, &Message) -> String + Send + Sync);

/// A client of one revision.
pub struct Caller {
    pub at: Endpoint,
    way: Way,
    calm: bool,
    serial: AtomicU64,
    /// The listen request of the newest revision: its id and what holds it open.
    listening: OnceLock<(String, Option<tokio::task::JoinHandle<()>>)>,
    /// What was said outside of any exchange.
    pub heard: Arc<watch::Sender<Vec<Message>>>,
}

impl Caller {
    /// Connect and agree.
    pub async fn connect(at: Endpoint, place: &crate::ways::Place) -> Caller {
        Caller::connect_as(at, place, false).await
    }

    /// One for SDKs, which read all numbers and cannot read all.
    pub async fn connect_calm(at: Endpoint, place: &crate::ways::Place) -> Caller {
        Caller::connect_as(at, place, true).await
    }

    async fn connect_as(at: Endpoint, place: &crate::ways::Place, calm: bool) -> Caller {
        let heard = Arc::new(watch::Sender::default());
        let way = Way::open(at, place, heard.clone()).await;
        let mut caller =
            Caller { at, way, calm, serial: AtomicU64::new(1), listening: OnceLock::new(), heard };
        if !at.is_modern() {
            caller.shake_hands().await;
        }
        caller
    }

    async fn shake_hands(&mut self) {
        let revision = self.at.revision.as_str();
        let params = format!(
            r#""protocolVersion":"{revision}","capabilities":{CAPABILITIES},"clientInfo":{{"name":"caller","version":"1"}}"#
        );
        let said = self.ask(&Ask::new("initialize", params)).await.unwrap();
        let agreed = said.text(&["result", "protocolVersion"]);
        assert_eq!(agreed.as_deref(), Some(revision), "{}: {}", self.at, said.0);
        self.way.agreed(self.at.revision);
        self.way.tell(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#.into()).await;
        self.way.listen(self.heard.clone()).await;
    }

    // Ids of all kinds that JSON can spell, no two alike.
    fn id(&self) -> String {
        let n = self.next();
        match n % 5 {
            0 => format!("{n}"),
            1 => format!("{n}.0"),
            2 => format!("{n}000000000000000000000000000001"),
            3 => format!(r#""{n}-{}""#, "long ".repeat(60)),
            _ => format!(r#""\u00e9 \"{n}\" é""#),
        }
    }

    fn envelope(&self, id: &str, ask: &Ask) -> String {
        let mut inner: Vec<String> = Vec::new();
        if self.at.is_modern() {
            inner.push(format!(r#""{}":"2026-07-28""#, meta("protocolVersion")));
            if !ask.meta.contains(&meta("clientCapabilities")) {
                inner.push(format!(r#""{}":{CAPABILITIES}"#, meta("clientCapabilities")));
            }
        }
        if !ask.meta.is_empty() {
            inner.push(ask.meta.clone());
        }
        let mut params: Vec<String> = Vec::new();
        if !ask.params.is_empty() {
            params.push(ask.params.clone());
        }
        if !inner.is_empty() {
            params.push(format!(r#""_meta":{{{}}}"#, inner.join(",")));
        }
        let (method, params) = (ask.method, params.join(","));
        let message =
            format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{{{params}}}}}"#);
        if self.calm { calmed(&message) } else { message }
    }

    /// Send a request.
    pub async fn begin(&self, ask: &Ask) -> Exchange {
        let id = self.id();
        let message = self.envelope(&id, ask);
        self.way.begin(id, ask, message).await
    }

    /// Send a request, and answer what is asked meanwhile: the questions, the notices, and the
    /// response as the last.
    pub async fn converse(&self, ask: &Ask, answer: Answer<'_>) -> Result<Vec<Message>, String> {
        let mut all = Vec::new();
        let mut next = ask.clone();
        loop {
            let mut exchange = self.begin(&next).await;
            let response = loop {
                let said = tokio::time::timeout(PATIENCE, exchange.next()).await;
                let said = said.map_err(|_| format!("no answer to {}; {all:?}", ask.params))?;
                let Some(message) = said else {
                    return Err(format!("the stream of {} ended; {all:?}", ask.params));
                };
                if message.is_response() {
                    break message;
                }
                if message.is_request() {
                    let params = Message(message.raw(&["params"]).unwrap_or("{}".into()));
                    let result = answer(&message.method(), &params);
                    if !result.is_empty() {
                        self.reply(&message, &result).await;
                    }
                }
                all.push(message);
            };
            if response.id().as_ref() != Some(exchange.id()) {
                return Err(format!("asked with id {}: {}", exchange.id(), response.0));
            }
            let kind = response.text(&["result", "resultType"]);
            if self.at.is_modern() != kind.is_some() && response.raw(&["result"]).is_some() {
                return Err(format!("not a result of this revision: {}", response.0));
            }
            if kind.as_deref() != Some("input_required") {
                all.push(response);
                return Ok(all);
            }
            // 2026-07-28 basic/patterns/mrtr: the same request once more, with the answers.
            let asked = response.raw(&["result", "inputRequests"]).unwrap_or_default();
            let answers: Vec<String> = members(&asked)
                .into_iter()
                .map(|(key, request)| {
                    let request = Message(request);
                    let params = Message(request.raw(&["params"]).unwrap_or("{}".into()));
                    format!("{}:{}", quoted(&key), answer(&request.method(), &params))
                })
                .collect();
            next = ask.clone();
            write!(next.params, r#","inputResponses":{{{}}}"#, answers.join(",")).unwrap();
            if let Some(state) = response.raw(&["result", "requestState"]) {
                write!(next.params, r#","requestState":{state}"#).unwrap();
            }
            all.push(response);
        }
    }

    /// Send a request during which nothing is asked: its response.
    pub async fn ask(&self, ask: &Ask) -> Result<Message, String> {
        let all = self.converse(ask, &|method, _| panic!("asked {method}")).await?;
        Ok(all.last().cloned().unwrap())
    }

    /// A number that this caller has not used yet.
    pub fn next(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::SeqCst)
    }

    /// Send a listen request, whose stream is heard from now on.
    pub async fn listen(&self, ask: &Ask) -> Result<(), String> {
        let mut exchange = self.begin(ask).await;
        let id = exchange.id().clone();
        let heard = self.heard.clone();
        // On a connection nothing comes here.
        let task = self.at.is_stateless().then(|| {
            tokio::spawn(async move {
                while let Some(message) = exchange.next().await {
                    heard.send_modify(|all| all.push(message));
                }
            })
        });
        self.listening.set((id, task)).map_err(|_| "listened twice".to_owned())
    }

    /// The listen request's id.
    pub fn listening(&self) -> Option<String> {
        self.listening.get().map(|(id, _)| id.clone())
    }

    /// Say something that is no request.
    #[allow(dead_code, reason = "not every test that shares the callers tells something")]
    pub async fn tell(&self, message: String) {
        self.way.tell(message).await;
    }

    /// Answer a question.
    pub async fn reply(&self, question: &Message, result: &str) {
        let id = question.id().unwrap();
        self.way.tell(crate::text::response(&id, "result", result)).await;
    }

    /// Take a request back, as this revision does over this carrier.
    pub async fn cancel(&self, exchange: Exchange) -> Option<Exchange> {
        if self.at.is_stateless() {
            drop(exchange);
            return None;
        }
        let params = format!(r#"{{"requestId":{},"reason":"n"}}"#, exchange.id());
        self.way.tell(crate::text::notification("notifications/cancelled", &params)).await;
        Some(exchange)
    }

    /// All items of a list by their key, and how many are on each page.
    pub async fn all(
        &self,
        method: &'static str,
        member: &str,
        key: &str,
    ) -> Result<(BTreeMap<String, String>, Vec<usize>), String> {
        let (mut all, mut pages) = (BTreeMap::new(), Vec::new());
        let mut cursor = String::new();
        loop {
            let page = self.ask(&Ask::new(method, cursor.clone())).await?;
            let list = page.raw(&["result", member]).ok_or(format!("{method}: {}", page.0))?;
            let list = items(&list);
            pages.push(list.len());
            for item in list {
                let name = raw(&item, &[key]).unwrap_or_default();
                let name: String =
                    serde_json::from_str(&name).map_err(|e| format!("{item}: {e}"))?;
                all.insert(name, item);
            }
            match page.raw(&["result", "nextCursor"]) {
                Some(next) => cursor = format!(r#""cursor":{next}"#),
                None => return Ok((all, pages)),
            }
        }
    }

    /// Wait until something was said outside of any exchange; how much was said until then.
    pub async fn hears(&self, what: &str, ok: impl Fn(&[Message]) -> bool) -> Result<(), String> {
        let mut heard = self.heard.subscribe();
        let seen = tokio::time::timeout(PATIENCE, heard.wait_for(|all| ok(all))).await;
        match seen {
            Ok(Ok(_)) => Ok(()),
            _ => Err(format!("not heard: {what}")),
        }
    }
}
