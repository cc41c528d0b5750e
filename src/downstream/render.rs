//! A terminal as the caller's revision says it.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::call::{Form, Terminal};
use crate::protocol::error::{
    INTERNAL_ERROR, INVALID_PARAMS, LEGACY_RESOURCE_NOT_FOUND, LEGACY_URL_ELICITATION,
    MISSING_CLIENT_CAPABILITY, is_reserved_unknown, tells_modern,
};
use crate::protocol::form::{CACHE_SCOPE, RESULT_TYPE, TTL_MS, cuts, to_canonical, to_plain};
use crate::protocol::message::{Frame, Kind, response};
use crate::protocol::meta::{Members, ObjectWriter};
use crate::protocol::method::{AddressField, Method};
use crate::protocol::older;
use crate::protocol::revision::{Era, Revision};
use crate::protocol::splice::Edit;

/// A response message, and what its carrier must know of it.
pub struct Said {
    /// The message, or its beginning.
    pub head: Bytes,
    /// The rest of a long one, as its upstream sent it: nothing of it was copied.
    pub rest: Bytes,
    /// The code of an error that is about the caller's request itself; HTTP has a status for it.
    pub code: Option<i32>,
}

impl From<Bytes> for Said {
    fn from(message: Bytes) -> Said {
        Said { head: message, rest: Bytes::new(), code: None }
    }
}

impl Said {
    /// The message in one piece.
    pub fn whole(self) -> Bytes {
        if self.rest.is_empty() { self.head } else { [self.head, self.rest].concat().into() }
    }
}

/// The response message with the caller's id.
pub fn render(terminal: Terminal, id: &[u8], method: &Method, revision: Revision) -> Said {
    let era = revision.era();
    match terminal {
        Terminal::Own(result, form) => {
            response(id, Kind::Result, &in_form(&result, form, revision, method)).into()
        }
        Terminal::Prepared(prepared) => prepared.whole(id).into(),
        Terminal::Error(error) => {
            let mut error = error;
            // A resource that is not there has a code of its own in the old revisions
            // (2025-11-25 server/resources, "error handling").
            if era == Era::Legacy
                && method.address == AddressField::Uri
                && error.data.as_ref().is_some_and(|d| d["reason"] == "unknown_name")
            {
                error.code = LEGACY_RESOURCE_NOT_FOUND;
            }
            let message = response(id, Kind::Error, error.to_raw().get().as_bytes());
            Said { code: Some(error.code), ..message.into() }
        }
        // It was said.
        Terminal::Passed(_) => Bytes::new().into(),
        Terminal::Answer(frame, _) if frame.kind() == Kind::Error => {
            // Of an upstream's errors only what its caller lacks is about the caller.
            let lacks = |code| match i32::try_from(code) {
                Ok(MISSING_CLIENT_CAPABILITY) => true,
                Ok(LEGACY_URL_ELICITATION) => era == Era::Modern,
                _ => false,
            };
            let code = frame.error_code().is_some_and(lacks).then_some(MISSING_CLIENT_CAPABILITY);
            let message = match mapped_error(&frame.outcome(), era, method) {
                Some(error) => response(id, Kind::Error, &error),
                None => frame.with_id(id),
            };
            Said { code, ..message.into() }
        }
        Terminal::Answer(frame, form) => {
            if let Some(edits) = edits(&frame, form, revision, method) {
                let (head, rest) = frame.with_id_in_two(id, edits);
                return Said { head, rest, code: None };
            }
            let result = frame.outcome();
            let said = in_form(&result, form, revision, method);
            if said.as_ptr() == result.as_ptr() && said.len() == result.len() {
                return frame.with_id(id).into();
            }
            with_outcome(&frame, &said, id).into()
        }
    }
}

// The edits on an answer that make it the caller's, where all that matters is known from its
// index: nothing has to be looked for. `None`: it takes a closer look.
fn edits(frame: &Frame, form: Form, revision: Revision, method: &Method) -> Option<Vec<Edit>> {
    let index = frame.index()?;
    let at = frame.outcome_span()?;
    match (form, revision.era()) {
        (Form::Canonical, Era::Modern) => Some(Vec::new()),
        (Form::Plain, Era::Modern) => {
            if method.cacheable || frame.part(RESULT_TYPE).is_some() {
                return None;
            }
            let comma = if index.members().is_empty() { "" } else { "," };
            let with = format!("\"{RESULT_TYPE}\":\"complete\"{comma}");
            Some(vec![(at.start + 1..at.start + 1, with.into())])
        }
        (form, Era::Legacy) => {
            if !older::keeps(method.name, frame, revision) {
                return None;
            }
            if form == Form::Plain {
                return Some(Vec::new());
            }
            let cuts = cuts(frame.bytes(), index.members(), &[RESULT_TYPE, TTL_MS, CACHE_SCOPE]);
            Some(cuts.into_iter().map(|cut| (cut, Vec::new())).collect())
        }
    }
}

// The answer with another result and another id; what else stands in the envelope stays.
fn with_outcome(frame: &Frame, result: &Bytes, id: &[u8]) -> Bytes {
    let mut s = crate::protocol::splice::Splice::new();
    s.replace(frame.id_span().expect("a result has an id"), id.to_vec());
    s.replace(frame.outcome_span().expect("a result has a result"), result.to_vec());
    s.apply(frame.bytes())
}

