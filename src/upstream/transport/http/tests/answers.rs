//! What an answer is, and what is none.

use super::*;

#[tokio::test]
async fn a_json_answer_and_what_went_out_for_it() {
    let upstream = Upstream::start([Reply::Send(response(
        "200 OK",
        "content-type: APPLICATION/JSON;charset=utf-8\r\nMcp-Session-Id: s-1\r\n",
        OK,
    ))])
    .await;
    let mut config = settings(&format!("{}?tenant=9", upstream.url));
    config.bearer = Some(Template::literal("t0ken-value"));
    config.headers = vec![
        ("X-Team".into(), Template::literal("sales")),
        ("mcp-protocol-version".into(), Template::literal("old")),
    ];
    let (wire, counters) = wire_with(&config);
    let headers = [
        (crate::protocol::header::PROTOCOL_VERSION, HeaderValue::from_static("2026-07-28")),
        (crate::protocol::header::METHOD, HeaderValue::from_static("tools/call")),
    ];
    let (tx, _rx) = mpsc::channel(1);
    let out = Outgoing { headers: &headers, ..ask() };
    let answer = within(wire.request(out, &|_| {}, &tx)).await.unwrap();
    assert_eq!((body(&answer.frame), answer.status), (OK, 200));
    assert_eq!(answer.session.as_ref().unwrap(), "s-1");
    assert!(!format!("{answer:?}").contains("s-1"));

    let requests = upstream.requests();
    let (head, sent) = requests[0].split_once("\r\n\r\n").unwrap();
    assert_eq!(sent.as_bytes(), ASK);
    let mut lines: Vec<_> = head.lines().filter(|l| !l.starts_with("host: ")).collect();
    lines[1..].sort_unstable();
    let lines = lines.join("\n").replace(env!("CARGO_PKG_VERSION"), "VERSION");
    insta::assert_snapshot!(lines, @r"
    POST /mcp?tenant=9 HTTP/1.1
    accept: application/json, text/event-stream
    authorization: Bearer t0ken-value
    content-length: 58
    content-type: application/json
    mcp-method: tools/call
    mcp-protocol-version: 2026-07-28
    user-agent: weirkeeper/VERSION
    x-team: sales
    ");
    assert_eq!(counters.sent_bytes.load(Ordering::Relaxed), ASK.len() as u64);
    assert_eq!(counters.received_bytes.load(Ordering::Relaxed), OK.len() as u64);
}

#[tokio::test]
async fn a_stream_gives_notices_and_requests_before_its_answer() {
    let progress = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"n":1}}"#;
    let ping = r#"{"jsonrpc":"2.0","id":"u1","method":"ping"}"#;
    let stray = r#"{"jsonrpc":"2.0","id":6,"result":{}}"#;
    let again = r#"{"jsonrpc":"2.0","id":7,"result":{"a":2}}"#;
    let all = [progress, ping, ping, stray, OK, again].map(data);
    let upstream = Upstream::start([events(&all.each_ref().map(String::as_str))]).await;
    let (wire, counters) = wire_with(&settings(&upstream.url));
    let (tx, mut rx) = mpsc::channel(1);
    let notices = Mutex::new(Vec::new());
    let on_notice = |frame: Frame| notices.lock().unwrap().push(body(&frame).to_owned());
    let answer = within(wire.request(ask(), &on_notice, &tx)).await.unwrap();
    assert_eq!(body(&answer.frame), OK, "the first answer counts");
    assert_eq!(*notices.lock().unwrap(), [progress]);
    assert!(matches!(rx.try_recv(), Ok(Unasked::Request(frame)) if body(&frame) == ping));
    assert!(rx.try_recv().is_err());
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!(count(&counters.notices), 1);
    assert_eq!(count(&counters.unmatched_answers), 1);
    assert_eq!(count(&counters.dropped_messages), 1, "the second ping found no room");
}

#[tokio::test]
async fn a_stream_may_be_written_in_every_odd_way() {
    let text = "\u{feff}id: s/0\r\nretry: 10\r\ndata:\r\n\r\n\
                : still there\r\n\r\n\
                event: other\r\ndata: {no json\r\n\r\n\
                data: {\"jsonrpc\":\"2.0\",\r\ndata:\"id\":7,\r\ndata: \"result\":{}}\r\n\r\n";
    let pieces: Vec<String> = text.chars().map(String::from).collect();
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
    for chunks in [&[text][..], &pieces] {
        let upstream = Upstream::start([events(chunks)]).await;
        let answer = request(&wire_to(&upstream)).await.unwrap();
        assert_eq!(body(&answer.frame), "{\"jsonrpc\":\"2.0\",\n\"id\":7,\n\"result\":{}}");
    }
}

