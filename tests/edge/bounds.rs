//! Clients that are slow, many, silent or gone: each is bounded, and the others are served.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{PATIENCE, Weir, call, modern, modern_request, tool_names};
use crate::wire::{Old, address, connect, initialize, reason, rest, status};

const HEAD: &str = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";

/// Wait until the metrics say so.
async fn counted(weir: &Weir, line: &str) {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let page = weir.metrics().await;
        if page.lines().any(|l| l == line) {
            return;
        }
        assert!(std::time::Instant::now() < end, "not seen: {line}\n{page}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn slow_headers_and_bodies_run_out_of_time() {
    let weir = Weir::start("header_timeout = \"400ms\"\nbody_timeout = \"400ms\"", "");
    // Nothing at all; a beginning; a trickle that never ends; the first bytes of HTTP/2.
    for begin in ["", "PO", "PR", "POST /mcp HTTP/1.1\r\nHost: local", HEAD] {
        let mut stream = connect(&weir).await;
        stream.write_all(begin.as_bytes()).await.unwrap();
        let got = rest(&mut stream).await;
        assert!(got.is_empty() || status(&got) == 408, "{begin:?}: {got}");
    }
    let (mut reader, mut writer) = connect(&weir).await.into_split();
    let trickle = tokio::spawn(async move {
        let _ = writer.write_all(HEAD.as_bytes()).await;
        while writer.write_all(b"X-A: b\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut out = Vec::new();
    let read = reader.read_to_end(&mut out);
    let _ = tokio::time::timeout(PATIENCE, read).await.expect("the gateway closes");
    let _ = trickle.await;
    // A body that stops, and one that trickles.
    let mut stream = connect(&weir).await;
    stream.write_all(format!("{HEAD}Content-Length: 100\r\n\r\n{{").as_bytes()).await.unwrap();
    let got = rest(&mut stream).await;
    assert_eq!(status(&got), 408, "{got}");
    assert!(got.contains("gateway.body_timeout"), "{got}");
    let (mut reader, mut writer) = connect(&weir).await.into_split();
    let trickle = tokio::spawn(async move {
        let _ = writer.write_all(format!("{HEAD}Content-Length: 9999\r\n\r\n").as_bytes()).await;
        while writer.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut out = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, reader.read_to_end(&mut out)).await.expect("closed");
    assert_eq!(status(&String::from_utf8_lossy(&out)), 408);
    let _ = trickle.await;
    counted(&weir, "weir_connections 0").await;
}

#[tokio::test]
async fn a_connection_is_kept_until_it_was_idle_for_long() {
    const ASK: &[u8] = b"GET /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let weir = Weir::start("header_timeout = \"100ms\"\nidle_timeout = \"1500ms\"", "");
    let mut stream = connect(&weir).await;
    // Longer than a head may take; a load balancer sends its next request much later.
    for _ in 0..2 {
        stream.write_all(ASK).await.unwrap();
        let mut got = Vec::new();
        while !got.ends_with(b"}") {
            assert_ne!(stream.read_buf(&mut got).await.unwrap(), 0, "closed after 400 ms");
        }
        assert_eq!(status(&String::from_utf8_lossy(&got)), 405);
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    // One that has begun to speak has no more time than any other; one that says nothing has.
    let mut slow = connect(&weir).await;
    slow.write_all(&ASK[..10]).await.unwrap();
    assert_eq!(rest(&mut slow).await, "");
    let still_open = tokio::time::timeout(Duration::from_millis(10), stream.readable()).await;
    assert!(still_open.is_err(), "the idle one ended first");
    assert_eq!(rest(&mut stream).await, "");
    counted(&weir, "weir_connections 0").await;
}

#[tokio::test]
async fn who_is_gone_is_forgotten() {
    let weir = Weir::start("", "");
    let (headers, body) = modern_request(None, "tools/list", json!({}));
    let mut request = format!("{HEAD}Connection: close\r\nContent-Length: {}\r\n", body.len());
    for (k, v) in headers {
        request = request + k + ": " + &v + "\r\n";
    }
    request.push_str("\r\n");
    request.push_str(&body);
    // Who closes its sending side cancels; the other side is closed too and not held.
    for cut in [0, 20, request.len() - 1] {
        let mut stream = connect(&weir).await;
        stream.write_all(&request.as_bytes()[..cut]).await.unwrap();
        stream.shutdown().await.unwrap();
        rest(&mut stream).await;
    }
    // Gone in the middle of everything.
    for cut in [1, 20, request.len() / 2, request.len() - 1, request.len()] {
        let mut stream = connect(&weir).await;
        stream.write_all(&request.as_bytes()[..cut]).await.unwrap();
        drop(stream);
    }
    // Two requests at once on one connection are answered in their order.
    let mut stream = connect(&weir).await;
    let first = request.replace("Connection: close\r\n", "");
    stream.write_all(format!("{first}{request}").as_bytes()).await.unwrap();
    assert_eq!(rest(&mut stream).await.matches("HTTP/1.1 200 OK").count(), 2);
    // An answer does not wait for the rest of the next request.
    let mut stream = connect(&weir).await;
    stream.write_all(format!("{first}POST /mcp HT").as_bytes()).await.unwrap();
    let mut begin = [0; 15];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut begin)).await.unwrap().unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200 OK");
    drop(stream);
    counted(&weir, "weir_connections 0").await;
}

#[tokio::test]
async fn a_refused_body_does_not_break_the_connection_before_the_answer() {
    let weir = Weir::start("max_body = \"1KiB\"", "");
    // Larger than what a socket buffers unread, smaller than what is let run out.
    let large = vec![b' '; 700 << 10];
    for (head, wanted) in [
        (HEAD.to_owned(), 413),
        (HEAD.replace("application/json", "text/plain"), 415),
        (HEAD.replace("localhost", "evil.example"), 403),
    ] {
        let mut stream = connect(&weir).await;
        let length = format!("{head}Content-Length: {}\r\n\r\n", large.len());
        stream.write_all(length.as_bytes()).await.unwrap();
        stream.write_all(&large).await.unwrap();
        // The connection is whole: it can be used again.
        stream
            .write_all(b"GET /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let got = rest(&mut stream).await;
        assert_eq!(status(&got), wanted, "{got}");
        assert!(got.contains("HTTP/1.1 405"), "{got}");
    }
}

#[tokio::test]
async fn ten_thousand_idle_connections_hurt_nobody() {
    let now = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let all = rustix::process::Rlimit { current: now.maximum, maximum: now.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, all).unwrap();
    let weir = Weir::start("", "");
    let mut idle: Vec<TcpStream> = Vec::new();
    for n in 0..10_000 {
        let mut stream = connect(&weir).await;
        // Some say nothing, some begin and stop.
        if n % 2 == 0 {
            stream.write_all(b"POST /mcp HT").await.unwrap();
        }
        idle.push(stream);
    }
    counted(&weir, "weir_connections 10000").await;
    for _ in 0..50 {
        let answer = call(&weir.url, "weir__status", json!({})).await;
        assert_eq!(answer["result"]["isError"], false, "{answer}");
    }
    drop(idle);
    counted(&weir, "weir_connections 0").await;
}

#[tokio::test]
async fn one_connection_more_than_may_be_is_closed() {
    let weir = Weir::start("max_connections = 3", "");
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(connect(&weir).await);
    }
    counted(&weir, "weir_connections 3").await;
    let mut one_more = connect(&weir).await;
    assert_eq!(rest(&mut one_more).await, "");
    counted(&weir, "weir_connections_refused_total{why=\"max_connections\"} 1").await;
    open.pop();
    counted(&weir, "weir_connections 2").await;
    assert_eq!(tool_names(&weir.url, None).await.len(), 3);
}

#[tokio::test]
async fn the_longest_idle_session_makes_room() {
    let weir = Weir::start("max_sessions = 2", "");
    let first = Old::open(&weir.url, "2025-11-25").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let second = Old::open(&weir.url, "2025-11-25").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(first.tools().await.len(), 3);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let third = Old::open(&weir.url, "2025-11-25").await;
    assert_eq!(weir.status().await["sessions"], 2);
    assert_eq!(first.tools().await.len(), 3);
    assert_eq!(third.tools().await.len(), 3);
    // It was only forgotten: its client comes back and notices nothing.
    assert_eq!(second.ask("ping", json!({})).await.status, 200);
    assert_eq!(weir.status().await["sessions"], 2);
    assert_eq!(first.ask("ping", json!({})).await.status, 200);
    // Sessions with an open stream are not idle; then there is no room.
    let (_a, _b) = (first.listen().await, third.listen().await);
    let got = crate::harness::post(&weir.url, &[], initialize("2025-11-25")).await;
    assert_eq!((got.status, reason(&got).as_str()), (503, "overloaded"), "{}", got.body);
    assert_eq!(got.headers["retry-after"], "5");
    // Who needs no session is served.
    assert_eq!(modern(&weir.url, None, "tools/list", json!({})).await.status, 200);
    assert_eq!(weir.status().await["sessions"], 2);
}

#[tokio::test]
async fn idle_sessions_end() {
    let weir = Weir::start("session_idle = \"200ms\"", "");
    let idle = Old::open(&weir.url, "2025-11-25").await;
    let listening = Old::open(&weir.url, "2025-11-25").await;
    let _stream = listening.listen().await;
    weir.until("one session left", |s| s["sessions"] == 1).await;
    assert_eq!(idle.ask("ping", json!({})).await.status, 404);
    assert_eq!(listening.ask("ping", json!({})).await.status, 200);
}

#[tokio::test]
async fn http2_speaks_at_the_same_port() {
    let weir = Weir::start("", "");
    let stream = connect(&weir).await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let ask = |host: &str| {
        let (headers, body) = modern_request(None, "tools/list", json!({}));
        let mut request = hyper::Request::post(format!("http://{host}/mcp"))
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        for (k, v) in &headers {
            request = request.header(*k, v);
        }
        request.body(Full::new(bytes::Bytes::from(body))).unwrap()
    };
    // Many at once on one connection.
    let answers: Vec<_> = (0..20).map(|_| sender.send_request(ask(address(&weir)))).collect();
    for answer in answers {
        let response = answer.await.unwrap();
        assert_eq!(response.version(), hyper::Version::HTTP_2);
        assert_eq!(response.status(), 200);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&body).contains("weir__status"));
    }
    // `:authority` is what `Host` is elsewhere.
    assert_eq!(sender.send_request(ask("evil.example")).await.unwrap().status(), 403);
}
