//! What can come of a message sent over HTTP.

use std::time::Duration;

use hyper::header::HeaderValue;

use crate::failure::{Delivery, Fault, Reason};
use crate::protocol::message::Frame;

use super::events::Rest;
use super::large::Large;

/// The answer to a request.
#[derive(Debug)]
pub struct Answer {
    /// The message: a result or an error. Its id is ours; an error may have none.
    pub frame: Frame,
    /// The HTTP status it came with; not 2xx only with an error.
    pub status: u16,
    /// `Mcp-Session-Id` of the response, marked sensitive.
    pub session: Option<HeaderValue>,
    /// What the upstream may still send on the answer's event stream, if it has not ended yet.
    /// Dropping it closes the connection; [`Rest::drain`] gives it back to the pool.
    pub rest: Option<Rest>,
}

/// What comes of a request.
#[derive(Debug)]
pub enum Came {
    /// The answer.
    Answer(Answer),
    /// The beginning of a large one, with a status of 2xx.
    Large(Large),
}

/// A fault, and the HTTP status behind it: 404 may mean a lost session, 400, 404 and 405 an old
/// peer, which is for the link to know.
#[derive(Clone, Debug)]
pub struct HttpFault {
    /// What went wrong.
    pub fault: Fault,
    /// The HTTP status, if the response had begun.
    pub status: Option<u16>,
}

impl From<Fault> for HttpFault {
    fn from(fault: Fault) -> HttpFault {
        HttpFault { fault, status: None }
    }
}

impl From<HttpFault> for Fault {
    fn from(failed: HttpFault) -> Fault {
        failed.fault
    }
}

/// Why a request has no answer.
#[derive(Debug)]
pub enum RequestError {
    /// A fault.
    Fault(HttpFault),
    /// The event stream ended or broke before the answer. For a modern upstream that is the end
    /// of the request; an old one may be asked for the rest with [`super::HttpWire::stream`].
    StreamEnded(StreamEnd),
}

impl RequestError {
    /// The fault it is when nothing is resumed.
    pub fn into_fault(self) -> Fault {
        match self {
            RequestError::Fault(failed) => failed.fault,
            RequestError::StreamEnded(end) => end.into_fault(),
        }
    }

    /// The HTTP status, if the response had begun.
    pub fn status(&self) -> Option<u16> {
        match self {
            RequestError::Fault(failed) => failed.status,
            RequestError::StreamEnded(end) => Some(end.status),
        }
    }
}

impl From<HttpFault> for RequestError {
    fn from(failed: HttpFault) -> RequestError {
        RequestError::Fault(failed)
    }
}

/// Where an event stream ended before the answer.
#[derive(Debug)]
pub struct StreamEnd {
    /// The last event id seen: from where an old upstream can go on. Without one it can't.
    pub last_event_id: Option<String>,
    /// The pause that the upstream wants before it is asked; a year at most.
    pub retry: Option<Duration>,
    /// The HTTP status of the stream.
    pub status: u16,
    /// Why it ended, for the log; `None` if the upstream ended it in good order.
    pub broken: Option<String>,
}

impl StreamEnd {
    /// The fault it is when nothing is resumed. The upstream had begun, so what it did is unknown.
    pub fn into_fault(self) -> Fault {
        let text = "the upstream's event stream ended before its answer";
        let fault = Fault::new(Reason::ConnectionLost, Delivery::Unknown, text);
        match self.broken {
            Some(cause) => fault.because(cause),
            None => fault,
        }
    }
}

/// Why there is no stream.
#[derive(Debug)]
pub enum StreamRefused {
    /// The upstream has none and will not have one (405; 204, which tells a reader of events not
    /// to come back).
    NotOffered,
    /// Not now.
    Fault(HttpFault),
}

impl StreamRefused {
    /// Whether asking again is of no use as long as the session lasts: the upstream has no stream,
    /// or refuses with a status that names no passing state.
    pub fn for_good(&self) -> bool {
        match self {
            StreamRefused::NotOffered => true,
            StreamRefused::Fault(failed) => failed
                .status
                .is_some_and(|status| status < 500 && !matches!(status, 408 | 409 | 425 | 429)),
        }
    }
}
