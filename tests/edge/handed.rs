//! A listening socket that is handed over: two gateways behind one address.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{Weir, call, modern_request};

const GATEWAY: &str = "drain_notice = \"1s\"\nsealing_key = \"0123456789abcdef0123456789abcdef\"";

async fn slow() -> Scripted {
    Scripted::start(&[tool("ok", true), tool("slow", false)], |a| {
        (a.tool()? == "slow")
            .then(|| Reply::After(Duration::from_secs(2), Box::new(a.text("slow"))))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_stops_and_no_call_fails() {
    let up = slow().await;
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let start = || Weir::start_on(&socket, 1, GATEWAY, &up.section("up", "")).unwrap();
    let mut first = start();
    assert_eq!(first.url, format!("http://{}/mcp", socket.local_addr().unwrap()));
    first.ready(&["up"]).await;
    let url = first.url.clone();

    // A connection that stays with the first, over HTTP/1.1 and over HTTP/2, and a call under way.
    let mut kept = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
    assert!(!said(&mut kept, &url).await.contains("connection: close"));
    let io = TokioIo::new(TcpStream::connect(socket.local_addr().unwrap()).await.unwrap());
    let (mut two, driver) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let driver = tokio::spawn(driver);
    two.ready().await.unwrap();
    let own = url.clone();
    let running = tokio::spawn(async move { call(&own, "up__slow", json!({})).await });
    while up.arrived("slow") == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let waiting = two.send_request(request(&url, "up__slow"));
    let waiting = tokio::spawn(async move {
        let body = waiting.await.unwrap().into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    });
    while up.arrived("slow") == 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let second = start();
    second.ready(&["up"]).await;

    // Callers with a connection for each call: they come to either.
    let over = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (over, url) = (over.clone(), url.clone());
            tokio::spawn(async move {
                let mut calls = 0;
                while !over.load(Ordering::Relaxed) {
                    let answer = call(&url, "up__ok", json!({})).await;
                    assert_eq!(answer["result"]["content"][0]["text"], "fine", "{answer}");
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    first.terminate();
    while crate::harness::get(&format!("{}/readyz", first.admin)).await.0 != 503 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // It answers once more, and says that it is the last time; then the client is free to go.
    let last = said(&mut kept, &url).await;
    assert!(last.starts_with("HTTP/1.1 200") && last.contains("connection: close"), "{last}");
    assert_eq!(kept.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(running.await.unwrap()["result"]["content"][0]["text"], "slow");
    assert!(waiting.await.unwrap().contains("slow"));
    driver.await.unwrap().unwrap();
    let status = tokio::task::spawn_blocking(move || first.stop()).await.unwrap();
    assert!(status.success());
    over.store(true, Ordering::Relaxed);
    for caller in callers {
        assert!(caller.await.unwrap() > 0);
    }
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_such_socket_is_refused() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let log = Weir::start_on(&socket, 2, "", "").err().unwrap();
    assert!(log.contains("2 sockets were handed over (LISTEN_FDS) and one is served"), "{log}");
    let open = TcpListener::bind("0.0.0.0:0").unwrap();
    let log = Weir::start_on(&open, 1, "", "").err().unwrap();
    assert!(log.contains("without consumers the gateway serves loopback only"), "{log}");
}

fn request(url: &str, name: &str) -> hyper::Request<Full<Bytes>> {
    let (headers, body) =
        modern_request(None, "tools/call", json!({"name": name, "arguments": {}}));
    let mut request = hyper::Request::post(url)
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    request.body(Full::new(body.into())).unwrap()
}

// One call on a connection: the head of its answer in lower case.
async fn said(stream: &mut TcpStream, url: &str) -> String {
    let (parts, _) = request(url, "up__ok").into_parts();
    let (_, body) = modern_request(None, "tools/call", json!({"name": "up__ok", "arguments": {}}));
    let headers: Vec<String> = parts
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap()))
        .collect();
    let host = parts.uri.authority().unwrap();
    let (headers, length) = (headers.concat(), body.len());
    let text = format!(
        "POST /mcp HTTP/1.1\r\nhost: {host}\r\n{headers}content-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    loop {
        let end = got.windows(4).position(|w| w == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8(got[..end].to_vec()).unwrap();
            let length = head.to_lowercase().lines().find_map(|l| {
                l.strip_prefix("content-length: ").map(|n| n.parse::<usize>().unwrap())
            });
            if got.len() >= end + 4 + length.expect("an answer in one piece") {
                let first = head.lines().next().unwrap().to_owned();
                return first.clone() + &head[first.len()..].to_lowercase();
            }
        }
        assert!(stream.read_buf(&mut got).await.unwrap() > 0, "an answer");
    }
}
