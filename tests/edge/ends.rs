//! How things end: a stop that lets what is under way finish, and clients that do not read.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{PATIENCE, Weir, modern, modern_request};
use crate::wire::{Old, address, connect, reason};

/// Larger than what sockets hold by themselves.
const BIG: usize = 24 << 20;

async fn big() -> Scripted {
    let text = "x".repeat(BIG);
    Scripted::start(&[tool("big", true), tool("slow", true)], move |a| match a.tool()? {
        "big" => Some(a.text(&text)),
        _ => Some(Reply::After(Duration::from_secs(2), Box::new(a.text("slow")))),
    })
    .await
}

fn request_text(weir: &Weir, name: &str) -> String {
    let (headers, body) =
        modern_request(None, "tools/call", json!({"name": name, "arguments": {}}));
    let headers: Vec<_> = headers.iter().map(|(k, v)| format!("{k}: {v}\r\n")).collect();
    let headers = headers.concat();
    let (host, length) = (address(weir), body.len());
    format!(
        "POST /mcp HTTP/1.1\r\nhost: {host}\r\n{headers}content-type: application/json\r\n\
         accept: application/json, text/event-stream\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_begins_nothing_and_lets_all_that_is_under_way_finish() {
    let up = big().await;
    let mut weir =
        Weir::start("drain_timeout = \"20s\"", &up.section("up", "max_message = \"64MiB\""));
    weir.ready(&["up"]).await;
    let old = Old::open(&weir.url, "2025-06-18").await;
    let listening = old.listen().await;
    // One that reads slowly: its answer is large and on its way.
    let mut slow_reader = connect(&weir).await;
    slow_reader.write_all(request_text(&weir, "up__big").as_bytes()).await.unwrap();
    let mut some = [0; 1000];
    slow_reader.read_exact(&mut some).await.unwrap();
    // And one whose answer is still being made.
    let url = weir.url.clone();
    let waiting = tokio::spawn(async move {
        modern(&url, None, "tools/call", json!({"name": "up__slow", "arguments": {}})).await
    });
    while up.arrived("slow") == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (url, admin) = (weir.url.clone(), weir.admin.clone());
    let stopping = tokio::task::spawn_blocking(move || (weir.stop(), Instant::now()));
    while crate::harness::get(&format!("{admin}/readyz")).await.0 != 503 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Nothing new begins, and the client is told when to come again.
    let refused =
        modern(&url, None, "tools/call", json!({"name": "up__slow", "arguments": {}})).await;
    assert_eq!((refused.status, reason(&refused).as_str()), (503, "draining"), "{}", refused.body);
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(up.arrived("slow"), 1);
    // What belongs to something under way comes in.
    for body in [
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":77}}"#,
        r#"{"jsonrpc":"2.0","id":"weir-1","result":{}}"#,
    ] {
        assert_eq!(old.post(body).await.status, 202, "{body}");
    }
    let answer = waiting.await.unwrap().answer();
    assert_eq!(answer["result"]["content"][0]["text"], "slow", "{answer}");
    // The slow reader takes its time, and gets every byte.
    let mut got = some.len();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = slow_reader.read(&mut buffer).await.unwrap();
        if n == 0 {
            break;
        }
        got += n;
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    let read = Instant::now();
    assert!(got > BIG, "{got} of more than {BIG} bytes");
    let (status, ended) = stopping.await.unwrap();
    assert!(status.success());
    assert!(ended + Duration::from_millis(20) > read || read - ended < Duration::from_secs(1));
    drop(listening);
}

/// A client that asks for something large and reads nothing of it, over HTTP/2: one stream of
/// several on its connection.
async fn unread_stream(
    weir: &Weir,
) -> (hyper::client::conn::http2::SendRequest<Full<Bytes>>, hyper::Response<hyper::body::Incoming>)
{
    let io = TokioIo::new(TcpStream::connect(address(weir)).await.unwrap());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let response = sender.send_request(h2_request(weir, "up__big")).await.unwrap();
    assert_eq!(response.status(), 200);
    (sender, response)
}

fn h2_request(weir: &Weir, name: &str) -> Request<Full<Bytes>> {
    let (headers, body) =
        modern_request(None, "tools/call", json!({"name": name, "arguments": {}}));
    let mut request = Request::post(&weir.url)
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream");
    for (k, v) in headers {
        request = request.header(k, v);
    }
    request.body(Full::new(body.into())).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_let_go_and_keeps_nothing() {
    let up = big().await;
    let weir = Weir::start("", &up.section("up", "max_message = \"64MiB\""));
    weir.ready(&["up"]).await;
    let mut stalled = connect(&weir).await;
    stalled.write_all(request_text(&weir, "up__big").as_bytes()).await.unwrap();
    let (mut sender, response) = unread_stream(&weir).await;
    let connections = |metrics: &str| {
        let line = metrics.lines().find_map(|l| l.strip_prefix("weir_connections "));
        line.unwrap().parse::<u64>().unwrap()
    };
    let unread = |metrics: &str| metrics.contains("\nweir_unread_responses_total 2\n");
    let end = Instant::now() + PATIENCE + Duration::from_secs(30);
    // The connection that carries one response is closed; of the other only the stream ends.
    loop {
        let metrics = weir.metrics().await;
        if connections(&metrics) == 1 && unread(&metrics) {
            break;
        }
        assert!(Instant::now() < end, "{metrics}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let broken = response.into_body().collect().await;
    assert!(broken.is_err(), "what was taken back does not come");
    let again = sender.send_request(h2_request(&weir, "up__slow")).await.unwrap();
    let body = again.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("slow"), "the connection goes on");
    drop(stalled);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_without_a_request_do_not_delay_a_stop() {
    let mut weir = Weir::start("drain_timeout = \"30s\"", "");
    let silent = connect(&weir).await;
    let mut half_a_head = connect(&weir).await;
    half_a_head.write_all(b"POST /mcp HTTP/1.1\r\nhost: local").await.unwrap();
    let mut half_a_body = connect(&weir).await;
    let head = "POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{";
    half_a_body.write_all(head.as_bytes()).await.unwrap();
    modern(&weir.url, None, "tools/list", json!({})).await;
    let began = Instant::now();
    let (weir, status) = tokio::task::spawn_blocking(move || {
        let status = weir.stop();
        (weir, status)
    })
    .await
    .unwrap();
    // Far less than what calls under way would be given.
    assert!(status.success() && began.elapsed() < Duration::from_secs(15));
    assert!(!weir.log().contains("did not read"), "{}", weir.log());
    drop((silent, half_a_head, half_a_body));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_revoked_while_its_request_comes_in_is_no_key() {
    use weirkeeper::config::secret::{ConsumerKey, new_key};
    let section = |key: &weirkeeper::config::secret::Secret| {
        format!("[consumers.px]\nkey = {:?}\n", ConsumerKey::of(key.expose()).to_text())
    };
    let (old, new) = (new_key(), new_key());
    let weir = Weir::start("", &section(&old));
    let (_, body) = modern_request(None, "tools/list", json!({}));
    let mut slow = connect(&weir).await;
    let head = format!(
        "POST /mcp HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\nmcp-protocol-version: 2026-07-28\r\n\
         mcp-method: tools/list\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        old.expose(),
        body.len()
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    slow.write_all(&body.as_bytes()[..10]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    weir.rewrite("", &section(&new));
    weir.logged("configuration reloaded").await;
    slow.write_all(&body.as_bytes()[10..]).await.unwrap();
    let got = crate::wire::rest(&mut slow).await;
    assert_eq!(crate::wire::status(&got), 401, "{got}");
}