#[tokio::test]
async fn a_stream_that_ends_early_says_from_where_to_go_on() {
    let begun = chunk("id: s/4\nretry: 1500\ndata:\n\n") + &chunk("data: {\"jsonrpc\"");
    for (rest, in_order) in [(STREAM_END, true), ("", false)] {
        let reply = Reply::SendAndClose(stream_head() + &begun + rest);
        let upstream = Upstream::start([reply]).await;
        let Err(RequestError::StreamEnded(end)) = request(&wire_to(&upstream)).await else {
            panic!("it did not end");
        };
        assert_eq!(end.last_event_id.as_deref(), Some("s/4"));
        assert_eq!(end.retry, Some(Duration::from_millis(1500)));
        assert_eq!((end.status, end.broken.is_none()), (200, in_order));
        let fault = end.into_fault();
        assert_eq!((fault.reason, fault.delivery), (Reason::ConnectionLost, Delivery::Unknown));
    }
    // An empty id takes the last one back.
    let upstream = Upstream::start([events(&["id: 1\ndata:\n\nid\ndata:\n\n"])]).await;
    let Err(RequestError::StreamEnded(end)) = request(&wire_to(&upstream)).await else {
        panic!("it did not end");
    };
    assert_eq!(end.last_event_id, None);
}

#[tokio::test]
async fn what_is_no_answer() {
    let html = "content-type: text/html\r\n";
    let with =
        |status: &str, headers: &str, body: &str| Reply::Send(response(status, headers, body));
    let replies = [
        ("another id", json(r#"{"jsonrpc":"2.0","id":8,"result":{}}"#)),
        ("our id as a string", json(r#"{"jsonrpc":"2.0","id":"7","result":{}}"#)),
        ("a notification", json(r#"{"jsonrpc":"2.0","method":"notifications/x"}"#)),
        ("an array", json(&format!("[{OK}]"))),
        ("no JSON", json("sorry")),
        ("a page", with("200 OK", html, "<p>secret page</p>")),
        ("no body", with("202 Accepted", "", "")),
        ("no content", Reply::Send("HTTP/1.1 204 No Content\r\n\r\n".into())),
        ("an event that is no JSON", events(&["data: sorry\n\n"])),
        ("an event with an array", events(&[&data(&format!("[{OK}]"))])),
    ];
    let mut table = Vec::new();
    for (what, reply) in replies {
        let upstream = Upstream::start([reply]).await;
        let HttpFault { fault, status } = fault(&wire_to(&upstream)).await;
        assert_eq!((fault.reason, fault.delivery), (Reason::Garbled, Delivery::Unknown), "{what}");
        table.push(format!("{what}: {} {}", status.unwrap(), fault.text));
    }
    insta::assert_snapshot!(table.join("\n"), @r"
    another id: 200 the upstream's answer has another id than the request
    our id as a string: 200 the upstream's answer has another id than the request
    a notification: 200 the upstream's answer is no response
    an array: 200 the upstream's answer is no valid message
    no JSON: 200 the upstream's answer is no valid message
    a page: 200 the upstream's answer is neither JSON nor an event stream
    no body: 202 the upstream took the request and gave no answer
    no content: 204 the upstream took the request and gave no answer
    an event that is no JSON: 200 the upstream's answer is no valid message
    an event with an array: 200 the upstream's answer is no valid message
    ");
}

#[tokio::test]
async fn an_answer_without_a_content_type_is_read_as_json() {
    let upstream = Upstream::start([Reply::Send(response("200 OK", "", OK))]).await;
    assert_eq!(body(&request(&wire_to(&upstream)).await.unwrap().frame), OK);
}

#[tokio::test]
async fn an_error_without_an_id_is_the_answer() {
    let error = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x"}}"#;
    for reply in [json(error), events(&[&data(error)])] {
        let upstream = Upstream::start([reply]).await;
        assert_eq!(body(&request(&wire_to(&upstream)).await.unwrap().frame), error);
    }
}

#[tokio::test]
async fn an_answer_is_bounded_while_it_is_read() {
    // None of these upstreams would ever end: only the bound can.
    let announced = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
                     content-length: 1000000000000\r\n\r\n";
    let piece = chunk(&"x".repeat(1000)).repeat(5);
    let json_stream = stream_head().replace("text/event-stream", "application/json");
    for endless in [
        announced.to_owned(),
        json_stream.clone() + &piece,
        stream_head() + &chunk("data: ") + &piece,
        stream_head() + &chunk(&"data: 0123456789\n".repeat(500)),
    ] {
        let upstream = Upstream::start([Reply::SendAndHang(endless)]).await;
        let HttpFault { fault, status } = fault(&wire_to(&upstream)).await;
        assert_eq!((fault.reason, fault.delivery), (Reason::TooLarge, Delivery::Unknown));
        assert_eq!(status, Some(200));
        upstream.closed().await;
    }
    // Exactly the bound is let through, in one piece and in many.
    let pad = "x".repeat(MAX - OK.len() - 7);
    let full = OK.replace("\"a\":1", &format!("\"a\":1,\"b\":\"{pad}\""));
    assert_eq!(full.len(), MAX);
    let (left, right) = full.split_at(MAX / 2);
    let pieces = json_stream + &chunk(left) + &chunk(right) + STREAM_END;
    let (left_event, right_event) = (format!("data: {left}"), format!("{right}\n\n"));
    for reply in [json(&full), Reply::Send(pieces), events(&[&left_event, &right_event])] {
        let upstream = Upstream::start([reply]).await;
        assert_eq!(body(&request(&wire_to(&upstream)).await.unwrap().frame), full);
    }
}
