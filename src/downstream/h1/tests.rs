//! Connections as scripts of bytes.
#![allow(clippy::unwrap_used)]

use super::*;

use http_body_util::BodyExt as _;
use hyper::header::HeaderValue;
use hyper::http::uri::PathAndQuery;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::body::{Events, Pieces};
use crate::call::Piece;

const PATIENCE: Duration = Duration::from_secs(10);
const PATIENT: Patience = Patience { head: PATIENCE, idle: PATIENCE };

// Does what the path says.
struct Scripted {
    stop: CancellationToken,
    // Dropped with the call.
    held: Arc<()>,
}

impl Answers for Scripted {
    fn answer(
        &self,
        parts: Arc<Head>,
        mut body: InBody,
    ) -> impl Future<Output = Response<OutBody>> + Send + 'static {
        let (stop, held) = (self.stop.clone(), self.held.clone());
        async move {
            let path = parts.uri.path_and_query().map_or("", PathAndQuery::as_str).to_owned();
            match path.as_str() {
                "/never" => std::future::pending::<()>().await,
                "/stop" => {
                    stop.cancel();
                    tokio::time::sleep(HALF_SAID * 4).await;
                }
                "/leave" => {
                    body.leave();
                    return with(413, Bytes::from_static(b"left").into());
                }
                "/drop" => {
                    let _ = body.frame().await;
                    return with(408, Bytes::from_static(b"dropped").into());
                }
                "/none" => return with(204, OutBody::empty()),
                "/json" => return Response::new(Bytes::from_static(b"{}").into()),
                "/large" => return with(200, Bytes::from(vec![b'x'; 1 << 20]).into()),
                "/ticks" => {
                    return with(
                        200,
                        OutBody::Events(Events::new(|tx| async move {
                            for n in 0..3 {
                                let _ = tx.send(format!("tick {n}\n").into()).await;
                                tokio::time::sleep(Duration::from_secs(1)).await;
                            }
                            drop(held);
                        })),
                    );
                }
                "/open" => {
                    return with(
                        200,
                        OutBody::Events(Events::new(|tx| async move {
                            std::future::pending::<()>().await;
                            drop((tx, held));
                        })),
                    );
                }
                "/breaks" => {
                    let (tx, rx) = mpsc::channel(2);
                    tx.try_send(Piece::Bytes(Bytes::from_static(b"half"))).ok().unwrap();
                    return with(200, OutBody::Pieces(Pieces::new(async {}, rx)));
                }
                "/switch" => {
                    let stream = parts.extensions.get::<Upgrade<DuplexStream>>().unwrap().take();
                    tokio::spawn(async move {
                        let (mut stream, begun) = stream.unwrap().await.unwrap();
                        stream.write_all(&[b"raw: ", &begun[..]].concat()).await.unwrap();
                    });
                    return with(101, OutBody::empty());
                }
                _ => {}
            }
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(_) => return with(400, Bytes::from_static(b"broken").into()),
            };
            let text = [path.as_bytes(), b" [", &body, b"]"].concat();
            drop(held);
            with(200, Bytes::from(text).into())
        }
    }

    fn refuse(&self, wrong: Wrong) -> Response<OutBody> {
        with(wrong.status, Bytes::from_static(wrong.text.as_bytes()).into())
    }
}

fn with(status: u16, body: OutBody) -> Response<OutBody> {
    let mut response = Response::new(body);
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert("content-type", HeaderValue::from_static("t/x"));
    response
}

struct Peer {
    stream: DuplexStream,
    served: JoinHandle<Ended>,
    stop: CancellationToken,
    calls: Arc<()>,
}

impl Peer {
    fn new(buffer: usize) -> Peer {
        let (ours, stream) = duplex(buffer);
        let (stop, calls) = (CancellationToken::new(), Arc::new(()));
        let answers = Scripted { stop: stop.clone(), held: calls.clone() };
        let heard = stop.clone();
        let served =
            tokio::spawn(
                async move { serve(ours, BytesMut::new(), &heard, PATIENT, answers).await },
            );
        Peer { stream, served, stop, calls }
    }

    async fn say(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).await.unwrap();
    }

    // Until there is this, which is not empty.
    async fn hear(&mut self, end: &str) -> String {
        let mut got = Vec::new();
        while !got.ends_with(end.as_bytes()) {
            let mut one = [0];
            self.stream.read_exact(&mut one).await.expect("more");
            got.push(one[0]);
        }
        plain(&got)
    }

    // Until the connection is closed.
    async fn rest(&mut self) -> String {
        let mut got = Vec::new();
        self.stream.read_to_end(&mut got).await.unwrap();
        plain(&got)
    }
}

