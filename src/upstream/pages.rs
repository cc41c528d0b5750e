//! Pages that an old upstream wants a person to visit (2025-11-25 client/elicitation, "URL mode"):
//! as an error that stands for "not yet", and the notification that a visit is done.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::call::{Asides, Call, Form, Terminal};
use crate::protocol::capability::Askable;
use crate::protocol::error::{ErrorObject, INTERNAL_ERROR, LEGACY_URL_ELICITATION};
use crate::protocol::message::{Frame, Kind, response};
use crate::protocol::meta::{Members, ObjectWriter, at};

/// How long a call waits for the word that its pages were visited, before it is made again: not
/// every upstream says so.
const VISIT_TIME: Duration = Duration::from_secs(10);
/// Most pages whose visit is waited for: each is a person at a browser.
const PAGES_MAX: usize = 256;

/// Who waits to hear that a page was visited, by the upstream's id of it and whose conversation
/// it is.
#[derive(Default)]
pub struct Pages(Mutex<VecDeque<Shown>>);

struct Shown {
    id: Box<str>,
    owner: Option<Arc<str>>,
    whose: Weak<Asides>,
}

/// Most pages that one answer shows: more is no list that a person works through.
const PAGES_OF_ONE_MAX: usize = 16;

impl Pages {
    /// A page is shown to this caller; `page` are the raw params of the elicitation.
    pub fn shown(&self, page: &[u8], asides: &Arc<Asides>, owner: Option<&Arc<str>>) {
        let id = Members::read(page).ok().and_then(|m| Some(m.get_str("elicitationId")?.into()));
        let Some(id) = id else { return };
        let mut pages = self.0.lock().expect("no panic while held");
        let whose = Arc::downgrade(asides);
        // The same page may be shown again.
        pages.retain(|shown| {
            shown.whose.strong_count() > 0 && !(shown.id == id && shown.whose.ptr_eq(&whose))
        });
        if pages.len() >= PAGES_MAX {
            pages.pop_front();
        }
        pages.push_back(Shown { id, owner: owner.cloned(), whose });
    }

    /// The caller of this answer, if it says that pages have to be visited first, reads that
    /// itself.
    pub fn wanted(&self, call: &Call, terminal: &Terminal, owner: Option<&Arc<str>>) {
        if let Some(asides) = &call.asides {
            self.all_shown(terminal, asides, owner);
        }
    }

    // How many of the answer's pages will be told of.
    fn all_shown(
        &self,
        terminal: &Terminal,
        asides: &Arc<Asides>,
        owner: Option<&Arc<str>>,
    ) -> usize {
        let Some(frame) = not_yet(terminal) else { return 0 };
        let outcome = frame.outcome();
        let pages = elicitations(&outcome).unwrap_or_default();
        let pages = pages.iter().take(PAGES_OF_ONE_MAX).map(|page| page.get().as_bytes());
        let named = pages.filter(|page| at(page, &["elicitationId"]).is_some());
        named.map(|page| self.shown(page, asides, owner)).count()
    }

    /// Wait a while for the word that the pages of this answer were visited: a person who agreed
    /// to go there needs a moment, and the word makes it a short one.
    pub fn visits(
        &self,
        terminal: &Terminal,
        owner: Option<&Arc<str>>,
    ) -> impl Future<Output = ()> + use<> {
        let asides = Arc::<Asides>::default();
        let pages = self.all_shown(terminal, &asides, owner);
        async move {
            let all = async {
                for _ in 0..pages {
                    asides.next().await;
                }
            };
            if pages > 0 {
                let _ = tokio::time::timeout(VISIT_TIME, all).await;
            }
        }
    }

    /// A visit is done: told to whom the page was shown, and to nobody else.
    pub fn visited(&self, notice: &Frame, owner: Option<&str>) {
        let Some(params) = notice.params() else { return };
        let Ok(members) = Members::read(&params) else { return };
        let Some(id) = members.get_str("elicitationId") else { return };
        let mut pages = self.0.lock().expect("no panic while held");
        let it = |shown: &Shown| *shown.id == *id && shown.owner.as_deref() == owner;
        let Some(place) = pages.iter().position(it) else { return };
        if let Some(asides) = pages.remove(place).and_then(|shown| shown.whose.upgrade()) {
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
        // Nothing but pages: this client may be asked no more.
        members.get_str("mode").filter(|mode| mode == "url")?;
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