fn in_form(result: &Bytes, form: Form, revision: Revision, method: &Method) -> Bytes {
    match (form, revision.era()) {
        (Form::Plain, Era::Modern) => to_canonical(result, method.cacheable),
        (Form::Canonical, Era::Modern) => result.clone(),
        (Form::Canonical, Era::Legacy) => to_plain(&older::result(method.name, result, revision)),
        (Form::Plain, Era::Legacy) => older::result(method.name, result, revision),
    }
}

#[derive(Deserialize)]
struct Code<'a> {
    code: i64,
    #[serde(borrow)]
    message: &'a RawValue,
}

// Codes that mean nothing, or something else, in the caller's revision; `None` keeps the error as
// it came.
fn mapped_error(error: &[u8], era: Era, method: &Method) -> Option<Vec<u8>> {
    let code: Code<'_> = serde_json::from_slice(error).ok()?;
    let resource = method.address == AddressField::Uri;
    let new = match (era, i32::try_from(code.code)) {
        (Era::Modern, Ok(LEGACY_RESOURCE_NOT_FOUND)) => INVALID_PARAMS,
        (Era::Legacy, Ok(INVALID_PARAMS)) if resource && says_not_found(code.message.get()) => {
            LEGACY_RESOURCE_NOT_FOUND
        }
        // Who could be shown the pages was; this one did not declare it.
        (Era::Modern, Ok(LEGACY_URL_ELICITATION)) => {
            return Some(lacks_pages(code.message));
        }
        // What the caller lacks the caller must hear; the upstream was told what it declared.
        (Era::Modern, Ok(MISSING_CLIENT_CAPABILITY)) => return None,
        // The other modern codes speak of our own request to the upstream, not of the caller's.
        _ if tells_modern(code.code) => INTERNAL_ERROR,
        (Era::Modern, _) if is_reserved_unknown(code.code) => INTERNAL_ERROR,
        _ => return None,
    };
    let members = Members::read(error).ok()?;
    let mut out = ObjectWriter::new();
    for (k, v) in &members.0 {
        if k == "code" {
            out.value("code", &new);
        } else {
            out.raw(k, v.get().as_bytes());
        }
    }
    Some(out.finish())
}

// 2026-07-28 basic/index: the error says which capability it takes.
fn lacks_pages(message: &RawValue) -> Vec<u8> {
    let needed = serde_json::json!({"requiredCapabilities": {"elicitation": {"url": {}}}});
    ObjectWriter::new()
        .value("code", &MISSING_CLIENT_CAPABILITY)
        .raw("message", message.get().as_bytes())
        .value("data", &needed)
        .finish()
}

fn says_not_found(message: &str) -> bool {
    let message = message.to_lowercase();
    message.contains("not found") || message.contains("unknown resource")
}

#[cfg(test)]
mod pieces;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::method;

    fn answer(text: &str, form: Form) -> Terminal {
        Terminal::Answer(Frame::scan(Bytes::copy_from_slice(text.as_bytes())).unwrap(), form)
    }

    fn show(terminal: Terminal, method: &str, revision: Revision) -> String {
        let m = method::find(method, revision).unwrap();
        String::from_utf8(render(terminal, b"\"c\"", m, revision).whole().to_vec()).unwrap()
    }

    #[test]
    fn an_answer_keeps_every_byte_but_the_id_within_one_era() {
        let text = r#"{ "x":1.10, "jsonrpc":"2.0","id":  7,"result":{"content":[],"n":1e400} }"#;
        assert_eq!(
            show(answer(text, Form::Plain), "tools/call", Revision::R2025_06_18),
            r#"{ "x":1.10, "jsonrpc":"2.0","id":  "c","result":{"content":[],"n":1e400} }"#
        );
    }

    #[test]
    fn across_eras_only_the_era_s_own_members_come_and_go() {
        let plain = r#"{"jsonrpc":"2.0","id":7,"result":{"content":[],"n":1.50}}"#;
        let modern = show(answer(plain, Form::Plain), "tools/call", Revision::LATEST);
        assert!(
            modern.contains(r#""resultType":"complete""#) && modern.contains("1.50"),
            "{modern}"
        );
        let canonical =
            r#"{"jsonrpc":"2.0","id":7,"result":{"resultType":"complete","content":[],"n":1.50}}"#;
        let old = show(answer(canonical, Form::Canonical), "tools/call", Revision::R2024_11_05);
        assert!(!old.contains("resultType") && old.contains("1.50"), "{old}");
    }

    #[test]
    fn codes_are_said_in_the_caller_s_words() {
        let error = |code: i32| {
            format!(
                r#"{{"jsonrpc":"2.0","id":7,"error":{{"code":{code},"message":"Resource not found","data":{{"a":1.0}}}}}}"#
            )
        };
        let modern =
            |c| show(answer(&error(c), Form::Canonical), "resources/read", Revision::LATEST);
        let old =
            |c| show(answer(&error(c), Form::Canonical), "resources/read", Revision::R2025_11_25);
        assert!(modern(-32002).contains("-32602") && modern(-32002).contains("1.0"));
        assert!(old(-32602).contains("-32002"));
        assert!(modern(-32020).contains("-32603"));
        assert!(modern(-32050).contains("-32603"));
        assert!(modern(-7).contains("-7"));
    }
}
