//! What carries the messages of a caller: streamable HTTP of either era, and everything on one
//! connection.

use std::process::Stdio;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use weirkeeper::protocol::revision::Revision;

use crate::axes::{Carrier, Endpoint};
use crate::caller::Ask;
use crate::peer::LINE_MAX;
use crate::text::Message;

/// Where the gateway is.
pub struct Place {
    /// Its endpoint.
    pub url: String,
    /// A configuration for one over standard input and output.
    pub config: std::path::PathBuf,
    /// Who the caller is there. Over standard input and output it goes to the endpoint then.
    pub key: Option<String>,
}

type Heard = Arc<watch::Sender<Vec<Message>>>;

/// What is said until a request is answered. Dropping it leaves.
pub struct Exchange {
    id: String,
    said: mpsc::Receiver<Message>,
    _task: Option<Ending>,
}

impl Exchange {
    pub fn id(&self) -> &String {
        &self.id
    }

    /// What is said next; nothing when the stream has ended.
    pub async fn next(&mut self) -> Option<Message> {
        self.said.recv().await
    }
}

/// A task that ends with whoever holds this.
struct Ending(JoinHandle<()>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A way to the gateway.
pub enum Way {
    Http(Http),
    Pipe(Pipe),
}

impl Way {
    pub async fn open(at: Endpoint, place: &Place, heard: Heard) -> Way {
        if at.carrier == Carrier::Http {
            return Way::Http(Http::new(at, place));
        }
        Way::Pipe(Pipe::open(at, place, heard).await)
    }

    /// From now on each request names the revision.
    pub fn agreed(&mut self, revision: Revision) {
        if let Way::Http(http) = self {
            http.agreed = (revision >= Revision::R2025_06_18).then_some(revision);
        }
    }

    /// Say something that is no request.
    pub async fn tell(&self, message: String) {
        match self {
            Way::Http(http) => {
                let sent = http.post(None, message).await;
                assert_eq!(sent.map(|r| r.status().as_u16()).ok(), Some(202), "{}", http.at);
            }
            Way::Pipe(pipe) => pipe.say(message).await,
        }
    }

    pub async fn begin(&self, id: String, ask: &Ask, message: String) -> Exchange {
        match self {
            Way::Http(http) => http.begin(id, ask, message),
            Way::Pipe(pipe) => pipe.begin(id, message).await,
        }
    }

    /// Hear what is said outside of any exchange; on a connection that is so already.
    pub async fn listen(&self, heard: Heard) {
        if let Way::Http(http) = self {
            http.listen(heard).await;
        }
    }
}

/// Streamable HTTP.
pub struct Http {
    at: Endpoint,
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    key: Option<String>,
    session: Arc<Mutex<Option<String>>>,
    agreed: Option<Revision>,
    streams: Mutex<Vec<Ending>>,
}

impl Http {
    fn new(at: Endpoint, place: &Place) -> Http {
        Http {
            at,
            client: Client::builder(TokioExecutor::new()).build_http(),
            url: place.url.clone(),
            key: place.key.clone(),
            session: Arc::default(),
            agreed: None,
            streams: Mutex::default(),
        }
    }

    // The request with what the revision wants in headers.
    fn request(&self, verb: &str, ask: Option<&Ask>, body: String) -> Request<Full<Bytes>> {
        let mut request = Request::builder()
            .method(verb)
            .uri(&self.url)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        if self.at.is_modern() {
            request = request.header("mcp-protocol-version", "2026-07-28");
            if let Some(ask) = ask {
                request = request.header("mcp-method", ask.method);
                if let Some(name) = &ask.name {
                    request = request.header("mcp-name", name);
                }
            }
        }
        if let Some(key) = &self.key {
            request = request.header("x-api-key", key);
        }
        if let Some(agreed) = self.agreed {
            request = request.header("mcp-protocol-version", agreed.as_str());
        }
        if let Some(session) = &*self.session.lock().unwrap() {
            request = request.header("mcp-session-id", session);
        }
        request.body(Full::from(body)).unwrap()
    }

    async fn post(
        &self,
        ask: Option<&Ask>,
        body: String,
    ) -> Result<hyper::Response<Incoming>, hyper_util::client::legacy::Error> {
        self.client.request(self.request("POST", ask, body)).await
    }

    fn begin(&self, id: String, ask: &Ask, message: String) -> Exchange {
        let (tx, said) = mpsc::channel(LINE_MAX);
        let request = self.request("POST", Some(ask), message);
        let (client, session) = (self.client.clone(), self.session.clone());
        let task = tokio::spawn(async move {
            let Ok(response) = client.request(request).await else { return };
            if let Some(id) = response.headers().get("mcp-session-id") {
                *session.lock().unwrap() = Some(id.to_str().unwrap().to_owned());
            }
            read(response, &tx).await;
        });
        Exchange { id, said, _task: Some(Ending(task)) }
    }

    // The GET stream of an old session.
    async fn listen(&self, heard: Heard) {
        let request = self.request("GET", None, String::new());
        let response = self.client.request(request).await.unwrap();
        assert_eq!(response.status(), 200, "{}: the stream of changes", self.at);
        let (tx, mut rx) = mpsc::channel(LINE_MAX);
        let reading = tokio::spawn(async move { read(response, &tx).await });
        let hearing = tokio::spawn(async move {
            while let Some(message) = rx.recv().await {
                heard.send_modify(|all| all.push(message));
            }
        });
        self.streams.lock().unwrap().extend([Ending(reading), Ending(hearing)]);
    }
}

// The messages of a response, JSON or events, as they come.
async fn read(response: hyper::Response<Incoming>, tx: &mpsc::Sender<Message>) {
    let events = response.headers().get("content-type").is_some_and(|t| t == "text/event-stream");
    let mut body = response.into_body();
    if !events {
        let Ok(whole) = body.collect().await else { return };
        let text = String::from_utf8(whole.to_bytes().to_vec()).unwrap();
        if !text.is_empty() {
            let _ = tx.send(Message(text)).await;
        }
        return;
    }
    let mut events = Events::default();
    while let Some(Ok(frame)) = body.frame().await {
        let Some(data) = frame.data_ref() else { continue };
        for (_, data) in events.feed(data) {
            if tx.send(Message(data)).await.is_err() {
                return;
            }
        }
    }
}

/// Events out of pieces of a stream.
#[derive(Default)]
struct Events(Vec<u8>);

impl Events {
    /// Kind and data of each event that is whole now and says something.
    fn feed(&mut self, piece: &[u8]) -> Vec<(String, String)> {
        self.0.extend_from_slice(piece);
        let mut all = Vec::new();
        while let Some(end) = self.0.windows(2).position(|w| w == b"\n\n") {
            let event = String::from_utf8(self.0.drain(..end + 2).collect()).unwrap();
            let field = |name: &str| {
                let value = event.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
                value.unwrap_or_default().to_owned()
            };
            let (kind, data) = (field("event"), field("data"));
            if !data.is_empty() {
                all.push((kind, data));
            }
        }
        all
    }
}

/// Everything on one connection: standard input and output, WebSocket, HTTP+SSE.
pub struct Pipe {
    out: mpsc::Sender<String>,
    current: Current,
    _task: Vec<Ending>,
    // Ends when dropped.
    _child: Option<tokio::process::Child>,
}

/// The exchange under way: its request's id, and where what is said goes.
type Current = Arc<Mutex<Option<(String, mpsc::Sender<Message>)>>>;

impl Pipe {
    async fn open(at: Endpoint, place: &Place, heard: Heard) -> Pipe {
        let (out, said) = mpsc::channel(LINE_MAX);
        let (tx, mut rx) = mpsc::channel(LINE_MAX);
        let mut child = None;
        let carrying = match at.carrier {
            Carrier::Stdio => {
                let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_weir"));
                match &place.key {
                    Some(key) => {
                        command.args(["stdio", "--connect", &place.url]).env("WEIR_TOKEN", key)
                    }
                    None => command.args(["stdio", "--config"]).arg(&place.config),
                };
                let mut started = command
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .kill_on_drop(true)
                    .spawn()
                    .unwrap();
                let (stdin, stdout) =
                    (started.stdin.take().unwrap(), started.stdout.take().unwrap());
                child = Some(started);
                tokio::spawn(over_lines(stdin, stdout, said, tx))
            }
            Carrier::WebSocket => {
                let address = place.url.trim_start_matches("http://").trim_end_matches("/mcp");
                let stream = TcpStream::connect(address).await.unwrap();
                let mut request = format!("ws://{address}/mcp").into_client_request().unwrap();
                request.headers_mut().insert("sec-websocket-protocol", "mcp".parse().unwrap());
                if let Some(key) = &place.key {
                    request.headers_mut().insert("x-api-key", key.parse().unwrap());
                }
                let (socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
                tokio::spawn(over_socket(socket, said, tx))
            }
            _ => {
                let base = place.url.trim_end_matches("/mcp").to_owned();
                tokio::spawn(over_sse(base, said, tx))
            }
        };
        let current = Current::default();
        let exchange = current.clone();
        let sorting = tokio::spawn(async move {
            while let Some(message) = rx.recv().await {
                if let Some(message) = sort(&exchange, message).await {
                    heard.send_modify(|all| all.push(message));
                }
            }
        });
        Pipe { out, current, _task: vec![Ending(carrying), Ending(sorting)], _child: child }
    }

    async fn say(&self, message: String) {
        self.out.send(message).await.expect("the gateway holds the connection");
    }

    async fn begin(&self, id: String, message: String) -> Exchange {
        let (tx, said) = mpsc::channel(LINE_MAX);
        // A listen request is answered when it ends; what it brings is heard by all.
        if !message.contains(r#""method":"subscriptions/listen""#) {
            *self.current.lock().unwrap() = Some((id.clone(), tx));
        }
        self.say(message).await;
        Exchange { id, said, _task: None }
    }
}

// What belongs to the exchange under way goes there; the rest is given back.
async fn sort(current: &Current, message: Message) -> Option<Message> {
    let method = message.method();
    let of_all = ["list_changed", "resources/updated", "acknowledged"];
    if of_all.iter().any(|end| method.ends_with(end)) {
        return Some(message);
    }
    let tx = {
        let mut current = current.lock().unwrap();
        let Some((id, tx)) = &*current else { return Some(message) };
        let tx = tx.clone();
        if message.is_response() {
            if message.id().as_ref() != Some(id) {
                return Some(message);
            }
            *current = None;
        }
        tx
    };
    tx.send(message).await.err().map(|unheard| unheard.0)
}

async fn over_lines(
    mut stdin: tokio::process::ChildStdin,
    stdout: tokio::process::ChildStdout,
    mut said: mpsc::Receiver<String>,
    tx: mpsc::Sender<Message>,
) {
    let mut lines = BufReader::new(stdout).lines();
    loop {
        tokio::select! {
            line = lines.next_line() => match line {
                Ok(Some(line)) => {
                    let _ = tx.send(Message(line)).await;
                }
                _ => return,
            },
            Some(message) = said.recv() => {
                if stdin.write_all(format!("{message}\n").as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn over_socket(
    socket: tokio_tungstenite::WebSocketStream<TcpStream>,
    mut said: mpsc::Receiver<String>,
    tx: mpsc::Sender<Message>,
) {
    let (mut sink, mut stream) = socket.split();
    loop {
        tokio::select! {
            frame = stream.next() => match frame {
                Some(Ok(tungstenite::Message::Text(text))) => {
                    let _ = tx.send(Message(text.to_string())).await;
                }
                Some(Ok(tungstenite::Message::Ping(_) | tungstenite::Message::Pong(_))) => {}
                _ => return,
            },
            Some(message) = said.recv() => {
                if sink.send(tungstenite::Message::text(message)).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn over_sse(base: String, mut said: mpsc::Receiver<String>, tx: mpsc::Sender<Message>) {
    let get = Request::get(format!("{base}/sse")).header("accept", "text/event-stream");
    let streaming = Client::builder(TokioExecutor::new()).build_http();
    let response = streaming.request(get.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200, "the stream of HTTP+SSE");
    let posting: Client<HttpConnector, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let (mut body, mut events) = (response.into_body(), Events::default());
    let mut endpoint = None;
    loop {
        tokio::select! {
            frame = body.frame() => {
                let Some(Ok(frame)) = frame else { return };
                let Some(data) = frame.data_ref() else { continue };
                for (kind, data) in events.feed(data) {
                    if kind == "endpoint" {
                        endpoint = Some(format!("{base}{data}"));
                    } else {
                        let _ = tx.send(Message(data)).await;
                    }
                }
            }
            Some(message) = said.recv(), if endpoint.is_some() => {
                let post = Request::post(endpoint.as_ref().unwrap())
                    .header("content-type", "application/json")
                    .body(Full::from(message))
                    .unwrap();
                let sent = posting.request(post).await.unwrap();
                assert_eq!(sent.status(), 202, "a message over HTTP+SSE");
            }
        }
    }
}
