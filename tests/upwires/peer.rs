//! A scripted server whose messages all come and go on one connection, over either transport.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

use crate::harness::scripted::{Arrival, Reply, Scripted, tool};

/// What goes out on a connection.
pub enum Out {
    Text(String),
    Binary,
    Cut,
}

pub type Door = mpsc::Sender<Out>;

/// What a server has seen and can say.
#[derive(Default)]
pub struct State {
    modern: bool,
    heard: Mutex<Vec<Value>>,
    doors: Mutex<Vec<Door>>,
    pub heads: Mutex<Vec<Vec<(String, String)>>>,
    pub posts_fail: AtomicUsize,
    /// From now on it speaks streamable HTTP.
    pub renewed: AtomicBool,
    /// It hangs up on what it does not know.
    pub touchy: AtomicBool,
}

/// The server; it ends with the test.
pub struct Peer {
    pub url: String,
    pub state: Arc<State>,
    // Of HTTP+SSE.
    http: Option<Scripted>,
}

pub const NAMES: [&str; 9] =
    ["fine", "broke", "steps", "odd", "ask", "hang", "big", "cut", "binary"];

impl State {
    pub fn new(modern: bool) -> Arc<State> {
        Arc::new(State { modern, ..State::default() })
    }

    pub fn asked(&self, method: &str) -> usize {
        self.heard.lock().unwrap().iter().filter(|m| m["method"] == method).count()
    }

    pub fn arrived(&self, tool: &str) -> usize {
        let heard = self.heard.lock().unwrap();
        heard.iter().filter(|m| m["method"] == "tools/call" && m["params"]["name"] == tool).count()
    }

    pub fn heard(&self) -> Vec<Value> {
        self.heard.lock().unwrap().clone()
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.doors.lock().unwrap().len()
    }

    /// Say something on every connection.
    pub fn say_all(&self, out: impl Fn() -> Out) {
        for door in self.doors.lock().unwrap().iter() {
            let _ = door.try_send(out());
        }
    }

    pub fn notify_all(&self, method: &str, params: &Value) {
        let message = json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string();
        self.say_all(|| Out::Text(message.clone()));
    }

    fn enter(&self) -> (usize, mpsc::Receiver<Out>) {
        let (tx, rx) = mpsc::channel(256);
        let mut doors = self.doors.lock().unwrap();
        doors.push(tx);
        (doors.len() - 1, rx)
    }

    fn door(&self, n: usize) -> Option<Door> {
        self.doors.lock().unwrap().get(n).cloned()
    }

    fn complete(&self, mut result: Value, list: bool) -> Value {
        if self.modern {
            result["resultType"] = json!("complete");
            if list {
                (result["ttlMs"], result["cacheScope"]) = (json!(0), json!("private"));
            }
        }
        result
    }

    /// A message came.
    fn take(&self, door: &Door, message: &Value) {
        self.heard.lock().unwrap().push(message.clone());
        let id = &message["id"];
        let say = |out: String| {
            let _ = door.try_send(Out::Text(out));
        };
        let answer = |result: Value| {
            say(json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string());
        };
        let params = &message["params"];
        let capabilities = json!({"tools": {"listChanged": true}, "logging": {},
            "resources": {"subscribe": true, "listChanged": true}});
        match message["method"].as_str() {
            // The answer to our question: its id is the call's, as text.
            None => {
                let id: u64 = id.as_str().unwrap().parse().unwrap();
                let text = message["result"]["action"].as_str().unwrap_or("refused");
                say(json!({"jsonrpc": "2.0", "id": id,
                    "result": {"content": [{"type": "text", "text": text}]}})
                .to_string());
            }
            Some("server/discover") if self.modern => answer(self.complete(
                json!({"supportedVersions": ["2026-07-28"], "capabilities": capabilities}),
                true,
            )),
            Some("initialize") if !self.modern => answer(json!({"protocolVersion": "2025-06-18",
                "capabilities": capabilities, "serverInfo": {"name": "peer", "version": "1"}})),
            Some("tools/list") => {
                // Two pages.
                let (page, next) = match params["cursor"].as_str() {
                    None => (&NAMES[..5], Some("more")),
                    Some(_) => (&NAMES[5..], None),
                };
                let tools: Vec<_> = page.iter().map(|n| tool(n, false)).collect();
                let mut result = json!({"tools": tools});
                if let Some(next) = next {
                    result["nextCursor"] = json!(next);
                }
                answer(self.complete(result, true));
            }
            Some("resources/list") => answer(
                self.complete(json!({"resources": [{"uri": "file:///a", "name": "a"}]}), true),
            ),
            Some("resources/templates/list") => {
                answer(self.complete(json!({"resourceTemplates": []}), true));
            }
            Some("resources/subscribe" | "resources/unsubscribe" | "logging/setLevel" | "ping") => {
                answer(json!({}));
            }
            Some("subscriptions/listen") if self.modern => {
                say(json!({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged",
                    "params": {"notifications": params["notifications"],
                        "_meta": {"io.modelcontextprotocol/subscriptionId": id}}})
                .to_string());
            }
            Some("tools/call") => self.call(door, id, params),
            Some(method) if method.starts_with("notifications/") => {}
            Some(_) if self.touchy.load(Ordering::SeqCst) => {
                let _ = door.try_send(Out::Cut);
            }
            Some(_) => say(json!({"jsonrpc": "2.0", "id": id,
                "error": {"code": -32601, "message": "no"}})
            .to_string()),
        }
    }

