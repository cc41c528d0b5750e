//! What an HTTP response means.

use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::body::Body as _;
use hyper::header::HeaderValue;
use serde::Deserialize;

use crate::failure::{Delivery, Fault, NO_EFFECT, Reason};
use crate::protocol::message::{Frame, Kind};
use crate::wire::number;

use super::body::Body;
use super::h1::Head;
use super::outcome::HttpFault;
use super::{HttpCounters, add, retry_after};

/// How much of the body of a refusal is read: a JSON-RPC error is a few hundred bytes, an error
/// page is of no interest.
const REFUSAL_MAX: usize = 64 << 10;
/// How long the body of a refusal is waited for. The status is known and says most of it; the
/// deadline must not take its place.
const REFUSAL_TIME: Duration = Duration::from_secs(2);

/// A body, or as much of it as was read, and the rest.
pub(super) enum Read {
    All(Bytes),
    Some(Bytes, Body),
}

/// Read a body of `max` bytes at most. One that comes in one piece is not copied.
pub(super) async fn read(body: Body, max: usize, counters: &HttpCounters) -> Result<Bytes, Fault> {
    match read_some(body, max, usize::MAX, counters).await? {
        Read::All(bytes) | Read::Some(bytes, _) => Ok(bytes),
    }
}

/// The same; but no more than `enough`, if there is more.
pub(super) async fn read_some(
    mut body: Body,
    max: usize,
    enough: usize,
    counters: &HttpCounters,
) -> Result<Read, Fault> {
    let announced = body.size_hint().lower();
    if announced > max as u64 {
        return Err(too_large(max));
    }
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken().because(super::client::chain(&error)))?;
        let Ok(chunk) = frame.into_data() else { continue };
        add(&counters.received_bytes, chunk.len());
        if first.len() + whole.len() + chunk.len() > max {
            return Err(too_large(max));
        }
        if first.is_empty() && whole.is_empty() {
            first = chunk;
        } else {
            if whole.is_empty() {
                let room = (announced as usize).min(enough);
                whole.reserve(room.max(first.len() + chunk.len()));
                whole.extend_from_slice(&std::mem::take(&mut first));
            }
            whole.extend_from_slice(&chunk);
        }
        if first.len() + whole.len() > enough && !body.is_end_stream() {
            let some = if whole.is_empty() { first } else { whole.freeze() };
            return Ok(Read::Some(some, body));
        }
    }
    Ok(Read::All(if whole.is_empty() { first } else { whole.freeze() }))
}

/// The answer in a JSON body.
pub(super) fn from_json(bytes: Bytes, id: u64) -> Result<Frame, Fault> {
    if bytes.trim_ascii().is_empty() {
        return Err(garbled("the upstream took the request and gave no answer"));
    }
    let frame = scan(bytes)?;
    if answers(&frame, id) {
        return Ok(frame);
    }
    Err(garbled(match frame.kind() {
        Kind::Result | Kind::Error => "the upstream's answer has another id than the request",
        Kind::Request | Kind::Notification => "the upstream's answer is no response",
    }))
}

/// One message.
pub(super) fn scan(bytes: Bytes) -> Result<Frame, Fault> {
    Frame::scan(bytes)
        .map_err(|error| garbled("the upstream's answer is no valid message").because(error))
}

/// Whether a message answers our request: the id is ours, as the number that we sent, or it is an
/// error without one, which on our own response stream can mean no other request.
pub(super) fn answers(frame: &Frame, id: u64) -> bool {
    match (frame.kind(), frame.id()) {
        (Kind::Request | Kind::Notification, _) => false,
        (Kind::Error, None) => true,
        // What is no number of ours does not read as one: a frame's number is JSON's.
        (_, got) => got.and_then(|got| number(&got)) == Some(id),
    }
}

/// What a response other than 2xx to a request means: the JSON-RPC error in its body, or the fault
/// that its status stands for.
///
/// Decided: 401, 403, 429 and a 503 with `Retry-After` are what the status says even if the body is a JSON-RPC error:
/// the pause and the credential are matters between the upstream and us, the guard must hear of
/// them, and the upstream's sentence about them is not for the agent. The error's code goes to the
/// log.
pub(super) async fn refused_request(
    id: u64,
    head: &Head,
    body: Body,
    counters: &HttpCounters,
) -> Result<Frame, HttpFault> {
    let (failed, error) = read_refusal(head, body, counters).await;
    let is_plain = failed.fault.reason == Reason::UpstreamStatus && head.status.as_u16() >= 400;
    error.filter(|frame| is_plain && answers(frame, id)).ok_or(failed)
}

/// What a response other than 2xx to anything else means.
pub(super) async fn refused(head: &Head, body: Body, counters: &HttpCounters) -> HttpFault {
    read_refusal(head, body, counters).await.0
}

async fn read_refusal(
    head: &Head,
    body: Body,
    counters: &HttpCounters,
) -> (HttpFault, Option<Frame>) {
    let mut fault = of_status(head.status, head.retry_after.as_ref());
    let read = tokio::time::timeout(REFUSAL_TIME, read(body, REFUSAL_MAX, counters)).await;
    let message = read.ok().and_then(Result::ok).and_then(|bytes| Frame::scan(bytes).ok());
    let error = message.filter(|frame| frame.kind() == Kind::Error);
    if let Some(code) = error.as_ref().and_then(Frame::error_code) {
        fault = fault.because(format_args!("JSON-RPC error {code}"));
    }
    let unavailable = head.status == StatusCode::SERVICE_UNAVAILABLE;
    if unavailable && error.as_ref().is_some_and(had_no_effect) {
        fault.delivery = Delivery::Refused;
    }
    (HttpFault { fault, status: Some(head.status.as_u16()) }, error)
}