// Without what changes with the time.
fn plain(got: &[u8]) -> String {
    let text = String::from_utf8_lossy(got);
    let lines = text.split("\r\n").filter(|line| !line.starts_with("date: "));
    lines.collect::<Vec<_>>().join("\n")
}

// What is answered to these pieces, each read by itself, until the connection is closed.
async fn talk(pieces: &[&[u8]]) -> (String, Ended) {
    let mut peer = Peer::new(1 << 16);
    for piece in pieces {
        if peer.stream.write_all(piece).await.is_err() {
            break;
        }
        // Whoever reads has read it then.
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
    }
    let got = peer.rest().await;
    (got, peer.served.await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn requests_are_answered_in_order_wherever_they_are_cut() {
    let text = b"POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\r\n\
        POST /two HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n\
        3;x=y\r\nabc\r\n2 \r\nde\r\n0\r\nTrailer: x\r\n\r\n\
        GET /three?x=%20 HTTP/1.1\r\n\r\n\
        POST /four HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n\
        GET /too-late HTTP/1.1\r\n\r\n";
    let (whole, ended) = talk(&[text]).await;
    assert_eq!(ended, Ended::Closed);
    insta::assert_snapshot!(whole, @r"
    HTTP/1.1 200 OK
    content-type: t/x
    content-length: 12

    /one [hello]HTTP/1.1 200 OK
    content-type: t/x
    content-length: 12

    /two [abcde]HTTP/1.1 200 OK
    content-type: t/x
    content-length: 15

    /three?x=%20 []HTTP/1.1 200 OK
    content-type: t/x
    content-length: 8
    connection: close

    /four []
    ");
    for at in 0..text.len() {
        let (got, _) = talk(&[&text[..at], &text[at..]]).await;
        assert_eq!(got, whole, "cut at {at}");
    }
    let bytes: Vec<&[u8]> = text.chunks(1).collect();
    assert_eq!(talk(&bytes).await.0, whole);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn any_requests_cut_anywhere_are_the_same_requests(
        requests in proptest::collection::vec(
            (0..3u8, proptest::collection::vec(any::<u8>(), 0..300), "[a-z]{1,9}", 0..5usize),
            1..6,
        ),
        cuts in proptest::collection::vec(1usize..200, 1..8),
    ) {
        let mut text = Vec::new();
        let mut want = Vec::new();
        for (kind, body, path, headers) in &requests {
            let head = format!("POST /{path} HTTP/1.1\r\n{}", "X-Y: z\r\n".repeat(*headers));
            text.extend_from_slice(head.as_bytes());
            let body: &[u8] = if *kind == 0 { &[] } else { body };
            match kind {
                0 => text.extend_from_slice(b"\r\n"),
                1 => {
                    text.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
                    text.extend_from_slice(body);
                }
                _ => {
                    text.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                    for chunk in body.chunks(cuts[0]) {
                        text.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                        text.extend_from_slice(chunk);
                        text.extend_from_slice(b"\r\n");
                    }
                    text.extend_from_slice(b"0\r\n\r\n");
                }
            }
            want.push([b"/", path.as_bytes(), b" [", body, b"]"].concat());
        }
        text.extend_from_slice(b"GET /end HTTP/1.1\r\nConnection: close\r\n\r\n");
        want.push(b"/end []".to_vec());
        let mut pieces: Vec<&[u8]> = Vec::new();
        let mut left = &text[..];
        for at in cuts.iter().cycle() {
            if left.is_empty() { break; }
            let (piece, rest) = left.split_at((*at).min(left.len()));
            pieces.push(piece);
            left = rest;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all().start_paused(true).build().unwrap();
        let got = runtime.block_on(async {
            let mut peer = Peer::new(1 << 16);
            for piece in pieces {
                peer.say(piece).await;
                tokio::task::yield_now().await;
            }
            let mut got = Vec::new();
            peer.stream.read_to_end(&mut got).await.unwrap();
            got
        });
        // Read back by their lengths.
        let mut at = &got[..];
        for want in want {
            let mut headers = [httparse::EMPTY_HEADER; 9];
            let mut response = httparse::Response::new(&mut headers);
            let length = response.parse(at).unwrap().unwrap();
            prop_assert_eq!(response.code, Some(200));
            let said = response.headers.iter().find(|h| h.name == "content-length").unwrap();
            prop_assert_eq!(std::str::from_utf8(said.value).unwrap(), want.len().to_string());
            prop_assert_eq!(&at[length..length + want.len()], &want[..]);
            at = &at[length + want.len()..];
        }
        prop_assert!(at.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_the_last_of_its_connection() {
    let more = "GET /smuggled HTTP/1.1\r\n\r\n";
    for (head, status) in [
        ("POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", 400),
        ("POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 50", 400),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked", 501),
        ("GET / HTTP/3.0", 505),
        ("GET / HTTP/1.1\r\nX: a\r\n b: c", 400),
        ("GET / HTTP/1.1\r\nX: a\rb", 400),
    ] {
        let (got, ended) = talk(&[format!("{head}\r\n\r\n{more}{more}").as_bytes()]).await;
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {got}");
        assert!(got.contains("connection: close"), "{got}");
        assert_eq!((got.matches("t/x").count(), ended), (1, Ended::Closed), "{got}");
    }
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(head::HEADERS_MAX + 1));
    assert!(talk(&[many.as_bytes()]).await.0.starts_with("HTTP/1.1 431 "));
    // Read to its end, so that the answer is not overtaken by a reset.
    let long = format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(head::HEAD_MAX * 4));
    let (got, ended) = talk(&[long.as_bytes()]).await;
    assert!(got.starts_with("HTTP/1.1 431 "), "{got}");
    assert_eq!(ended, Ended::Closed);
    // A chunk that is none.
    let bad = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    let (got, _) = talk(&[format!("{bad}{more}").as_bytes()]).await;
    assert!(got.starts_with("HTTP/1.1 400 ") && !got.contains("smuggled"), "{got}");
}

#[tokio::test(start_paused = true)]
async fn a_client_is_told_to_go_on_when_its_body_is_asked_for() {
    let expects = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    };
    let mut peer = Peer::new(1 << 16);
    peer.say(expects("/echo")).await;
    assert_eq!(peer.hear("\r\n\r\n").await, "HTTP/1.1 100 Continue\n\n");
    peer.say("hello").await;
    assert!(peer.hear("/echo [hello]").await.starts_with("HTTP/1.1 200 OK\n"));
    // Sent without waiting: nothing more to say.
    peer.say(expects("/two") + "hello").await;
    assert!(peer.hear("/two [hello]").await.starts_with("HTTP/1.1 200 OK\n"));
    peer.say(expects("/three") + "he").await;
    peer.say("llo").await;
    assert!(peer.hear("/three [hello]").await.starts_with("HTTP/1.1 200 OK\n"));
    // Refused: it may send the body or not, so nothing can follow.
    peer.say(expects("/leave")).await;
    let got = peer.rest().await;
    assert!(got.starts_with("HTTP/1.1 413 ") && got.contains("connection: close"), "{got}");
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_a_body_is_let_run_out_or_ends_the_connection() {
    let next = "GET /next HTTP/1.1\r\nConnection: close\r\n\r\n";
    for head in ["Content-Length: 700000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\naae60\r\n"] {
        let mut peer = Peer::new(1 << 12);
        peer.say(format!("POST /leave HTTP/1.1\r\n{head}")).await;
        let body = vec![b' '; 700_000];
        peer.say(&body).await;
        if head.starts_with('T') {
            peer.say("\r\n0\r\n\r\n").await;
        }
        peer.say(next).await;
        let got = peer.rest().await;
        assert!(got.starts_with("HTTP/1.1 413 ") && got.ends_with("/next []"), "{got}");
    }
    // Not for ever, and not without end.
    let (got, _) = talk(&[b"POST /leave HTTP/1.1\r\nContent-Length: 70\r\n\r\nx"]).await;
    assert!(got.ends_with("left"), "{got}");
    let mut peer = Peer::new(1 << 12);
    peer.say(format!("POST /leave HTTP/1.1\r\nContent-Length: {}\r\n\r\n", 1u64 << 40)).await;
    let mut sent = 0;
    while peer.stream.write_all(&[b' '; 4096]).await.is_ok() {
        sent += 4096;
    }
    assert!((LINGER_MAX..LINGER_MAX * 3).contains(&sent), "{sent}");
    // Nobody asked for it to be read.
    let (got, _) = talk(&[b"POST /drop HTTP/1.1\r\nContent-Length: 300000\r\n\r\nx"]).await;
    assert!(got.ends_with("dropped") && got.contains("connection: close"), "{got}");
    let (got, _) = talk(&[
        b"POST /drop HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
        next.as_bytes(),
    ])
    .await;
    assert!(got.ends_with("dropped") && got.contains("connection: close"), "{got}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_ends_its_call_and_its_stream() {
    for path in ["/never", "/open"] {
        let mut peer = Peer::new(1 << 16);
        peer.say(format!("GET {path} HTTP/1.1\r\n\r\nGET /next")).await;
        if path == "/open" {
            peer.hear("\r\n\r\n").await;
        }
        tokio::task::yield_now().await;
        assert!(Arc::strong_count(&peer.calls) > 2);
        drop(peer.stream);
        assert_eq!(peer.served.await.unwrap(), Ended::Closed);
        assert_eq!(Arc::strong_count(&peer.calls), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn who_sends_ahead_is_read_to_a_bound() {
    let mut peer = Peer::new(1 << 10);
    peer.say("GET /never HTTP/1.1\r\n\r\n").await;
    let mut sent = 0;
    let line = [b'x'; 1 << 10];
    while tokio::time::timeout(Duration::from_secs(1), peer.stream.write_all(&line)).await.is_ok() {
        sent += line.len();
        assert!(sent < 1 << 20);
    }
    assert!((16 << 10..64 << 10).contains(&sent), "{sent}");
}

#[tokio::test(start_paused = true)]
async fn answers_end_as_they_say() {
    for (request, want) in [
        ("GET /none HTTP/1.1", "HTTP/1.1 204 No Content|content-type: t/x||"),
        (
            "GET /json HTTP/1.1",
            "HTTP/1.1 200 OK|content-type: application/json|cache-control: no-store|content-length: 2||{}",
        ),
        ("HEAD /large HTTP/1.1", "HTTP/1.1 200 OK|content-type: t/x|content-length: 1048576||"),
        ("HEAD /ticks HTTP/1.1", "HTTP/1.1 200 OK|content-type: t/x||"),
        (
            "GET /ticks HTTP/1.1",
            "HTTP/1.1 200 OK|content-type: t/x|transfer-encoding: chunked||7|tick 0\n|7|tick 1\n|7|tick 2\n|0||",
        ),
        (
            "GET /a HTTP/1.0\r\nConnection: keep-alive",
            "HTTP/1.0 200 OK|content-type: t/x|content-length: 5|connection: keep-alive||/a []",
        ),
    ] {
        let mut peer = Peer::new(1 << 16);
        let next = "GET /next HTTP/1.1\r\nConnection: close\r\n\r\n";
        peer.say(format!("{request}\r\n\r\n{next}")).await;
        let mut got = Vec::new();
        peer.stream.read_to_end(&mut got).await.unwrap();
        let text = String::from_utf8(got).unwrap();
        let lines = text.split("\r\n").filter(|line| !line.starts_with("date: "));
        let text = lines.collect::<Vec<_>>().join("|");
        assert!(text.starts_with(want), "{request}: {text}");
        assert!(text[want.len()..].starts_with("HTTP/1.1 200 OK|"), "{request}: {text}");
    }
    // HTTP/1.0 knows the end of the connection only.
    let (got, _) = talk(&[b"GET /ticks HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /"]).await;
    assert_eq!(got, "HTTP/1.0 200 OK\ncontent-type: t/x\n\ntick 0\ntick 1\ntick 2\n");
    let (got, _) = talk(&[b"GET /a HTTP/1.0\r\n\r\n"]).await;
    assert_eq!(got, "HTTP/1.0 200 OK\ncontent-type: t/x\ncontent-length: 5\n\n/a []");
    // What breaks off does not end.
    let (got, ended) = talk(&[b"GET /breaks HTTP/1.1\r\n\r\nGET /next HTTP/1.1\r\n\r\n"]).await;
    assert_eq!(got, "HTTP/1.1 200 OK\ncontent-type: t/x\ntransfer-encoding: chunked\n\n4\nhalf\n");
    assert_eq!(ended, Ended::Broken);
}

#[tokio::test(start_paused = true)]
async fn events_are_sent_as_they_come() {
    let mut peer = Peer::new(1 << 16);
    peer.say("GET /ticks HTTP/1.1\r\n\r\n").await;
    let start = Instant::now();
    peer.hear("tick 0\n").await;
    assert!(start.elapsed() < Duration::from_millis(500));
    peer.hear("tick 1\n").await;
    assert!(start.elapsed() < Duration::from_millis(1500));
    peer.hear("0\r\n\r\n").await;
}

#[tokio::test(start_paused = true)]
async fn who_reads_slowly_is_served_and_who_does_not_read_is_given_up() {
    let mut peer = Peer::new(1 << 18);
    peer.say("GET /large HTTP/1.1\r\n\r\n").await;
    let mut piece = vec![0; 1 << 17];
    for _ in 0..6 {
        tokio::time::sleep(UNREAD_TIME - Duration::from_secs(1)).await;
        peer.stream.read_exact(&mut piece).await.unwrap();
    }
    let stopped = Instant::now();
    assert_eq!(peer.served.await.unwrap(), Ended::Unread);
    let took = stopped.elapsed();
    assert!(took >= UNREAD_TIME && took < UNREAD_TIME + Duration::from_secs(1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_head_and_the_next_one_have_their_time() {
    // Nothing; a beginning; a used connection; with each its own.
    for (said, least) in [
        ("", PATIENCE),
        ("GET /", PATIENCE),
        ("GET /a HTTP/1.1\r\n\r\n", PATIENCE),
        ("GET /a HTTP/1.1\r\n\r\nPO", PATIENCE),
    ] {
        let start = Instant::now();
        let (_, ended) = talk(&[said.as_bytes()]).await;
        assert_eq!(ended, Ended::Closed);
        let took = start.elapsed();
        assert!(took >= least && took < least + Duration::from_secs(1), "{said}: {took:?}");
    }
    // A trickle does not hold it open.
    let mut peer = Peer::new(1 << 16);
    let start = Instant::now();
    peer.say("GET /a HTTP/1.1\r\n").await;
    while peer.stream.write_all(b"X: y\r\n").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(start.elapsed() < PATIENCE + Duration::from_secs(1));
    // A long call does.
    let mut peer = Peer::new(1 << 16);
    peer.say("GET /never HTTP/1.1\r\n\r\n").await;
    tokio::time::sleep(PATIENCE * 10).await;
    assert!(!peer.served.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_what_is_idle_and_lets_answers_finish() {
    // Idle, new or used.
    for said in ["", "GET /a HTTP/1.1\r\n\r\n"] {
        let mut peer = Peer::new(1 << 16);
        peer.say(said).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        let start = Instant::now();
        peer.stop.cancel();
        assert_eq!(peer.served.await.unwrap(), Ended::Closed);
        assert!(start.elapsed() < Duration::from_millis(2));
    }
    // Half said: it has a moment to become a request, whose answer is the last one.
    for (rest, answered) in [("", false), (" HTTP/1.1\r\n\r\n", true)] {
        let mut peer = Peer::new(1 << 16);
        peer.say("GET /a").await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        let start = Instant::now();
        peer.stop.cancel();
        tokio::time::sleep(HALF_SAID / 2).await;
        peer.say(rest).await;
        let got = peer.rest().await;
        assert_eq!(got.contains("connection: close\n\n/a []"), answered, "{got}");
        assert!(start.elapsed() < HALF_SAID + Duration::from_millis(20));
    }
    // Being answered.
    let mut peer = Peer::new(1 << 16);
    peer.say("GET /stop HTTP/1.1\r\n\r\n").await;
    let got = peer.rest().await;
    assert!(got.ends_with("connection: close\n\n/stop []"), "{got}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_becomes_another_is_handed_over_with_what_was_read() {
    let mut peer = Peer::new(1 << 16);
    peer.say("GET /switch HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nfirst").await;
    let got = peer.rest().await;
    assert_eq!(got, "HTTP/1.1 101 Switching Protocols\ncontent-type: t/x\n\nraw: first");
}

#[tokio::test]
async fn a_request_is_not_copied_and_a_quiet_connection_holds_nothing() {
    let (ours, mut theirs) = duplex(1 << 16);
    let text = b"POST /mcp HTTP/1.1\r\nX-A: value\r\nContent-Length: 5\r\n\r\nhello";
    theirs.write_all(text).await.unwrap();
    let shared = Arc::new(Shared::new(ours, BytesMut::new()));
    poll_fn(|cx| shared.lock().poll_fill(cx)).await.unwrap();
    let parsed = head_of(&mut shared.lock()).unwrap().unwrap();
    let InBody::Whole(Some(body)) = take_body(&shared) else { panic!("all of it is there") };
    let value = parsed.head.headers.get(&hyper::header::HeaderName::from_static("x-a")).unwrap();
    let apart = text.len() - 5 - (text.windows(5).position(|w| w == b"value").unwrap());
    assert_eq!(body.as_ptr() as usize - value.as_ptr() as usize, apart);
    let io = shared.lock();
    assert_eq!((io.unread.capacity(), io.behind.len(), io.left), (0, 0, Left::Nothing));
}

#[tokio::test]
async fn a_connection_is_small() {
    let (ours, _theirs) = duplex(1);
    let stop = CancellationToken::new();
    let answers = Scripted { stop: stop.clone(), held: Arc::default() };
    let serving = serve(ours, BytesMut::new(), &stop, PATIENT, answers);
    let size = size_of_val(&serving);
    assert!(size <= 1280, "{size}");
    let shared = size_of::<Shared<tokio::net::TcpStream>>();
    assert!(shared < 512, "{shared}");
}
