//! A request that the edge itself refuses: said to the caller, the log and the metrics with one
//! word.

use bytes::Bytes;

use crate::failure::Reason;
use crate::observe::record::{Outcome, Record};
use crate::protocol::error::{ErrorObject, INVALID_REQUEST};
use crate::protocol::message::{Frame, FrameError, Kind, response};
use crate::protocol::method::{METHODS, Method};

use super::Edge;

/// The consumer's name in records of requests that nobody is known to have sent.
pub const NOBODY: &str = "_unknown";

/// What the caller is told, and why.
#[derive(Debug)]
pub struct Refused {
    /// Why, in one word.
    pub reason: Reason,
    error: ErrorObject,
}

impl Refused {
    /// A refusal with the code that goes with its reason.
    #[cold]
    pub fn new(reason: Reason, text: impl Into<String>) -> Refused {
        Refused::with_code(reason, reason.code(), text)
    }

    /// The same, with a code that says more than the reason does.
    #[cold]
    pub fn with_code(reason: Reason, code: i32, text: impl Into<String>) -> Refused {
        let data = serde_json::json!({"reason": reason.as_str()});
        Refused { reason, error: ErrorObject::new(code, text).with_data(data) }
    }

    /// The same, with another detail.
    #[must_use]
    pub fn with(mut self, key: &str, value: serde_json::Value) -> Refused {
        if let Some(data) = self.error.data.as_mut().and_then(serde_json::Value::as_object_mut) {
            data.insert(key.into(), value);
        }
        self
    }

    /// More bytes than are taken.
    #[cold]
    pub fn too_large(text: impl Into<String>) -> Refused {
        Refused::with_code(Reason::TooLarge, INVALID_REQUEST, text)
    }

    /// A method that this revision does not have, or not here.
    #[cold]
    pub fn unknown_method(method: &str) -> Refused {
        let method: String = method.chars().take(64).collect();
        Refused::new(Reason::UnknownMethod, format!("Method not found: {method}"))
    }

    /// Its JSON-RPC code.
    pub fn code(&self) -> i32 {
        self.error.code
    }

    /// The response message.
    #[cold]
    pub fn message(&self, id: &[u8]) -> Bytes {
        response(id, Kind::Error, self.error.to_raw().get().as_bytes())
    }

    /// Count it and write its line.
    #[cold]
    pub fn note(
        &self,
        edge: &Edge,
        consumer: &str,
        method: &'static str,
        transport: &'static str,
        revision: &'static str,
    ) {
        Record::open(&edge.gateway.observe, &consumer.into(), method, transport, revision, None)
            .finish(Outcome::Refused(self.reason));
    }
}

impl From<FrameError> for Refused {
    fn from(error: FrameError) -> Refused {
        Refused::with_code(Reason::InvalidMessage, error.code(), error.to_string())
    }
}

impl From<crate::failure::Refusal> for Refused {
    fn from(refusal: crate::failure::Refusal) -> Refused {
        let reason = refusal.reason;
        Refused { reason, error: crate::failure::Failure::from(refusal).to_error() }
    }
}

/// The message's method as it may stand in a label: one of the table's, else `_other`.
pub fn label(frame: &Frame) -> &'static str {
    let known = METHODS.iter().find(|m: &&Method| m.name == frame.method());
    known.map_or(crate::observe::metrics::OTHER, |m| m.name)
}
