//! The answer as the heart gets it: checked, its addresses made public, otherwise untouched.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::call::{Call, Form, Terminal};
use crate::catalog::view::Route;
use crate::failure::{Delivery, Fault, Reason};
use crate::guard::{Guard, Signal};
use crate::protocol::address::{UriHolder, uri_edits};
use crate::protocol::message::{Frame, Kind};
use crate::protocol::meta::{Members, key};
use crate::protocol::revision::Era;
use crate::protocol::splice::Edit;
use crate::protocol::splice::Splice;
use crate::protocol::task::{self, Tasks};

use super::tasks;

#[derive(Deserialize)]
struct Shallow<'a> {
    #[serde(borrow, default, rename = "resultType")]
    result_type: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "isError")]
    is_error: Option<&'a RawValue>,
}

/// How much of a tool's error result is searched for signs of throttling.
pub(super) const THROTTLE_SCAN_MAX: usize = 4 << 10;

/// What an answer amounts to.
pub struct Arrived {
    /// The terminal.
    pub terminal: Terminal,
    /// A tool result with `isError`.
    pub tool_error: bool,
    /// It is no end yet: the upstream wants to know something first.
    pub asks: bool,
    /// What the guard should know.
    pub signal: Signal,
}

/// Check an upstream's answer and make its addresses public.
pub fn accept(
    call: &Call,
    guard: &Guard,
    route: &Route,
    era: Era,
    frame: Frame,
) -> Result<Arrived, Fault> {
    if frame.kind() == Kind::Error {
        return Ok(Arrived {
            terminal: Terminal::Answer(frame, Form::Canonical),
            tool_error: false,
            asks: false,
            signal: Signal::Fine,
        });
    }
    let garbled = |what: &str| {
        Fault::new(Reason::Garbled, Delivery::Unknown, format!("the upstream's answer {what}"))
    };
    let outcome = frame.outcome();
    let (result_type, is_error) = if frame.index().is_some() {
        (frame.part_text("resultType"), frame.part_text("isError"))
    } else {
        let shallow: Shallow<'_> =
            serde_json::from_slice(&outcome).map_err(|_| garbled("has no valid result object"))?;
        let [result_type, is_error] = [shallow.result_type, shallow.is_error]
            .map(|value| value.map(|value| value.get().as_bytes()));
        (result_type, is_error)
    };
    // 2026-07-28 basic/index: an absent resultType is `complete`, an unknown one is invalid.
    match result_type {
        None | Some(b"\"complete\"" | b"\"input_required\"" | b"\"task\"") => {}
        Some(_) => return Err(garbled("has an unknown resultType")),
    }
    let asks = result_type == Some(b"\"input_required\"");
    let tool_error = is_error == Some(b"true");
    let signal = if tool_error && says_throttled(&outcome, guard) {
        Signal::Throttled(None)
    } else {
        Signal::Fine
    };
    let frame = match UriHolder::of_result(call.method.name) {
        Some(holder) if frame.may_name_uris() => {
            let edits = uri_edits(holder, &outcome, &|native| route.public_uri(native));
            if edits.is_empty() { frame } else { rewritten(&frame, edits)? }
        }
        _ => frame,
    };
    let frame = tasks::renamed(call, frame);
    let form = if era == Era::Modern { Form::Canonical } else { Form::Plain };
    Ok(Arrived { terminal: Terminal::Answer(frame, form), tool_error, asks, signal })
}

fn rewritten(frame: &Frame, edits: Vec<Edit>) -> Result<Frame, Fault> {
    let at = frame.outcome_span().expect("a result has an outcome").start;
    let mut s = Splice::new();
    for (range, with) in edits {
        s.replace(range.start + at..range.end + at, with);
    }
    Frame::scan(s.apply(frame.bytes())).map_err(|e| {
        Fault::new(Reason::Garbled, Delivery::Unknown, "the answer cannot be rewritten").because(e)
    })
}

pub(super) fn says_throttled(result: &[u8], guard: &Guard) -> bool {
    let beginning = &result[..result.len().min(THROTTLE_SCAN_MAX)];
    guard.means_throttling(&String::from_utf8_lossy(beginning))
}

/// Levels of log messages, most verbose first (any revision, server/utilities/logging).
pub const LOG_LEVELS: [&str; 8] =
    ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];

/// A notification that belongs to a running call, as its caller gets it; `None` if it is not for
/// the caller.
pub fn notice(call: &Call, upstream: &str, frame: &Frame) -> Option<Bytes> {
    let params = frame.params()?;
    let members = Members::read(&params).ok()?;
    let at = frame.params_span()?.start;
    let mut s = Splice::new();
    let place = |raw: &RawValue| {
        let r = crate::protocol::splice::range_of(&params, raw.get().as_bytes());
        r.start + at..r.end + at
    };
    match frame.method() {
        "notifications/progress" => {
            // The upstream was given our token; the caller gets its own back, text and all.
            let own = call.meta.progress_token.as_deref()?;
            s.replace(place(members.get(key::PROGRESS_TOKEN)?), own.as_bytes());
        }
        "notifications/message" => {
            let wanted = call.meta.log_level.as_deref()?;
            let level = members.get_str("level")?;
            let rank = |l: &str| LOG_LEVELS.iter().position(|x| *x == l);
            if rank(&level)? < rank(wanted)? {
                return None;
            }
            if let Some(logger) = members.get("logger") {
                let name = members.get_str("logger")?;
                let text = serde_json::to_vec(&format!("{upstream}/{name}")).ok()?;
                s.replace(place(logger), text);
            }
        }
        _ => return None,
    }
    if call.tasks != Tasks::Asked {
        let to = call.task.as_ref().map(|task| &*task.public);
        let other = task::related(&params, to);
        if other != params {
            let edited = Frame::scan(s.apply(frame.bytes())).ok()?;
            let mut s = Splice::new();
            let now = task::related(&edited.params()?, to);
            s.replace(edited.params_span()?, now.to_vec());
            return Some(s.apply(edited.bytes()));
        }
    }
    Some(s.apply(frame.bytes()))
}
