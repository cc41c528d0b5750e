//! Connections: kept, lost, refused, let go.

use super::*;

#[tokio::test]
async fn a_connection_is_kept_for_the_next_call() {
    let upstream =
        Upstream::start([json(OK), events(&[&data(OK)]), events(&[&data(OK)]), json(OK)]).await;
    let wire = wire_to(&upstream);
    for _ in 0..4 {
        let answer = request(&wire.clone()).await.unwrap();
        if let Some(rest) = answer.rest {
            within(rest.drain()).await;
        }
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn what_follows_an_answer_can_be_awaited_or_dropped() {
    let open = || Reply::InTwo(stream_head() + &chunk(&data(OK)), STREAM_END.into());
    let upstream = Upstream::start([open(), json(OK), open(), json(OK)]).await;
    let wire = wire_to(&upstream);
    let rest = request(&wire).await.unwrap().rest.expect("the stream is open");
    upstream.go();
    within(rest.drain()).await;
    request(&wire).await.unwrap();
    assert_eq!(upstream.connections(), 1);

    drop(request(&wire).await.unwrap().rest.expect("the stream is open"));
    request(&wire).await.unwrap();
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn a_connection_that_the_upstream_closed_meanwhile_costs_no_call() {
    let closing = |body: &str| {
        Reply::SendAndClose(response("200 OK", "content-type: application/json\r\n", body))
    };
    let upstream = Upstream::start([closing(OK), closing(OK), json(OK)]).await;
    let wire = wire_to(&upstream);
    for _ in 0..2 {
        request(&wire).await.unwrap();
        // Our side has seen the end and closed too.
        upstream.closed().await;
    }
    request(&wire).await.unwrap();
    assert_eq!((upstream.connections(), upstream.requests().len()), (3, 3));
}

#[tokio::test]
async fn a_request_that_was_written_is_never_written_again() {
    // The second comes over a kept connection, which is where a careless client would repeat.
    let upstream = Upstream::start([json(OK), Reply::SendAndClose(String::new()), json(OK)]).await;
    let wire = wire_to(&upstream);
    request(&wire).await.unwrap();
    let HttpFault { fault, status } = fault(&wire).await;
    assert_eq!((fault.reason, fault.delivery), (Reason::ConnectionLost, Delivery::Unknown));
    assert_eq!(status, None);
    assert_eq!((upstream.connections(), upstream.requests().len()), (1, 2));
}

#[tokio::test]
async fn half_a_body_is_a_lost_connection() {
    let half = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{";
    let upstream = Upstream::start([Reply::SendAndClose(half.into())]).await;
    let HttpFault { fault, status } = fault(&wire_to(&upstream)).await;
    assert_eq!((fault.reason, fault.delivery), (Reason::ConnectionLost, Delivery::Unknown));
    assert_eq!(status, Some(200));
}

#[tokio::test]
async fn what_is_not_http_is_a_lost_connection() {
    let upstream = Upstream::start([Reply::SendAndClose("SSH-2.0-x\r\n".into())]).await;
    let HttpFault { fault, .. } = fault(&wire_to(&upstream)).await;
    assert_eq!((fault.reason, fault.delivery), (Reason::ConnectionLost, Delivery::Unknown));
}

#[tokio::test]
async fn nobody_there_means_nothing_was_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (wire, _) = wire_with(&settings(&format!("http://{address}/mcp?key=s3cret")));
    let HttpFault { fault, status } = fault(&wire).await;
    assert_eq!((fault.reason, fault.delivery), (Reason::ConnectFailed, Delivery::NotSent));
    assert_eq!(status, None);
    assert_eq!(fault.text, "the upstream cannot be reached");
    assert!(fault.cause.contains(&address.to_string()), "{}", fault.cause);
    assert!(!fault.cause.contains("s3cret") && !fault.cause.contains("/mcp"), "{}", fault.cause);
}

#[tokio::test]
async fn a_connection_closed_on_arrival_is_a_fault_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        loop {
            drop(listener.accept().await.unwrap());
        }
    });
    // Whether the request was written before the end was seen is a race; neither is an answer.
    let HttpFault { fault, .. } = fault(&wire_with(&settings(&url)).0).await;
    assert!(matches!(fault.reason, Reason::ConnectFailed | Reason::ConnectionLost));
    server.abort();
}

#[tokio::test]
async fn dropping_a_request_closes_what_it_waited_on() {
    for (begun, has_notice) in [
        (String::new(), false),
        (stream_head(), false),
        (stream_head() + &chunk(&data(NOTICE)), true),
    ] {
        let upstream = Upstream::start([Reply::SendAndHang(begun)]).await;
        let wire = wire_to(&upstream);
        let (tx, _rx) = mpsc::channel(1);
        let noticed = Notify::new();
        let on_notice = |_| noticed.notify_one();
        let begins = async {
            upstream.asked().await;
            if has_notice {
                noticed.notified().await;
            }
        };
        tokio::select! {
            _ = wire.request(ask(), &on_notice, &tx) => panic!("there is no answer"),
            () = within(begins) => {}
        }
        upstream.closed().await;
    }
}

const NOTICE: &str = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{}}"#;

#[tokio::test]
async fn an_upstream_that_never_stops_talking_cannot_outlast_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        read_request(&mut socket).await.unwrap();
        socket.write_all(stream_head().as_bytes()).await.unwrap();
        let flood = chunk(&data(NOTICE).repeat(50));
        while socket.write_all(flood.as_bytes()).await.is_ok() {}
    });
    let (wire, counters) = wire_with(&settings(&url));
    let (tx, _rx) = mpsc::channel(1);
    let asked = wire.request(ask(), &|_| {}, &tx);
    assert!(tokio::time::timeout(Duration::from_millis(200), asked).await.is_err());
    assert!(counters.notices.load(Ordering::Relaxed) > 0);
    within(server).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_sent_is_told_when_the_wire_is_made() {
    let made = |config: &HttpConfig| {
        let fault = HttpWire::new("crm".into(), config, MAX, Arc::default()).unwrap_err();
        assert_eq!((fault.reason, fault.delivery), (Reason::ConnectFailed, Delivery::NotSent));
        assert!(!fault.text.contains("s3cret") && !fault.cause.contains("s3cret"));
        fault.text
    };
    let mut texts = Vec::new();
    for url in ["", "crm", "ftp://s3cret/", "http://u:s3cret@crm/", "http://s3 cret/", "/s3cret"] {
        texts.push(made(&settings(url)));
    }
    texts.dedup();
    let mut config = settings("http://crm.example/");
    for (name, value) in [("x-key", "s3cret\n"), ("Content-Length", "s3cret"), ("a b", "s3cret")] {
        config.headers = vec![(name.into(), Template::literal(value))];
        texts.push(made(&config));
    }
    config.headers.clear();
    config.bearer = Some(Template::literal("s3cret\r\nx: y"));
    texts.push(made(&config));
    insta::assert_snapshot!(texts.join("\n"), @r#"
    the configured url is not a valid http or https URL
    the configured header "x-key" holds bytes that no header may
    the configured header "Content-Length" cannot be sent
    the configured header "a b" cannot be sent
    the configured bearer holds bytes that no header may
    "#);
    let (wire, _) = wire_with(&settings("http://crm.example/?key=s3cret"));
    assert_eq!(format!("{wire:?}"), "HttpWire { upstream: \"crm\", .. }");
}
