//! HTTP responses, and what becomes one: the refusals that have a status of their own.

use std::time::Duration;

use bytes::Bytes;
use hyper::body::Body as _;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::{Response, StatusCode};

use crate::failure::{Reason, Refusal};
use crate::protocol::message::Frame;
use crate::protocol::prepared::Prepared;

use super::body::{Events, OutBody, Pieces};
use super::refused::{Refused, label};

/// A response of the endpoint. A body without a `Content-Type` is JSON: see [`IS_JSON`].
pub type Out = Response<OutBody>;

/// When a client that finds everything taken may come back.
const BUSY_TIME: Duration = Duration::from_secs(5);
/// When a client of a stopping gateway may come back: by then another one listens, or this one
/// is gone.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// A request that gets no more than an error: the status, and what the body says.
pub struct Denied {
    /// HTTP status.
    pub status: u16,
    /// Why.
    pub refused: Refused,
    /// The request's method as a label.
    pub method: &'static str,
    id: Bytes,
    retry_after: Option<Duration>,
}

/// Deny with a status, a reason and a sentence.
#[cold]
pub fn deny(status: u16, reason: Reason, text: impl Into<String>) -> Denied {
    Denied::new(status, Refused::new(reason, text))
}

/// All places are taken; the id is the request's, if there is one.
#[cold]
pub fn busy() -> Denied {
    let refusal =
        Refusal::new(Reason::Overloaded, "as many streams or sessions are open as may be")
            .retry_after(BUSY_TIME);
    overloaded(refusal)
}

/// There is no room; the refusal says when to come back.
#[cold]
pub fn overloaded(refusal: Refusal) -> Denied {
    Denied { retry_after: refusal.retry_after, ..Denied::new(503, refusal.into()) }
}

/// Nothing new begins.
#[cold]
pub fn draining() -> Denied {
    let refusal = Refusal::new(Reason::Draining, "the gateway is stopping").retry_after(DRAIN_TIME);
    overloaded(refusal)
}

/// The HTTP method is not for this.
#[cold]
pub fn not_allowed() -> Denied {
    deny(405, Reason::MethodNotAllowed, "this HTTP method is not served here")
}

impl Denied {
    /// Deny with a status and a refusal.
    #[cold]
    pub fn new(status: u16, refused: Refused) -> Denied {
        let method = crate::observe::metrics::OTHER;
        Denied { status, refused, method, id: Bytes::new(), retry_after: None }
    }

    /// The answer to this request.
    #[must_use]
    #[cold]
    pub fn to(self, frame: &Frame) -> Denied {
        self.of((frame.id().unwrap_or_default(), label(frame)))
    }

    /// The answer to the request of this raw id and this method, as a label.
    #[must_use]
    #[cold]
    pub fn of(mut self, (id, method): (Bytes, &'static str)) -> Denied {
        (self.id, self.method) = (id, method);
        self
    }

    /// As a response.
    #[cold]
    pub fn out(&self) -> Out {
        let mut out = json(self.status, self.refused.message(&self.id));
        let headers = out.headers_mut();
        if let Some(after) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs()));
        }
        match self.status {
            401 => {
                let value = HeaderValue::from_static("Bearer realm=\"weirkeeper\"");
                headers.insert(WWW_AUTHENTICATE, value);
            }
            405 => {
                let value = HeaderValue::from_static("POST, GET, DELETE, OPTIONS");
                headers.insert(ALLOW, value);
            }
            _ => {}
        }
        out
    }
}

/// A JSON message.
pub fn json(status: u16, message: Bytes) -> Out {
    json_of(status, OutBody::from(message))
}

/// A JSON message in one or two pieces.
pub fn json_in_two(status: u16, head: Bytes, rest: Bytes) -> Out {
    json_of(status, if rest.is_empty() { head.into() } else { OutBody::Two(head, rest) })
}

/// The response with this id around a result that is kept ready, of which nothing is copied.
pub fn shared(prepared: &Prepared, id: &[u8]) -> Out {
    let (head, rest) = prepared.response(id);
    json_of(200, OutBody::Two(head, rest))
}

fn json_of(status: u16, body: OutBody) -> Out {
    let mut out = Response::new(body);
    *out.status_mut() = StatusCode::from_u16(status).expect("a status of ours");
    out
}

/// The lines of a body that says nothing else of itself: it is JSON. What a consumer gets depends
/// on its key.
pub const IS_JSON: &[u8] = b"content-type: application/json\r\ncache-control: no-store\r\n";

/// Add what [`IS_JSON`] says, for whoever writes no such lines by itself.
pub fn complete(out: &mut Out) {
    if out.body().is_end_stream() || out.headers().contains_key(CONTENT_TYPE) {
        return;
    }
    let headers = out.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

/// A JSON message that is still coming.
pub fn in_pieces(pieces: Pieces) -> Out {
    json(200, Bytes::new()).map(|_| OutBody::Pieces(pieces))
}

/// An event stream.
pub fn events(events: Events) -> Out {
    let mut out = Response::new(OutBody::Events(events));
    let headers = out.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies in front must not collect events.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    out
}

/// No content.
pub fn empty(status: u16) -> Out {
    let mut out = Response::new(OutBody::empty());
    *out.status_mut() = StatusCode::from_u16(status).expect("a status of ours");
    out
}
