//! What carries the messages of a peer: each way in ends at `Peer::take`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{SinkExt as _, Stream, StreamExt as _};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite;
use weirkeeper::protocol::revision::Revision;

use crate::axes::{Carrier, Endpoint};
use crate::peer::{LINE_MAX, Line, Peer, Talk};
use crate::text::Message;

/// Serve a peer; its section of the configuration.
pub async fn open(peer: &Arc<Peer>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let carrier = peer.at.carrier;
    let peer = peer.clone();
    let name = peer.at.name();
    tokio::spawn(async move {
        let sessions: Sessions = Arc::default();
        while let Ok((stream, _)) = listener.accept().await {
            let (peer, sessions) = (peer.clone(), sessions.clone());
            tokio::spawn(async move {
                match carrier {
                    Carrier::Stdio => lines(stream, &peer).await,
                    Carrier::WebSocket => socket(stream, &peer).await,
                    Carrier::Http | Carrier::Sse => http(stream, peer, sessions).await,
                }
            });
        }
    });
    let way = match carrier {
        // A program that hands its standard input and output on to the peer.
        Carrier::Stdio => {
            let port = address.port();
            let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; cat <&3 & exec cat >&3");
            format!("command = \"bash\"\nargs = [\"-c\", {script:?}]\nisolation = \"consumer\"\n")
        }
        Carrier::WebSocket => format!("url = \"ws://{address}/mcp\"\n"),
        Carrier::Http | Carrier::Sse => format!("url = \"http://{address}/mcp\"\n"),
    };
    // Many callers at once, on whatever machine this is, and cancelled calls prove nothing.
    format!(
        "[upstreams.{name}]\n{way}concurrency = {{ max = 64, queue = 512 }}\nbreaker = {{ enabled = false }}\n\
         connect_timeout = \"50s\"\nlist_timeout = \"50s\"\n"
    )
}

