//! Sockets in memory whose other end does as the test says, in paused time.

use bytes::Bytes;
use tokio::io::DuplexStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::protocol::message::{Frame, message};

type Server = WebSocketStream<DuplexStream>;

const MAX: usize = 4096;

/// A pipe over a socket that holds `room` bytes on their way, and the upstream's end of it.
async fn world(room: usize) -> (Pipe, Server, mpsc::Receiver<Unasked>) {
    let (ours, theirs) = tokio::io::duplex(room);
    let bounds = WebSocketConfig::default().max_message_size(Some(MAX)).max_frame_size(Some(MAX));
    let socket = WebSocketStream::from_raw_socket(ours, Role::Client, Some(bounds)).await;
    let server = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
    let (pipe, inside, unasked) = Pipe::new("up".into(), MAX, Scrubber::default(), Arc::default());
    tokio::spawn(carry(socket, inside, MAX));
    (pipe, server, unasked)
}

fn asking(pipe: &Pipe, id: u64, size: usize) -> tokio::task::JoinHandle<Result<Frame, Fault>> {
    let pipe = pipe.clone();
    let params = format!(r#"{{"x":"{}"}}"#, "x".repeat(size));
    let message = message(Some(id.to_string().as_bytes()), "tools/call", Some(params.as_bytes()));
    tokio::spawn(async move { pipe.request(id, message, true, &|_| {}).await })
}

async fn heard(server: &mut Server) -> Message {
    loop {
        match server.next().await.unwrap().unwrap() {
            Message::Ping(_) | Message::Pong(_) => {}
            other => return other,
        }
    }
}

async fn answer(server: &mut Server, id: u64) {
    let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#);
    server.send(Message::text(text)).await.unwrap();
}

async fn failed(asking: tokio::task::JoinHandle<Result<Frame, Fault>>) -> Fault {
    asking.await.unwrap().unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_answers_no_ping_is_let_go() {
    let (pipe, server, _unasked) = world(1 << 16).await;
    let began = tokio::time::Instant::now();
    let fault = failed(asking(&pipe, 1, 1)).await;
    assert_eq!((fault.reason, fault.delivery), (Reason::ConnectionLost, Delivery::Unknown));
    assert_eq!(fault.text, "the upstream gave no sign of life on its WebSocket");
    let took = began.elapsed();
    assert!(took >= SILENCE_MAX && took <= SILENCE_MAX + 2 * CLOSE_TIME, "{took:?}");
    assert_eq!(pipe.ended().await.text, fault.text);
    let late = failed(asking(&pipe, 2, 1)).await;
    assert_eq!(late.delivery, Delivery::NotSent);
    drop(server);
}

#[tokio::test(start_paused = true)]
async fn one_that_answers_pings_may_be_silent_for_long() {
    let (pipe, mut server, _unasked) = world(1 << 16).await;
    let asked = asking(&pipe, 1, 1);
    let end = tokio::time::Instant::now() + Duration::from_secs(600);
    let mut pings = 0;
    // Reading answers them.
    while let Ok(frame) = tokio::time::timeout_at(end, server.next()).await {
        pings += u32::from(frame.unwrap().unwrap().is_ping());
    }
    assert!((39..=40).contains(&pings), "one every {PING_EVERY:?}: {pings}");
    answer(&mut server, 1).await;
    assert!(asked.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_was_begun_is_unknown_and_the_rest_was_not_sent() {
    // The first fills the way, the second waits behind it.
    let (pipe, server, _unasked) = world(64).await;
    let first = asking(&pipe, 1, 1000);
    tokio::time::sleep(Duration::from_millis(1)).await;
    let second = asking(&pipe, 2, 1);
    tokio::time::sleep(Duration::from_millis(1)).await;
    drop(server);
    assert_eq!(failed(first).await.delivery, Delivery::Unknown);
    assert_eq!(failed(second).await.delivery, Delivery::NotSent);
}

#[tokio::test(start_paused = true)]
async fn closing_says_so_and_takes_what_is_still_answered() {
    let (pipe, mut server, _unasked) = world(1 << 16).await;
    let (one, two) = (asking(&pipe, 1, 1), asking(&pipe, 2, 1));
    for _ in 0..2 {
        assert!(heard(&mut server).await.is_text());
    }
    let closing = {
        let pipe = pipe.clone();
        tokio::spawn(async move { pipe.close().await })
    };
    let Message::Close(Some(frame)) = heard(&mut server).await else { panic!("no goodbye") };
    assert_eq!(frame.code, CloseCode::Normal);
    // It has answered the close by reading it; what it had sent before still comes.
    let _ = server.close(None).await;
    closing.await.unwrap();
    for asked in [one, two] {
        let fault = failed(asked).await;
        assert_eq!((fault.reason, fault.delivery), (Reason::ConnectionLost, Delivery::Unknown));
    }
    assert_eq!(
        pipe.notify(Bytes::from_static(b"{}")).await.unwrap_err().delivery,
        Delivery::NotSent
    );
}

#[tokio::test(start_paused = true)]
async fn the_last_clone_closes() {
    let (pipe, mut server, _unasked) = world(1 << 16).await;
    drop(pipe.clone());
    assert!(tokio::time::timeout(Duration::from_secs(1), heard(&mut server)).await.is_err());
    drop(pipe);
    assert!(heard(&mut server).await.is_close());
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_never_closes_its_side_is_not_waited_for() {
    let (pipe, _server, _unasked) = world(1 << 16).await;
    let began = tokio::time::Instant::now();
    pipe.close().await;
    assert!(began.elapsed() <= 2 * CLOSE_TIME, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn useless_frames_end_it_with_the_code_that_says_why() {
    for (frame, code, reason) in [
        (Message::binary(vec![1]), CloseCode::Unsupported, Reason::ConnectionLost),
        (Message::text("x".repeat(MAX + 1)), CloseCode::Size, Reason::TooLarge),
    ] {
        let (pipe, mut server, _unasked) = world(1 << 16).await;
        let asked = asking(&pipe, 1, 1);
        assert!(heard(&mut server).await.is_text());
        server.send(frame).await.unwrap();
        let Message::Close(Some(goodbye)) = heard(&mut server).await else { panic!("no goodbye") };
        assert_eq!(goodbye.code, code);
        let fault = failed(asked).await;
        assert_eq!((fault.reason, fault.delivery), (reason, Delivery::Unknown));
    }
}

#[tokio::test(start_paused = true)]
async fn noise_is_skipped_and_a_message_may_come_in_pieces() {
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
    let (pipe, mut server, mut unasked) = world(1 << 16).await;
    let asked = asking(&pipe, 7, 1);
    assert!(heard(&mut server).await.is_text());
    for noise in ["", "hello", "[]", r#"{"jsonrpc":"2.0","id":8,"result":{}}"#] {
        server.send(Message::text(noise)).await.unwrap();
    }
    let ping = r#"{"jsonrpc":"2.0","id":"s1","method":"ping"}"#;
    server.send(Message::text(ping)).await.unwrap();
    let whole = r#"{"jsonrpc":"2.0","id":7,"result":{"n":1.10}}"#;
    let (one, two) = whole.split_at(9);
    for (text, code, last) in [(one, Data::Text, false), (two, Data::Continue, true)] {
        let piece = text.to_owned().into_bytes();
        let frame = tokio_tungstenite::tungstenite::protocol::frame::Frame::message(
            piece,
            OpCode::Data(code),
            last,
        );
        server.send(Message::Frame(frame)).await.unwrap();
    }
    assert_eq!(asked.await.unwrap().unwrap().bytes(), whole);
    let Some(Unasked::Request(frame)) = unasked.recv().await else { panic!("no request") };
    assert_eq!(frame.bytes(), ping);
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_is_told_upstream_unless_it_was_never_sent() {
    let (pipe, mut server, _unasked) = world(1 << 16).await;
    let asked = asking(&pipe, 1, 1);
    assert!(heard(&mut server).await.is_text());
    asked.abort();
    let Message::Text(text) = heard(&mut server).await else { panic!("no text") };
    let frame = Frame::scan(text.into()).unwrap();
    assert_eq!(frame.method(), "notifications/cancelled");
    assert!(frame.params().unwrap().starts_with(br#"{"requestId":1,"#));
}
