//! The wire against scripted upstreams on loopback sockets that send exact bytes.

mod answers;
mod connections;
mod refusals;
mod streams;
mod tls;

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::*;
use crate::config::UrlTransport;
use crate::config::secret::Template;

const MAX: usize = 4096;

/// What an upstream does when it has read one request.
#[derive(Clone)]
enum Reply {
    /// Send this and wait for the next request on the connection.
    Send(String),
    /// Send this and close the connection.
    SendAndClose(String),
    /// Send this and nothing more until the other side closes.
    SendAndHang(String),
    /// Send the first, wait for [`Upstream::go`], send the second.
    InTwo(String, String),
}

/// An upstream that gives its replies in order, whatever the connection.
struct Upstream {
    url: String,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

struct State {
    replies: Mutex<VecDeque<Reply>>,
    requests: Mutex<Vec<String>>,
    connections: AtomicU64,
    asked: Notify,
    closed: Notify,
    go: Notify,
}

impl Upstream {
    async fn start(replies: impl IntoIterator<Item = Reply>) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let state = Arc::new(State {
            replies: Mutex::new(replies.into_iter().collect()),
            requests: Mutex::default(),
            connections: AtomicU64::new(0),
            asked: Notify::new(),
            closed: Notify::new(),
            go: Notify::new(),
        });
        let shared = state.clone();
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                add(&shared.connections, 1);
                tokio::spawn(converse(socket, shared.clone()));
            }
        });
        Upstream { url, state, task }
    }

    fn requests(&self) -> Vec<String> {
        self.state.requests.lock().unwrap().clone()
    }

    fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Resolves when the next request has been read.
    async fn asked(&self) {
        within(self.state.asked.notified()).await;
    }

    /// Resolves when we have closed a connection that the upstream had not, or that it had half
    /// closed.
    async fn closed(&self) {
        within(self.state.closed.notified()).await;
    }

    fn go(&self) {
        self.state.go.notify_one();
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn converse(mut socket: TcpStream, state: Arc<State>) {
    socket.set_nodelay(true).unwrap();
    while let Some(request) = read_request(&mut socket).await {
        state.requests.lock().unwrap().push(request);
        let reply = state.replies.lock().unwrap().pop_front().expect("a reply is scripted");
        state.asked.notify_one();
        let (bytes, more) = match reply {
            Reply::Send(bytes) => (bytes, true),
            Reply::InTwo(first, second) => {
                socket.write_all(first.as_bytes()).await.unwrap();
                state.go.notified().await;
                (second, true)
            }
            Reply::SendAndClose(bytes) => {
                socket.write_all(bytes.as_bytes()).await.unwrap();
                socket.shutdown().await.unwrap();
                (String::new(), false)
            }
            Reply::SendAndHang(bytes) => (bytes, false),
        };
        if socket.write_all(bytes.as_bytes()).await.is_err() || !more {
            break;
        }
    }
    // A reset is an end as well.
    while socket.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {}
    state.closed.notify_one();
}

// Head and body of one request; `None` when the connection ends.
async fn read_request(socket: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        if let Some(head) = memchr::memmem::find(&bytes, b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
            let length = text.lines().find_map(|l| l.strip_prefix("content-length: "));
            if bytes.len() >= head + 4 + length.map_or(0, |n| n.parse().unwrap()) {
                return Some(String::from_utf8(bytes).unwrap());
            }
        }
        let mut buffer = [0; 1024];
        match socket.read(&mut buffer).await {
            Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
            _ => return None,
        }
    }
}

// A test that waits for what never comes fails instead of hanging.
async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it never came")
}

fn settings(url: &str) -> HttpConfig {
    HttpConfig {
        url: Template::literal(url),
        replicas: Vec::new(),
        transport: UrlTransport::Auto,
        headers: Vec::new(),
        bearer: None,
        pool_idle: Duration::from_secs(4),
        dial_timeout: Duration::from_secs(5),
    }
}

fn wire_with(config: &HttpConfig) -> (HttpWire, Arc<HttpCounters>) {
    let counters = Arc::<HttpCounters>::default();
    let wire = HttpWire::new("crm".into(), config, MAX, counters.clone()).unwrap();
    (wire, counters)
}

fn wire_to(upstream: &Upstream) -> HttpWire {
    wire_with(&settings(&upstream.url)).0
}

const ASK: &[u8] = br#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{}}"#;
const OK: &str = r#"{"jsonrpc":"2.0","id":7,"result":{"a":1}}"#;

fn ask() -> Outgoing<'static> {
    Outgoing { id: 7, message: Bytes::from_static(ASK), standing: &[], headers: &[] }
}

/// Request 7, with nobody listening besides.
async fn request(wire: &HttpWire) -> Result<Answer, RequestError> {
    let (tx, _rx) = mpsc::channel(1);
    within(wire.request(ask(), &|_| {}, &tx)).await
}

async fn fault(wire: &HttpWire) -> HttpFault {
    match request(wire).await {
        Err(RequestError::Fault(failed)) => failed,
        other => panic!("no fault: {other:?}"),
    }
}

fn body(frame: &Frame) -> &str {
    std::str::from_utf8(frame.bytes()).unwrap()
}

fn response(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n{body}")
}

fn json(body: &str) -> Reply {
    Reply::Send(response("200 OK", "Content-Type: application/json\r\n", body))
}

/// An event stream whose chunks are cut exactly so; not ended.
fn stream_head() -> String {
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
     transfer-encoding: chunked\r\n\r\n"
        .to_owned()
}

const STREAM_END: &str = "0\r\n\r\n";

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

fn events(chunks: &[&str]) -> Reply {
    let chunks: String = chunks.iter().map(|c| chunk(c)).collect();
    Reply::Send(stream_head() + &chunks + STREAM_END)
}

fn data(message: &str) -> String {
    format!("event: message\ndata: {message}\n\n")
}