// One message a line.
async fn lines(stream: TcpStream, peer: &Arc<Peer>) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let (line, mut out) = connection();
    let talk = Arc::<Talk>::default();
    if !peer.at.is_modern() {
        peer.listen(&line, &talk, None);
    }
    loop {
        tokio::select! {
            heard = lines.next_line() => match heard {
                Ok(Some(text)) => peer.take(&talk, &line, Message(text)),
                _ => return,
            },
            Some(said) = out.recv() => {
                if write.write_all(format!("{said}\n").as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    }
}

// One message a text frame.
async fn socket(stream: TcpStream, peer: &Arc<Peer>) {
    use tungstenite::handshake::server;
    #[allow(clippy::result_large_err)] // The shape is the library's.
    let agree = |_: &server::Request, mut response: server::Response| {
        response.headers_mut().insert("sec-websocket-protocol", "mcp".parse().unwrap());
        Ok(response)
    };
    let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, agree).await else { return };
    let (mut sink, mut stream) = socket.split();
    let (line, mut out) = connection();
    let talk = Arc::<Talk>::default();
    if !peer.at.is_modern() {
        peer.listen(&line, &talk, None);
    }
    loop {
        tokio::select! {
            heard = stream.next() => match heard {
                Some(Ok(tungstenite::Message::Text(text))) => {
                    peer.take(&talk, &line, Message(text.to_string()));
                }
                Some(Ok(tungstenite::Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
            Some(said) = out.recv() => {
                if sink.send(tungstenite::Message::text(said)).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn connection() -> (Line, mpsc::Receiver<String>) {
    mpsc::channel(LINE_MAX)
}

type Body = BoxBody<Bytes, Infallible>;
type Sessions = Arc<Mutex<HashMap<String, Session>>>;

/// A session over streamable HTTP, or an open stream of HTTP+SSE.
#[derive(Clone)]
struct Session {
    talk: Arc<Talk>,
    // Of HTTP+SSE: where all answers go.
    line: Option<Line>,
}

async fn http(stream: TcpStream, peer: Arc<Peer>, sessions: Sessions) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (peer, sessions) = (peer.clone(), sessions.clone());
        async move {
            Ok::<_, Infallible>(match peer.at {
                Endpoint { carrier: Carrier::Sse, .. } => sse(&peer, &sessions, request).await,
                at if at.is_modern() => modern(&peer, request).await,
                _ => legacy(&peer, &sessions, request).await,
            })
        }
    });
    let connection = hyper::server::conn::http1::Builder::new();
    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
}

// 2026-07-28 basic/transports/streamable-http.
async fn modern(peer: &Arc<Peer>, request: Request<Incoming>) -> Response<Body> {
    let header = |name: &str| -> Option<String> {
        request.headers().get(name).map(|v| v.to_str().unwrap().to_owned())
    };
    if request.method() != "POST" {
        peer.fault(&format!("{} of a client of the newest revision", request.method()));
        return empty(405);
    }
    if header("mcp-session-id").is_some() {
        peer.fault("a session id");
    }
    let mirrored = [header("mcp-protocol-version"), header("mcp-method"), header("mcp-name")];
    let message = Message(body(request).await);
    let method = message.method();
    let name = match method.as_str() {
        "tools/call" | "prompts/get" => message.text(&["params", "name"]),
        "resources/read" => message.text(&["params", "uri"]),
        method if method.starts_with("tasks/") => message.text(&["params", "taskId"]),
        _ => None,
    };
    let expected = [Some("2026-07-28".to_owned()), Some(method), name];
    if mirrored != expected {
        peer.fault(&format!("the headers {mirrored:?} instead of {expected:?}"));
    }
    exchange(peer, &Arc::default(), message).await
}

// 2025-03-26 to 2025-11-25 basic/transports.
async fn legacy(
    peer: &Arc<Peer>,
    sessions: &Sessions,
    request: Request<Incoming>,
) -> Response<Body> {
    let header = |name: &str| -> Option<String> {
        request.headers().get(name).map(|v| v.to_str().unwrap().to_owned())
    };
    let (id, version) = (header("mcp-session-id"), header("mcp-protocol-version"));
    let session = id.as_ref().and_then(|id| sessions.lock().unwrap().get(id).cloned());
    if let Some(Session { talk, .. }) = &session {
        let said = Some(peer.at.revision.as_str().to_owned());
        if peer.at.revision >= Revision::R2025_06_18 && version != said {
            peer.fault(&format!("{version:?} in the header, {said:?} was agreed on"));
        }
        match request.method().as_str() {
            "GET" => {
                let (line, out) = connection();
                peer.listen(&line, talk, None);
                return events(None, out, None);
            }
            "DELETE" => {
                sessions.lock().unwrap().remove(id.as_deref().unwrap());
                return empty(200);
            }
            _ => {}
        }
        let message = Message(body(request).await);
        if message.is_request() {
            return exchange(peer, talk, message).await;
        }
        let (line, _) = connection();
        peer.take(talk, &line, message);
        return empty(202);
    }
    if id.is_some() {
        return empty(404);
    }
    if request.method() != "POST" {
        return empty(405);
    }
    let message = Message(body(request).await);
    if message.method() != "initialize" {
        let error =
            r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"Bad Request"}}"#;
        return whole(400, "application/json", error.into());
    }
    let talk = Arc::<Talk>::default();
    let id = format!("s-{}", number());
    sessions.lock().unwrap().insert(id.clone(), Session { talk: talk.clone(), line: None });
    let mut response = exchange(peer, &talk, message).await;
    response.headers_mut().insert("mcp-session-id", id.parse().unwrap());
    response
}

// 2024-11-05 basic/transports, "HTTP with SSE".
async fn sse(peer: &Arc<Peer>, sessions: &Sessions, request: Request<Incoming>) -> Response<Body> {
    if request.method() == "GET" {
        let (line, out) = connection();
        let talk = Arc::<Talk>::default();
        peer.listen(&line, &talk, None);
        let id = number().to_string();
        let session = Session { talk, line: Some(line) };
        sessions.lock().unwrap().insert(id.clone(), session);
        return events(Some(format!("event: endpoint\ndata: /messages?s={id}\n\n")), out, None);
    }
    let query = request.uri().query().and_then(|q| q.strip_prefix("s=")).unwrap_or_default();
    let session = sessions.lock().unwrap().get(query).cloned();
    match session {
        Some(Session { talk, line: Some(line) }) => {
            peer.take(&talk, &line, Message(body(request).await));
            empty(202)
        }
        _ if request.uri().path() == "/messages" => empty(404),
        _ => empty(405),
    }
}

// A request and what is said to it: one message is JSON, more are events.
async fn exchange(peer: &Arc<Peer>, talk: &Arc<Talk>, message: Message) -> Response<Body> {
    let (line, mut out) = connection();
    peer.take(talk, &line, message);
    drop(line);
    match out.recv().await {
        Some(only) if Message(only.clone()).is_response() => whole(200, "application/json", only),
        first => events(None, out, first),
    }
}

async fn body(request: Request<Incoming>) -> String {
    let bytes = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
    String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap()
}

fn whole(status: u16, kind: &str, body: String) -> Response<Body> {
    let response = Response::builder().status(status).header("content-type", kind);
    response.body(Full::from(body).boxed()).unwrap()
}

fn empty(status: u16) -> Response<Body> {
    Response::builder().status(status).body(Full::default().boxed()).unwrap()
}

// An event stream that ends when nobody can say anything more.
fn events(
    opening: Option<String>,
    out: mpsc::Receiver<String>,
    first: Option<String>,
) -> Response<Body> {
    let event = |message: String| format!("event: message\ndata: {message}\n\n");
    let before = opening.into_iter().chain(first.map(event));
    let later = stream(out).map(event);
    let all = futures_util::stream::iter(before).chain(later);
    let all = all.map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from(text))));
    let response = Response::builder().header("content-type", "text/event-stream");
    response.body(http_body_util::BodyExt::boxed(StreamBody::new(all))).unwrap()
}

fn stream(mut out: mpsc::Receiver<String>) -> impl Stream<Item = String> {
    futures_util::stream::poll_fn(move |context| out.poll_recv(context))
}

// Never the same twice, so that a session of before is not taken for one of now.
fn number() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::SeqCst)
}
