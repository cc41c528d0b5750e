//! Notifications out, and the stream and end of an old session.

use crate::protocol::header::SESSION_ID;

use super::*;

fn session() -> [(HeaderName, HeaderValue); 1] {
    [(SESSION_ID, HeaderValue::from_static("s-1"))]
}

#[tokio::test]
async fn a_notification_is_content_with_any_success() {
    let replies = [
        Reply::Send(response("202 Accepted", "", "")),
        Reply::Send(response("200 OK", "content-type: text/plain\r\n", "ok")),
        Reply::Send("HTTP/1.1 204 No Content\r\n\r\n".into()),
        Reply::Send(response("404 X", "", r#"{"jsonrpc":"2.0","error":{"code":-32001}}"#)),
    ];
    let upstream = Upstream::start(replies).await;
    let wire = wire_to(&upstream);
    for _ in 0..3 {
        within(wire.notify(ask())).await.unwrap();
    }
    let failed = within(wire.notify(ask())).await.unwrap_err();
    assert_eq!((failed.fault.reason, failed.status), (Reason::UpstreamStatus, Some(404)));
}

#[tokio::test]
async fn a_sessions_stream_gives_messages_until_it_ends() {
    let change = r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;
    let text = [
        "id: g/1\nretry: 2000\ndata:\n\n: alive\n\n",
        &data(change),
        "data: sorry\n\n",
        &format!("id: g/3\ndata: {OK}\n\n"),
    ];
    let upstream = Upstream::start([events(&text)]).await;
    let (wire, counters) = wire_with(&settings(&upstream.url));
    let mut stream = within(wire.stream(&session(), Some("g/0-ä"))).await.unwrap();
    let next = within(stream.next()).await.unwrap().unwrap();
    assert_eq!(body(&next), change);
    assert_eq!(stream.last_event_id(), Some("g/1"));
    assert_eq!(stream.retry(), Some(Duration::from_secs(2)));
    // A resumed stream carries the rest of an answer.
    assert_eq!(body(&within(stream.next()).await.unwrap().unwrap()), OK);
    assert!(within(stream.next()).await.unwrap().is_none());
    assert_eq!(stream.last_event_id(), Some("g/3"));
    assert_eq!(counters.garbled_messages.load(Ordering::Relaxed), 1);

    let request = &upstream.requests()[0];
    assert!(request.starts_with("GET /mcp HTTP/1.1\r\n"), "{request}");
    for line in ["accept: text/event-stream\r\n", "last-event-id: g/0-ä\r\n", "mcp-session-id: s-1"]
    {
        assert!(request.contains(line), "{request}");
    }
    assert!(!request.contains("content-"), "{request}");
}

#[tokio::test]
async fn a_broken_stream_ends_and_an_endless_message_is_a_fault() {
    let upstream = Upstream::start([
        Reply::SendAndClose(stream_head() + &chunk(&data(OK))),
        Reply::SendAndHang(stream_head() + &chunk(&"x".repeat(2 * MAX))),
    ])
    .await;
    let wire = wire_to(&upstream);
    let mut stream = within(wire.stream(&session(), None)).await.unwrap();
    assert!(within(stream.next()).await.unwrap().is_some());
    assert!(within(stream.next()).await.unwrap().is_none());
    assert!(!upstream.requests()[0].contains("last-event-id"));
    upstream.closed().await;
    let mut stream = within(wire.stream(&session(), None)).await.unwrap();
    assert_eq!(within(stream.next()).await.unwrap_err().reason, Reason::TooLarge);
    drop(stream);
    upstream.closed().await;
}

#[tokio::test]
async fn a_stream_that_is_not_offered_is_told_apart_from_one_that_fails() {
    for (reply, wanted) in [
        (response("405 X", "allow: POST\r\n", ""), None),
        ("HTTP/1.1 204 No Content\r\n\r\n".into(), None),
        (response("404 X", "", ""), Some((Reason::UpstreamStatus, 404))),
        (response("409 X", "", ""), Some((Reason::UpstreamStatus, 409))),
        (response("401 X", "", ""), Some((Reason::CredentialRefused, 401))),
        (response("503 X", "retry-after: 1\r\n", ""), Some((Reason::Throttled, 503))),
        (response("200 OK", "content-type: text/html\r\n", "hi"), Some((Reason::Garbled, 200))),
    ] {
        let upstream = Upstream::start([Reply::Send(reply)]).await;
        let refused = within(wire_to(&upstream).stream(&session(), None)).await.err().unwrap();
        let got = match refused {
            StreamRefused::NotOffered => None,
            StreamRefused::Fault(f) => Some((f.fault.reason, f.status.unwrap())),
        };
        assert_eq!(got, wanted);
    }
    let upstream = Upstream::start([]).await;
    let stream = within(wire_to(&upstream).stream(&session(), Some("a\nb"))).await;
    assert!(matches!(stream.err(), Some(StreamRefused::Fault(_))), "the id cannot be sent");
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn ending_a_session_never_fails() {
    let upstream = Upstream::start([
        Reply::Send(response("200 OK", "", "")),
        Reply::Send(response("500 X", "", "")),
        Reply::SendAndClose(String::new()),
    ])
    .await;
    let wire = wire_to(&upstream);
    for _ in 0..3 {
        within(wire.delete(&session())).await;
    }
    let requests = upstream.requests();
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|r| r.starts_with("DELETE /mcp") && r.contains("s-1")));
}

#[tokio::test]
async fn ending_a_session_takes_two_seconds_at_most() {
    let upstream = Upstream::start([json(OK), Reply::SendAndHang(String::new())]).await;
    let wire = wire_to(&upstream);
    request(&wire).await.unwrap();
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    wire.delete(&session()).await;
    assert_eq!(begun.elapsed().as_secs(), DELETE_TIME.as_secs());
}