    fn call(&self, door: &Door, id: &Value, params: &Value) {
        let say = |out: String| {
            let _ = door.try_send(Out::Text(out));
        };
        let done = |result: Value| {
            let result = self.complete(result, false);
            say(json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string());
        };
        let text = |text: &str| json!({"content": [{"type": "text", "text": text}]});
        match params["name"].as_str().unwrap() {
            "fine" => done(text("fine")),
            "broke" => say(json!({"jsonrpc": "2.0", "id": id,
                "error": {"code": -31050, "message": "broke", "data": {"x": 1}}})
            .to_string()),
            "steps" => {
                let token = &params["_meta"]["progressToken"];
                for n in 1..=2 {
                    say(json!({"jsonrpc": "2.0", "method": "notifications/progress",
                        "params": {"progressToken": token, "progress": n, "message": "on"}})
                    .to_string());
                }
                say(json!({"jsonrpc": "2.0", "method": "notifications/message",
                    "params": {"level": "error", "data": "said"}})
                .to_string());
                let result = self.complete(text("done"), false);
                let done = json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string();
                let door = door.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    let _ = door.send(Out::Text(done)).await;
                });
            }
            "odd" => {
                let kind = if self.modern { r#""resultType":"complete","# } else { "" };
                say(format!(
                    r#"{{"jsonrpc":"2.0","id":{id},"result":{{{kind}"content":[],"structuredContent":{{"n":1.10,"big":123456789012345678901234567890}},"x-unknown":{{"b":1,"a":2}}}}}}"#
                ));
            }
            "ask" if self.modern => match params["inputResponses"]["q"]["action"].as_str() {
                Some(action) => done(text(action)),
                None => say(json!({"jsonrpc": "2.0", "id": id, "result": {
                    "resultType": "input_required", "requestState": "s",
                    "inputRequests": {"q": form()}}})
                .to_string()),
            },
            "ask" => {
                let mut question = form();
                question["jsonrpc"] = json!("2.0");
                question["id"] = json!(id.to_string());
                say(question.to_string());
            }
            "big" => done(text(&"x".repeat(200_000))),
            "cut" => {
                let _ = door.try_send(Out::Cut);
            }
            "binary" => {
                let _ = door.try_send(Out::Binary);
            }
            _ => {}
        }
    }
}

fn form() -> Value {
    json!({"method": "elicitation/create", "params": {"mode": "form", "message": "sure?",
        "requestedSchema": {"type": "object", "properties": {"n": {"type": "number"}}}}})
}

impl Peer {
    pub fn section(&self, name: &str, more: &str) -> String {
        format!("[upstreams.{name}]\nurl = {:?}\n{more}\n", self.url)
    }

    /// Over WebSocket.
    pub async fn websocket(modern: bool) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/mcp?k=v", listener.local_addr().unwrap());
        let state = State::new(modern);
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Peer { url, state, http: None }
    }

    /// Over HTTP+SSE; a POST to the URL itself is answered with `refusal`.
    pub async fn sse(refusal: u16) -> Peer {
        let state = State::new(false);
        let shared = state.clone();
        let handler = move |a: &Arrival| {
            let renewed = shared.renewed.load(Ordering::SeqCst);
            (!renewed).then(|| over_sse(&shared, a, refusal))
        };
        let http = Scripted::start(&[tool("newer", false)], handler).await;
        Peer { url: http.url.clone(), state, http: Some(http) }
    }

    /// What arrived over HTTP.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.http.as_ref().unwrap().arrivals()
    }
}

fn over_sse(state: &Arc<State>, a: &Arrival, refusal: u16) -> Reply {
    let nothing = |status| Reply::Http(status, vec![], String::new());
    if a.verb == "GET" {
        let (n, mut out) = state.enter();
        let (tx, rx) = mpsc::channel(256);
        // The fields of an event may come in any order.
        tx.try_send(format!("/messages?s={n}\nevent: endpoint")).unwrap();
        tokio::spawn(async move {
            while let Some(Out::Text(text)) = out.recv().await {
                let _ = tx.send(format!("{text}\nevent: message")).await;
            }
        });
        return Reply::Live(rx);
    }
    let Some(n) = a.path.strip_prefix("/messages?s=") else { return nothing(refusal) };
    let door = n.parse().ok().and_then(|n: usize| state.door(n)).filter(|door| !door.is_closed());
    let Some(door) = door else { return nothing(404) };
    let fail = state.posts_fail.load(Ordering::SeqCst);
    if fail > 0 && a.method() == "tools/call" {
        return nothing(u16::try_from(fail).unwrap());
    }
    state.take(&door, &a.message);
    Reply::Http(202, vec![], "Accepted".into())
}

/// One connection as a WebSocket.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S, state: Arc<State>) {
    let heads = state.clone();
    #[allow(clippy::result_large_err)] // The shape is the library's.
    let check = move |request: &Request, mut response: Response| {
        let head = request.headers().iter();
        let head = head.map(|(k, v)| (k.to_string(), v.to_str().unwrap().to_owned()));
        let all = head.chain([("path".to_owned(), request.uri().to_string())]);
        heads.heads.lock().unwrap().push(all.collect());
        response.headers_mut().insert("sec-websocket-protocol", "mcp".parse().unwrap());
        Ok(response)
    };
    let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, check).await else { return };
    let (n, mut out) = state.enter();
    let door = state.door(n).unwrap();
    let (mut sink, mut stream) = socket.split();
    loop {
        tokio::select! {
            frame = stream.next() => match frame {
                Some(Ok(Message::Text(text))) => {
                    state.take(&door, &serde_json::from_str(&text).unwrap());
                }
                Some(Ok(Message::Binary(_))) => panic!("the gateway sent a binary frame"),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
            out = out.recv() => {
                let frame = match out {
                    Some(Out::Text(text)) => Message::text(text),
                    Some(Out::Binary) => Message::binary(vec![1]),
                    Some(Out::Cut) | None => return,
                };
                if sink.send(frame).await.is_err() {
                    return;
                }
            }
        }
    }
}
