//! The headers in which a modern HTTP upstream gets a call's arguments once more, whichever way the
//! caller came; and what to do when it refuses them.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};

use crate::call::Call;
use crate::catalog::slice::Slice;
use crate::failure::{Delivery, Fault, Reason};
use crate::protocol::error::HEADER_MISMATCH;
use crate::protocol::message::{Frame, message};
use crate::protocol::method::ListKind;
use crate::protocol::param::{self, Param, Unfit};
use crate::protocol::revision::Era;

use super::Upstream;
use super::errand::Errand;
use super::idempotency::Key;
use super::keeper::Note;
use super::link::{Answered, Link, Wire};

pub use super::transport::http::Header;

/// How long a refused call waits for the lists to be fetched again: the keeper's own pauses, and
/// a list that takes its time. Never more than half of what the call has left.
const RELIST_TIME: Duration = Duration::from_secs(5);

/// The headers of a call: what its tool mirrors, from the body; and the caller's own that mirror
/// nothing we know of.
pub fn headers(params: &[Param], call: &Call, key: Option<&Key>) -> Result<Vec<Header>, Unfit> {
    let mut body = call.frame.params().unwrap_or_default();
    // One that was filled in may be mirrored like what the agent said.
    if let Some(key) = key.filter(|_| !params.is_empty()) {
        body = key.params(body);
    }
    let mut out = param::headers(params, &body)?;
    for (name, value) in &call.strays {
        let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>())
        else {
            continue;
        };
        // What the body says goes before what a header says, also where the body says nothing.
        if !params.iter().any(|p| p.header == name) {
            out.push((name, value));
        }
    }
    Ok(out)
}

/// The fault that an answer to a call of a tool amounts to if it refuses our headers. What other
/// methods mirror no list can change.
pub fn refused(link: &Link, method: &str, answered: &Answered) -> Option<Fault> {
    let theirs = link.era() == Era::Modern
        && method == "tools/call"
        && matches!(link.wire, Wire::Http(_))
        && answered.frame.error_code() == Some(i64::from(HEADER_MISMATCH));
    // With another status it may be anybody's word, and proves nothing.
    let delivery = if answered.status == 400 { Delivery::Refused } else { Delivery::Unknown };
    theirs.then(|| {
        let text = "the upstream refused the headers that go with the call, which it did not \
                    carry out; its tools may have changed: list them again, then call again";
        let text = if delivery == Delivery::Refused {
            text
        } else {
            "the upstream answered that it refuses the headers that go with the call"
        };
        Fault::new(Reason::HeaderMismatch, delivery, text).because("code -32020")
    })
}

/// Other headers for a call whose `sent` ones were refused, if the upstream's newest list asks for
/// others. It is fetched again for that, and for all who list tools later.
pub async fn remade(
    upstream: &Upstream,
    errand: &Errand<'_>,
    sent: &[Header],
) -> Option<Vec<Header>> {
    let other = |slice: &Option<Arc<Slice>>| {
        let list = slice.as_ref()?.list(ListKind::Tools);
        let tool = list.items.iter().find(|tool| tool.key == *errand.route.native())?;
        let params = param::read(&tool.schema()?).ok()?;
        headers(&params, errand.asking.call, errand.key).ok().filter(|headers| headers != sent)
    };
    let mut lists = upstream.lists.subscribe();
    // The route may be older than what has been fetched since.
    let known = other(&lists.borrow_and_update());
    if known.is_some() {
        return known;
    }
    let told = message(None, "notifications/tools/list_changed", None);
    let told = Frame::scan(told).expect("a message of our own");
    // Without room the lists are about to be fetched anyway.
    let _ = upstream.connector.notes.try_send(Note { frame: told, owner: None });
    let patience = RELIST_TIME.min(errand.asking.deadline.remaining() / 2);
    tokio::time::timeout(patience, lists.changed()).await.ok()?.ok()?;
    other(&lists.borrow_and_update())
}
