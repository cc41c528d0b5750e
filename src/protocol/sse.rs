//! Event streams (WHATWG HTML, "server-sent events"): the words both edges use.
//!
//! [`Parser`] takes chunks of any size and gives [`Event`]s; the functions here write them. What
//! is written parses to the same again, however the bytes are cut on the way; that is a property
//! test.

mod parser;

use std::borrow::Cow;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

pub use parser::{EventTooLarge, Parser};

/// One event: a run of lines up to a blank one, in which at least one field was understood.
///
/// Its data may be empty: an event that only primes the id, or only sets `retry`, carries no
/// message and must not be read as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// `event:`; see [`Event::is_message`].
    pub event: Option<Cow<'static, str>>,
    /// `id:`; an empty one takes back what an earlier event said.
    pub id: Option<String>,
    /// `retry:`, the pause before the reader should come back.
    pub retry: Option<Duration>,
    /// The `data:` lines, joined by line feeds.
    pub data: Bytes,
}

impl Event {
    /// Whether it is of the type that carries messages: `message`, which is also meant when no
    /// type is named. Other types belong to extensions that we don't know.
    pub fn is_message(&self) -> bool {
        self.event.as_deref().is_none_or(|name| name.is_empty() || name == MESSAGE)
    }
}

/// The type of events that carry messages.
pub const MESSAGE: &str = "message";

/// A message as one event.
pub fn event(message: &Bytes) -> Bytes {
    event_with(message, None, Some(MESSAGE))
}

/// Data as one event, with an id and a type. Line breaks in the data make several `data:` lines,
/// which a reader joins by line feeds; in JSON a line break is white space, so a message keeps its
/// meaning.
pub fn event_with(data: &Bytes, id: Option<&str>, event: Option<&str>) -> Bytes {
    let names = id.map_or(0, str::len) + event.map_or(0, str::len);
    let mut out = BytesMut::with_capacity(data.len() + names + 32);
    field(&mut out, "event", event);
    field(&mut out, "id", id);
    let mut rest: &[u8] = data;
    loop {
        out.put_slice(b"data: ");
        let end = memchr::memchr2(b'\n', b'\r', rest);
        out.put_slice(&rest[..end.unwrap_or(rest.len())]);
        out.put_u8(b'\n');
        let Some(end) = end else { break };
        let pair = rest[end..].starts_with(b"\r\n");
        rest = &rest[end + 1 + usize::from(pair)..];
    }
    out.put_u8(b'\n');
    out.freeze()
}

/// An event without a message, which gives the reader an id to resume from before anything has
/// happened, and the pause before it does (2025-11-25 basic/transports, "sending messages").
pub fn priming(id: &str, retry: Option<Duration>) -> Bytes {
    let mut out = BytesMut::with_capacity(id.len() + 48);
    field(&mut out, "id", Some(id));
    if let Some(retry) = retry {
        field(&mut out, "retry", Some(&retry.as_millis().to_string()));
    }
    out.put_slice(b"data: \n\n");
    out.freeze()
}

/// The pause before the reader should come back, with nothing else.
pub fn retry(pause: Duration) -> Bytes {
    Bytes::from(format!("retry: {}\n\n", pause.as_millis()))
}

/// A comment: a sign of life that means nothing.
pub fn comment(text: &str) -> Bytes {
    let mut out = BytesMut::with_capacity(text.len() + 4);
    out.put_slice(b": ");
    put_line(&mut out, text);
    out.put_slice(b"\n\n");
    out.freeze()
}

fn field(out: &mut BytesMut, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        out.put_slice(name.as_bytes());
        out.put_slice(b": ");
        put_line(out, value);
        out.put_u8(b'\n');
    }
}

// A line break inside a name or id would begin a field of its own choice; it is left out. So is
// NUL, for which a reader must drop the whole id.
fn put_line(out: &mut BytesMut, text: &str) {
    for part in text.split(['\n', '\r', '\0']) {
        out.put_slice(part.as_bytes());
    }
}

#[cfg(test)]
mod tests;