// Whether the error says so itself, as each refusal of a gateway like this one does.
fn had_no_effect(error: &Frame) -> bool {
    #[derive(Deserialize)]
    struct Said {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        outcome: String,
    }
    serde_json::from_slice::<Said>(&error.outcome())
        .is_ok_and(|said| said.data.outcome == NO_EFFECT)
}

/// The fault that a status stands for. Nothing of the body is in it: an error page may show what
/// is nobody's business.
pub fn of_status(status: StatusCode, retry_after: Option<&HeaderValue>) -> Fault {
    let code = status.as_u16();
    let pause = retry_after
        .and_then(|value| value.to_str().ok())
        .and_then(|value| retry_after::parse(value, SystemTime::now()));
    match code {
        401 | 403 => Fault::new(
            Reason::CredentialRefused,
            Delivery::Refused,
            format!("the upstream refuses the gateway's credential (HTTP {code})"),
        ),
        // The limit is looked at before the work. A pause with 503 is said by proxies too, of an
        // upstream that was at work when it went: nothing is proved.
        429 | 503 if code == 429 || pause.is_some() => Fault::new(
            Reason::Throttled,
            if code == 429 { Delivery::Refused } else { Delivery::Unknown },
            format!("the upstream asks for a pause (HTTP {code})"),
        )
        .retry_after(pause),
        // Said also by a proxy in front of an upstream that is at work, or by one that was: a
        // connection that broke, a time that ran out.
        408 | 500.. => Fault::new(
            Reason::UpstreamStatus,
            Delivery::Unknown,
            format!("the upstream failed with HTTP {code}"),
        ),
        _ => Fault::new(
            Reason::UpstreamStatus,
            Delivery::Refused,
            format!("the upstream answered with HTTP {code}"),
        ),
    }
}

/// The fault of an answer that is none. The upstream may have done what was asked all the same.
pub(super) fn garbled(text: &str) -> Fault {
    Fault::new(Reason::Garbled, Delivery::Unknown, text)
}

/// The fault of an answer that is larger than may be kept. The upstream has done its work by then.
pub(super) fn too_large(max: usize) -> Fault {
    let text = format!("the upstream's answer is larger than {max} bytes (max_message)");
    Fault::new(Reason::TooLarge, Delivery::Unknown, text)
}

pub(super) fn broken() -> Fault {
    let text = "the connection broke before the answer was complete";
    Fault::new(Reason::ConnectionLost, Delivery::Unknown, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_our_id_as_the_number_we_sent() {
        for (text, ours) in [
            (r#"{"jsonrpc":"2.0","id":7,"result":{}}"#, true),
            (r#"{"jsonrpc":"2.0","id":7,"error":{}}"#, true),
            (r#"{"jsonrpc":"2.0","id":null,"error":{}}"#, true),
            (r#"{"jsonrpc":"2.0","error":{}}"#, true),
            (r#"{"jsonrpc":"2.0","id":"7","result":{}}"#, false),
            (r#"{"jsonrpc":"2.0","id":7.0,"result":{}}"#, false),
            (r#"{"jsonrpc":"2.0","id":70,"error":{}}"#, false),
            (r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#, false),
        ] {
            assert_eq!(answers(&Frame::scan(text.into()).unwrap(), 7), ours, "{text}");
        }
    }

    #[test]
    fn statuses_say_what_may_have_happened() {
        let said = |code: u16| {
            let f = of_status(StatusCode::from_u16(code).unwrap(), None);
            format!("{code} {} {:?}: {}", f.reason, f.delivery, f.text)
        };
        let pause = HeaderValue::from_static("1");
        let paused = of_status(StatusCode::SERVICE_UNAVAILABLE, Some(&pause));
        assert_eq!((paused.reason, paused.delivery), (Reason::Throttled, Delivery::Unknown));
        let table: Vec<_> =
            [304, 400, 401, 403, 404, 405, 408, 429, 500, 502, 503, 504].map(said).into();
        insta::assert_snapshot!(table.join("\n"), @r"
        304 upstream_status Refused: the upstream answered with HTTP 304
        400 upstream_status Refused: the upstream answered with HTTP 400
        401 credential_refused Refused: the upstream refuses the gateway's credential (HTTP 401)
        403 credential_refused Refused: the upstream refuses the gateway's credential (HTTP 403)
        404 upstream_status Refused: the upstream answered with HTTP 404
        405 upstream_status Refused: the upstream answered with HTTP 405
        408 upstream_status Unknown: the upstream failed with HTTP 408
        429 throttled Refused: the upstream asks for a pause (HTTP 429)
        500 upstream_status Unknown: the upstream failed with HTTP 500
        502 upstream_status Unknown: the upstream failed with HTTP 502
        503 upstream_status Unknown: the upstream failed with HTTP 503
        504 upstream_status Unknown: the upstream failed with HTTP 504
        ");
    }
}
