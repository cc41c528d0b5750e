//! Statuses that carry no answer, and redirects.

use std::time::SystemTime;

use super::*;

const PAGE: &str = "<html>internal host db-7, Authorization: Bearer t0ken</html>";

#[tokio::test]
async fn statuses_with_a_page_become_faults_that_show_nothing_of_it() {
    for code in [400, 401, 403, 404, 405, 429, 500, 502, 503] {
        let reply = response(&format!("{code} X"), "content-type: text/html\r\n", PAGE);
        let upstream = Upstream::start([Reply::Send(reply)]).await;
        let HttpFault { fault, status } = fault(&wire_to(&upstream)).await;
        assert_eq!(status, Some(code));
        let shown = format!("{} {}", fault.text, fault.cause);
        assert!(shown.contains(&code.to_string()), "{shown}");
        assert!(!shown.contains("db-7") && !shown.contains("t0ken"), "{shown}");
        let wanted = match code {
            401 | 403 => (Reason::CredentialRefused, Delivery::Refused),
            429 => (Reason::Throttled, Delivery::Refused),
            500 | 502 | 503 => (Reason::UpstreamStatus, Delivery::Unknown),
            _ => (Reason::UpstreamStatus, Delivery::Refused),
        };
        assert_eq!((fault.reason, fault.delivery), wanted, "{code}");
    }
}

#[tokio::test]
async fn a_pause_is_read_in_both_forms() {
    let soon = SystemTime::now() + Duration::from_secs(100);
    let date = httpdate::fmt_http_date(soon);
    for (status, value) in
        [("429 Too Many Requests", "7"), ("503 Service Unavailable", date.as_str())]
    {
        let reply = response(status, &format!("Retry-After: {value}\r\n"), "");
        let upstream = Upstream::start([Reply::Send(reply)]).await;
        let pause = fault(&wire_to(&upstream)).await.fault.retry_after.unwrap().as_secs();
        let wanted = if value == "7" { 7..=7 } else { 60..=100 };
        assert!(wanted.contains(&pause), "{value}: {pause}");
    }
    let upstream = Upstream::start([Reply::Send(response("429 X", "", ""))]).await;
    assert_eq!(fault(&wire_to(&upstream)).await.fault.retry_after, None);
}

#[tokio::test]
async fn a_json_rpc_error_with_a_status_is_an_answer() {
    for (status, id) in [("400 X", "7"), ("404 X", "null"), ("500 X", "7")] {
        let error = format!(
            r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32020,"message":"header"}}}}"#
        );
        let upstream = Upstream::start([Reply::Send(response(status, "", &error))]).await;
        let answer = request(&wire_to(&upstream)).await.unwrap();
        assert_eq!(body(&answer.frame), error);
        assert_eq!(answer.status.to_string(), status[..3]);
    }
    // Somebody else's error, a result and a message that is too long are none.
    let long = format!(r#"{{"jsonrpc":"2.0","id":7,"error":{{"x":"{}"}}}}"#, "x".repeat(70_000));
    for text in [r#"{"jsonrpc":"2.0","id":8,"error":{"code":1}}"#, OK, &long] {
        let upstream = Upstream::start([Reply::Send(response("400 X", "", text))]).await;
        let HttpFault { fault, status } = fault(&wire_to(&upstream)).await;
        assert_eq!((fault.reason, status), (Reason::UpstreamStatus, Some(400)));
    }
}

#[tokio::test]
async fn a_pause_and_a_credential_are_not_hidden_by_a_json_rpc_error() {
    let error = r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32000,"message":"key k1 used up"}}"#;
    for (status, reason) in [("429 X", Reason::Throttled), ("401 X", Reason::CredentialRefused)] {
        let reply = response(status, "retry-after: 3\r\n", error);
        let upstream = Upstream::start([Reply::Send(reply)]).await;
        let fault = fault(&wire_to(&upstream)).await.fault;
        assert_eq!((fault.reason, fault.delivery), (reason, Delivery::Refused));
        assert!(fault.cause.contains("-32000"), "{}", fault.cause);
        assert!(!fault.text.contains("k1") && !fault.cause.contains("k1"));
    }
}

#[tokio::test]
async fn a_refusal_whose_body_never_comes_is_told_all_the_same() {
    let hanging = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 10\r\n\r\n";
    let upstream = Upstream::start([json(OK), Reply::SendAndHang(hanging.into())]).await;
    let wire = wire_to(&upstream);
    request(&wire).await.unwrap();
    // The connection stands: from here on only the wait for the body takes time.
    tokio::time::pause();
    let (tx, _rx) = mpsc::channel(1);
    let failed = wire.request(ask(), &|_| {}, &tx).await.unwrap_err();
    assert_eq!(failed.status(), Some(401));
    assert_eq!(failed.into_fault().reason, Reason::CredentialRefused);
}

#[tokio::test]
async fn a_redirect_within_the_origin_is_followed_with_the_same_message() {
    let moved = |to: &str| Reply::Send(response("307 X", &format!("location: {to}\r\n"), ""));
    let upstream = Upstream::start([moved("/mcp/"), moved("v2?x=1"), json(OK)]).await;
    let mut config = settings(&upstream.url);
    config.bearer = Some(Template::literal("t0ken"));
    assert_eq!(body(&request(&wire_with(&config).0).await.unwrap().frame), OK);
    let requests = upstream.requests();
    let targets: Vec<_> = requests.iter().map(|r| r.lines().next().unwrap()).collect();
    assert_eq!(targets, ["POST /mcp HTTP/1.1", "POST /mcp/ HTTP/1.1", "POST /mcp/v2?x=1 HTTP/1.1"]);
    assert!(requests.iter().all(|r| r.contains("Bearer t0ken") && r.contains("tools/call")));
}

#[tokio::test]
async fn a_redirect_elsewhere_gets_nothing() {
    let elsewhere = Upstream::start([json(OK)]).await;
    let headers = format!("location: {}?k=v\r\n", elsewhere.url);
    for code in ["301", "302", "307", "308"] {
        let reply = response(&format!("{code} X"), &headers, "");
        let upstream = Upstream::start([Reply::Send(reply)]).await;
        let HttpFault { fault, status } = fault(&wire_to(&upstream)).await;
        assert_eq!(
            (fault.reason, status.unwrap().to_string().as_str()),
            (Reason::UpstreamStatus, code)
        );
        assert_eq!(fault.text, "redirect to another origin refused");
        assert!(!fault.cause.contains("k=v"));
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn a_circle_of_redirects_ends() {
    let again = Reply::Send(response("308 X", "location: /mcp\r\n", ""));
    let upstream = Upstream::start(vec![again; 10]).await;
    let HttpFault { fault, .. } = fault(&wire_to(&upstream)).await;
    assert_eq!((fault.text.as_str(), fault.delivery), ("too many redirects", Delivery::Refused));
    assert_eq!(upstream.requests().len(), 4, "the request and three redirects");
}
