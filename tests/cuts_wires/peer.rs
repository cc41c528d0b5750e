//! A server that does each write which reaches it whole, once, and writes down both. It speaks any
//! of the wires; what is between it and the gateway is no concern of its.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server as upgrade;

use crate::harness::scripted::tool;
use crate::judge::Ledger;

/// How long the work of a write takes: what is cut meanwhile is neither before nor after it.
const WORK: Duration = Duration::from_millis(2);
/// Messages that wait on one event stream.
const WAITING: usize = 64;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    Http1,
    Http2,
    Sse,
    WebSocket,
    /// A WebSocket over TLS.
    Wss,
}

impl Wire {
    /// Whether the connection is the conversation: all goes over it, and its end is known at once.
    pub fn is_pipe(self) -> bool {
        !matches!(self, Wire::Http1 | Wire::Http2)
    }

    fn has_tls(self) -> bool {
        matches!(self, Wire::Http1 | Wire::Http2 | Wire::Wss)
    }
}

pub struct Peer {
    pub wire: Wire,
    pub port: u16,
    pub ledger: Arc<Ledger>,
    // Whom the gateway is to trust.
    roots: tempfile::TempDir,
    goodbye: watch::Sender<()>,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Default)]
struct Server {
    ledger: Arc<Ledger>,
    // The event streams of HTTP+SSE, by the name of their session.
    streams: Mutex<HashMap<usize, mpsc::Sender<String>>>,
}

impl Peer {
    pub async fn start(wire: Wire) -> Peer {
        let (acceptor, roots) = tls(wire);
        let acceptor = wire.has_tls().then_some(acceptor);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let goodbye = watch::Sender::new(());
        let server = Arc::new(Server::default());
        let (ledger, told) = (server.ledger.clone(), goodbye.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, server) = (acceptor.clone(), server.clone());
                let goodbye = told.subscribe();
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    match acceptor {
                        None => serve(stream, wire, server, goodbye).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, wire, server, goodbye).await;
                            }
                        }
                    }
                });
            }
        });
        Peer { wire, port, ledger, roots, goodbye }
    }

    /// Where the gateway finds it behind a relay.
    pub fn url(&self, port: u16) -> String {
        match self.wire {
            Wire::Http1 | Wire::Http2 => format!("https://localhost:{port}/mcp"),
            Wire::Sse => format!("http://127.0.0.1:{port}/mcp"),
            Wire::WebSocket => format!("ws://127.0.0.1:{port}/mcp"),
            Wire::Wss => format!("wss://localhost:{port}/mcp"),
        }
    }

    /// The file with the certificates that the gateway is to trust.
    pub fn roots(&self) -> PathBuf {
        self.roots.path().join("roots.pem")
    }

    /// End all HTTP connections in good order: what is under way is still answered (HTTP/2:
    /// GOAWAY; HTTP/1.1: `connection: close`).
    pub fn say_goodbye(&self) {
        self.goodbye.send_replace(());
    }
}

fn tls(wire: Wire) -> (TlsAcceptor, tempfile::TempDir) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    if wire == Wire::Http2 {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    let dir = tempfile::tempdir().unwrap();
    let text = base64::engine::general_purpose::STANDARD.encode(made.cert.der());
    let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
    std::fs::write(dir.path().join("roots.pem"), pem).unwrap();
    (TlsAcceptor::from(Arc::new(config)), dir)
}

async fn serve<S>(stream: S, wire: Wire, server: Arc<Server>, mut goodbye: watch::Receiver<()>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if matches!(wire, Wire::WebSocket | Wire::Wss) {
        return server.talk(stream).await;
    }
    let service = service_fn(move |request| {
        let server = server.clone();
        async move {
            let answer = match wire {
                Wire::Sse => server.sse(request).await,
                _ => server.http(request).await,
            };
            answer.ok_or("the request ended early")
        }
    });
    // Which of the two is no question, so none is answered wrong while it is found out.
    let io = TokioIo::new(stream);
    if wire == Wire::Http2 {
        let serving = http2::Builder::new(TokioExecutor::new()).serve_connection(io, service);
        tokio::pin!(serving);
        loop {
            tokio::select! {
                _ = serving.as_mut() => return,
                Ok(()) = goodbye.changed() => serving.as_mut().graceful_shutdown(),
            }
        }
    }
    let serving = http1::Builder::new().serve_connection(io, service);
    tokio::pin!(serving);
    loop {
        tokio::select! {
            _ = serving.as_mut() => return,
            Ok(()) = goodbye.changed() => serving.as_mut().graceful_shutdown(),
        }
    }
}

fn response(status: u16, media: &str, body: String) -> Response<Body> {
    let body = Full::new(Bytes::from(body)).boxed_unsync();
    Response::builder().status(status).header("content-type", media).body(body).unwrap()
}

fn id_of(message: &Value) -> &str {
    message["params"]["arguments"]["id"].as_str().unwrap_or("")
}

fn result(message: &Value, result: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": message["id"], "result": result}).to_string()
}

fn receipt(id: &str) -> Value {
    json!({"content": [{"type": "text", "text": id}]})
}

async fn read(request: Request<Incoming>) -> Option<Value> {
    let bytes = request.into_body().collect().await.ok()?.to_bytes();
    serde_json::from_slice(&bytes).ok()
}

