//! An upstream on a loopback socket that says when it answers what.

use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::config::secret::Template;
use crate::config::{HttpConfig, UrlTransport};
use crate::protocol::message::message;

const MAX: usize = 4096;

/// A POST that waits for its response.
struct Post {
    body: String,
    socket: TcpStream,
}

impl Post {
    async fn reply(mut self, status: u16) {
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        let _ = self.socket.write_all(head.as_bytes()).await;
    }
}

struct World {
    pipe: Pipe,
    _unasked: mpsc::Receiver<Unasked>,
    stream: TcpStream,
    posts: mpsc::Receiver<Post>,
    listening: tokio::task::JoinHandle<()>,
}

async fn read(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |n| n.parse().unwrap()) {
                return String::from_utf8(bytes).unwrap();
            }
        }
        assert!(socket.read_buf(&mut bytes).await.unwrap() > 0, "{text}");
    }
}

impl World {
    async fn new() -> World {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = HttpConfig {
            url: Template::literal(&format!("http://{}/sse", listener.local_addr().unwrap())),
            replicas: Vec::new(),
            transport: UrlTransport::Sse,
            headers: Vec::new(),
            bearer: None,
            pool_idle: Duration::from_secs(4),
            dial_timeout: Duration::from_secs(5),
        };
        let wire = HttpWire::new("up".into(), &config, MAX, Arc::default()).unwrap();
        let connecting = tokio::spawn(connect(wire, Scrubber::default(), Arc::default()));
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(read(&mut stream).await.starts_with("GET /sse HTTP/1.1\r\n"));
        // A comment and a wish for a pause come before the first event.
        let head = "HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\n\r\n: hello\n\nretry: 10\n\nevent: endpoint\ndata: post?s=1\n\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let (pipe, unasked) = connecting.await.unwrap().unwrap();
        let (tx, posts) = mpsc::channel(16);
        let listening = tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let request = read(&mut socket).await;
                assert!(request.starts_with("POST /post?s=1 HTTP/1.1\r\n"), "{request}");
                let body = String::from(request.split_once("\r\n\r\n").unwrap().1);
                let _ = tx.send(Post { body, socket }).await;
            }
        });
        World { pipe, _unasked: unasked, stream, posts, listening }
    }

    fn ask(&self, id: u64) -> tokio::task::JoinHandle<Result<Frame, Fault>> {
        let pipe = self.pipe.clone();
        let message = message(Some(id.to_string().as_bytes()), "tools/call", None);
        tokio::spawn(async move { pipe.request(id, message, true, &|_| {}).await })
    }

    async fn post(&mut self) -> Post {
        tokio::time::timeout(Duration::from_secs(20), self.posts.recv()).await.unwrap().unwrap()
    }

    async fn answer(&mut self, id: u64) {
        let event = format!("data: {{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{}}}}\n\n");
        self.stream.write_all(event.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn answers_count_whatever_becomes_of_their_posts() {
    let mut w = World::new().await;
    // Answered before the POST is, as where that is answered when the work is done; and the other
    // requests do not wait for it.
    let (one, two) = (w.ask(1), w.ask(2));
    let (first, second) = (w.post().await, w.post().await);
    assert!(first.body.contains("tools/call") && second.body.contains("tools/call"));
    w.answer(2).await;
    assert!(two.await.unwrap().is_ok());
    second.reply(202).await;
    first.reply(200).await;
    w.answer(1).await;
    assert!(one.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_notification_arrives_before_what_follows_it() {
    let mut w = World::new().await;
    w.pipe.notify(message(None, "notifications/initialized", None)).await.unwrap();
    let asked = w.ask(1);
    let first = w.post().await;
    assert!(first.body.contains("initialized"), "{}", first.body);
    assert!(
        tokio::time::timeout(Duration::from_millis(200), w.posts.recv()).await.is_err(),
        "the request waits"
    );
    first.reply(202).await;
    let second = w.post().await;
    assert!(second.body.contains("tools/call"));
    second.reply(202).await;
    w.answer(1).await;
    assert!(asked.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_post_that_breaks_fails_its_own_request() {
    let mut w = World::new().await;
    let (one, two) = (w.ask(1), w.ask(2));
    let (first, second) = (w.post().await, w.post().await);
    let (broken, fine) =
        if first.body.contains("\"id\":1") { (first, second) } else { (second, first) };
    drop(broken);
    let fault = one.await.unwrap().unwrap_err();
    assert_eq!((fault.reason, fault.delivery), (Reason::ConnectionLost, Delivery::Unknown));
    fine.reply(202).await;
    w.answer(2).await;
    assert!(two.await.unwrap().is_ok());
    // Where nobody listens any more, nothing was sent.
    w.listening.abort();
    let _ = w.listening.await;
    let pipe = w.pipe.clone();
    let message = message(Some(b"3"), "tools/call", None);
    let fault = pipe.request(3, message, true, &|_| {}).await.unwrap_err();
    assert_eq!((fault.reason, fault.delivery), (Reason::ConnectFailed, Delivery::NotSent));
}

#[tokio::test]
async fn the_end_of_the_stream_is_the_end() {
    let mut w = World::new().await;
    let asked = w.ask(1);
    w.post().await.reply(202).await;
    drop(w.stream);
    let fault = asked.await.unwrap().unwrap_err();
    assert_eq!((fault.reason, fault.delivery), (Reason::ConnectionLost, Delivery::Unknown));
    assert_eq!(w.pipe.ended().await.text, "the upstream's event stream ended");
    let late = w.pipe.request(2, Bytes::from_static(b"{}"), true, &|_| {}).await.unwrap_err();
    assert_eq!(late.delivery, Delivery::NotSent);
}

#[tokio::test]
async fn closing_ends_the_stream_and_a_caller_that_leaves_is_told() {
    let mut w = World::new().await;
    let asked = w.ask(1);
    w.post().await.reply(202).await;
    asked.abort();
    let told = w.post().await;
    assert!(told.body.contains(r#""requestId":1,"#), "{}", told.body);
    told.reply(202).await;
    w.pipe.close().await;
    let mut rest = Vec::new();
    let end = w.stream.read_to_end(&mut rest);
    tokio::time::timeout(Duration::from_secs(20), end).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_no_message_is_skipped() {
    let mut w = World::new().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let running = {
        let (pipe, seen) = (w.pipe.clone(), seen.clone());
        tokio::spawn(async move {
            let note = |frame: Frame| seen.lock().unwrap().push(frame.method().to_owned());
            pipe.request(1, message(Some(b"1"), "tools/call", None), true, &note).await
        })
    };
    w.post().await.reply(202).await;
    let noise = "data: hello\n\n: ping\n\nevent: other\ndata: {}\n\nevent: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{\"progressToken\":1}}\n\n";
    w.stream.write_all(noise.as_bytes()).await.unwrap();
    w.answer(1).await;
    assert!(running.await.unwrap().is_ok());
    assert_eq!(*seen.lock().unwrap(), ["notifications/progress"]);
}
