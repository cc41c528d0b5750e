//! Pages that an old upstream wants a person to visit (2025-11-25 client/elicitation, "URL mode"):
//! as an error that stands for "not yet", and the notification that a visit is done.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::call::{Asides, Call, Form, Terminal};
use crate::protocol::capability::Askable;
use crate::protocol::error::{ErrorObject, INTERNAL_ERROR, LEGACY_URL_ELICITATION};
use crate::protocol::message::{Frame, Kind, response};
use crate::protocol::meta::{Members, ObjectWriter};

/// Most pages whose visit is waited for: each is a person at a browser.
const PAGES_MAX: usize = 256;

/// Whose session waits to hear that a page was visited, by the upstream's id of it.
#[derive(Default)]
pub struct Pages(Mutex<VecDeque<(Box<str>, Weak<Asides>)>>);

impl Pages {
    /// A page is shown to this caller; `page` are the raw params of the elicitation.
    pub fn shown(&self, page: &[u8], asides: &Arc<Asides>) {
        let id = Members::read(page).ok().and_then(|m| Some(m.get_str("elicitationId")?.into()));
        let Some(id) = id else { return };
        let mut pages = self.0.lock().expect("no panic while held");
        pages.retain(|(_, whose)| whose.strong_count() > 0);
        if pages.len() >= PAGES_MAX {
            pages.pop_front();
        }
        pages.push_back((id, Arc::downgrade(asides)));
    }

    /// The caller of this answer, if it says that pages have to be visited first, reads that
    /// itself.
    pub fn wanted(&self, call: &Call, terminal: &Terminal) {
        let (Some(asides), Some(frame)) = (&call.asides, not_yet(terminal)) else { return };
        let outcome = frame.outcome();
        for page in elicitations(&outcome).unwrap_or_default() {
            self.shown(page.get().as_bytes(), asides);
        }
    }

    /// A visit is done: told to whom the page was shown, and to nobody else.
    pub fn visited(&self, notice: &Frame) {
        let Some(params) = notice.params() else { return };
        let Ok(members) = Members::read(&params) else { return };
        let Some(id) = members.get_str("elicitationId") else { return };
        let mut pages = self.0.lock().expect("no panic while held");
        let Some(at) = pages.iter().position(|(page, _)| **page == *id) else { return };
        if let Some(asides) = pages.remove(at).and_then(|(_, whose)| whose.upgrade()) {
            asides.tell(notice.bytes().clone());
        }
    }
}

// 2025-11-25 client/elicitation, "URL elicitation required error".
fn not_yet(terminal: &Terminal) -> Option<&Frame> {
    let Terminal::Answer(frame, _) = terminal else { return None };
    (frame.error_code() == Some(i64::from(LEGACY_URL_ELICITATION))).then_some(frame)
}

/// The pages, as questions of the newest revision, that an old upstream wants visited before it
/// takes the call, if that is what it says and the caller can be asked so and does not read it
/// itself.
pub fn to_show(call: &Call, terminal: &Terminal) -> Option<Vec<Bytes>> {
    let frame = not_yet(terminal)?;
    if call.form == Form::Plain || !call.askable.has(Askable::URL) {
        return None;
    }
    let outcome = frame.outcome();
    let pages = elicitations(&outcome)?.into_iter().map(|page| {
        let members = Members::read(page.get().as_bytes()).ok()?;
        let mut out = ObjectWriter::new();
        for (key, value) in members.0.iter().filter(|(key, _)| key != "elicitationId") {
            out.raw(key, value.get().as_bytes());
        }
        Some(out.finish().into())
    });
    pages.collect::<Option<Vec<_>>>().filter(|pages| !pages.is_empty())
}

/// What an old caller is told who cannot be shown a page that the upstream wants visited: where it
/// is, for the person to open it by other means.
pub fn unshown(call: &Call, terminal: &Terminal) -> Option<Terminal> {
    let frame = not_yet(terminal)?;
    if call.form != Form::Plain || call.askable.has(Askable::URL) {
        return None;
    }
    let outcome = frame.outcome();
    let pages = elicitations(&outcome).unwrap_or_default();
    let at = |page: &&RawValue| {
        Some(Members::read(page.get().as_bytes()).ok()?.get_str("url")?.into_owned())
    };
    let urls: Vec<String> = pages.iter().filter_map(at).collect();
    let text = format!(
        "the upstream wants a page visited before it takes the call, and the client cannot show \
         it; open it and call again: {}",
        urls.join(" ")
    );
    let error = ErrorObject::new(INTERNAL_ERROR, text).to_raw();
    let message = response(b"0", Kind::Error, error.get().as_bytes());
    Some(Terminal::Answer(Frame::scan(message).ok()?, Form::Canonical))
}

// The raw `data.elicitations` of an error.
fn elicitations(error: &[u8]) -> Option<Vec<&RawValue>> {
    let data = Members::read(error).ok()?.get("data")?.get().as_bytes();
    let list = Members::read(data).ok()?.get("elicitations")?.get();
    serde_json::from_str(list).ok()
}