impl Server {
    /// A message came: what is answered, if anything.
    async fn take(&self, message: &Value) -> Option<String> {
        Some(match message["method"].as_str()? {
            "initialize" => result(
                message,
                &json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                    "serverInfo": {"name": "peer", "version": "1"}}),
            ),
            "tools/list" => result(message, &json!({"tools": [tool("pay", false)]})),
            "tools/call" => {
                let id = id_of(message);
                self.ledger.arrived(id);
                tokio::time::sleep(WORK).await;
                self.ledger.done(id);
                result(message, &receipt(id))
            }
            method if method.starts_with("notifications/") => return None,
            _ => json!({"jsonrpc": "2.0", "id": message["id"],
                "error": {"code": -32601, "message": "no"}})
            .to_string(),
        })
    }

    // Streamable HTTP. An event stream can be taken up again from its first event on.
    async fn http(&self, request: Request<Incoming>) -> Option<Response<Body>> {
        if request.method() == Method::GET {
            let last = request.headers().get("last-event-id").and_then(|v| v.to_str().ok());
            return Some(match last.and_then(|last| last.split_once(' ')) {
                // The id of the request, and of the write: what was done is told again.
                Some((asked, id)) if self.ledger.of(id).done > 0 => {
                    let asked = json!({"id": asked.parse::<u64>().unwrap()});
                    let told = result(&asked, &receipt(id));
                    response(200, "text/event-stream", format!("data: {told}\n\n"))
                }
                _ => response(405, "text/plain", String::new()),
            });
        }
        let message = read(request).await?;
        let form = message["params"]["arguments"]["form"].as_str().unwrap_or("").to_owned();
        let Some(answer) = self.take(&message).await else {
            return Some(response(202, "text/plain", String::new()));
        };
        Some(match form.as_str() {
            "events" => response(200, "text/event-stream", format!("data: {answer}\n\n")),
            "resumed" => {
                let first =
                    format!("id: {} {}\nretry: 1\ndata: \n\n", message["id"], id_of(&message));
                response(200, "text/event-stream", format!("{first}data: {answer}\n\n"))
            }
            _ => response(200, "application/json", answer),
        })
    }

    // HTTP+SSE. A message is taken at once, or when its work is done.
    async fn sse(self: &Arc<Self>, request: Request<Incoming>) -> Option<Response<Body>> {
        if request.method() == Method::GET {
            let (tx, rx) = mpsc::channel(WAITING);
            let name = {
                let mut streams = self.streams.lock().unwrap();
                let name = streams.len();
                streams.insert(name, tx.clone());
                name
            };
            tx.try_send(format!("event: endpoint\ndata: /post?{name}\n\n")).unwrap();
            let events =
                futures_util::stream::unfold(rx, async |mut rx: mpsc::Receiver<String>| {
                    let text = rx.recv().await?;
                    Some((Ok(Frame::data(Bytes::from(text))), rx))
                });
            let body = StreamBody::new(events).boxed_unsync();
            let head = Response::builder().header("content-type", "text/event-stream");
            return Some(head.body(body).unwrap());
        }
        let name: Option<usize> = request.uri().query().and_then(|q| q.parse().ok());
        let door = name.and_then(|name| self.streams.lock().unwrap().get(&name).cloned());
        let Some(door) = door.filter(|door| !door.is_closed()) else {
            return Some(response(404, "text/plain", String::new()));
        };
        let message = read(request).await?;
        let late = message["params"]["arguments"]["form"] == "late";
        let server = self.clone();
        let work = tokio::spawn(async move {
            if let Some(answer) = server.take(&message).await {
                let _ = door.send(format!("event: message\ndata: {answer}\n\n")).await;
            }
        });
        if late {
            let _ = work.await;
        }
        Some(response(202, "text/plain", "Accepted".into()))
    }

    // WebSocket.
    async fn talk<S: AsyncRead + AsyncWrite + Unpin>(self: Arc<Self>, stream: S) {
        #[allow(clippy::result_large_err, clippy::unnecessary_wraps)] // The shape is the library's.
        fn agree(
            _: &upgrade::Request,
            mut response: upgrade::Response,
        ) -> Result<upgrade::Response, upgrade::ErrorResponse> {
            response.headers_mut().insert("sec-websocket-protocol", "mcp".parse().unwrap());
            Ok(response)
        }
        let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, agree).await else { return };
        let (mut sink, mut stream) = socket.split();
        let (tx, mut rx) = mpsc::channel::<String>(WAITING);
        let answering = async {
            while let Some(answer) = rx.recv().await {
                if sink.send(Message::text(answer)).await.is_err() {
                    return;
                }
            }
        };
        let reading = async {
            while let Some(Ok(frame)) = stream.next().await {
                let Message::Text(text) = frame else { continue };
                let message: Value = serde_json::from_str(&text).unwrap();
                let (server, tx) = (self.clone(), tx.clone());
                tokio::spawn(async move {
                    if let Some(answer) = server.take(&message).await {
                        let _ = tx.send(answer).await;
                    }
                });
            }
        };
        tokio::select! {
            () = answering => {}
            () = reading => {}
        }
    }
}
