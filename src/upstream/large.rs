//! A large answer is passed on while it comes, if its caller takes it so: the gateway keeps no more
//! of it than is on its way.
//!
//! All that belongs to the call stays in force until the last byte: its place, its deadline, the
//! breaker's admission, its record. The deadline moves with each piece that comes. While the
//! caller is behind, the clock stands still and the place serves others: the edge lets go of who
//! reads nothing at all, and who reads slowly must not keep others from the upstream.
//!
//! What has begun to leave is never tried again, whatever the call is.

use tokio::sync::mpsc;

use crate::call::{Passed, Piece, Terminal};
use crate::failure::{Delivery, Fault, Reason};
use crate::guard::Signal;
use crate::protocol::flow::{Flow, Odd, Rules};
use crate::protocol::message::Frame;
use crate::protocol::revision::Era;
use crate::protocol::task::Tasks;

use super::errand::{Errand, Extra};
use super::inbound::{self, Arrived};
use super::transport::http::Large;

/// What became of it.
pub enum Outcome {
    /// It has to be looked at as a whole.
    Whole(Frame),
    /// Its caller has got it, or a part of it.
    Passed(Arrived),
}

/// Whether a large answer to this request may be passed on while it comes. What asks for a task
/// may get one, and the rest of that is a conversation.
pub fn may_be(errand: &Errand<'_>, extra: &Extra) -> bool {
    let call = errand.asking.call;
    call.task.is_none()
        && call.tasks != Tasks::Asked
        && extra.members.is_empty()
        && !extra.tasks
        && matches!(call.method.name, "tools/call" | "resources/read" | "prompts/get")
}

/// Pass on the answer to the request that was sent with `id` to an upstream of `era`.
///
/// # Errors
/// When it is read as a whole, and is none.
pub async fn pass(
    mut large: Large,
    errand: &Errand<'_>,
    era: Era,
    id: u64,
) -> Result<Outcome, Fault> {
    let call = errand.asking.call;
    let (asked, own) = (id.to_string(), call.frame.id().unwrap_or_default());
    let map = |native: &str| errand.route.public_uri(native);
    let mut flow = Flow::new(Rules {
        asked: asked.as_bytes(),
        id: &own,
        method: call.method,
        from: era,
        to: call.revision,
        map: &map,
    });
    let goes = flow.push(large.head()).is_ok() && flow.can_begin();
    let to = if goes && errand.may_pass() {
        errand.goes_alone();
        errand.asking.notices.offer().await
    } else {
        None
    };
    let Some(to) = to else {
        drop(flow);
        return large.whole().await.map(Outcome::Whole);
    };
    flow.begin();
    let beginning = beginning(large.head());
    large.forget_head();
    let mut bytes = 0;
    let end = pump(&mut flow, &mut large, errand, &to, &mut bytes).await;
    let (tool_error, broken) = match end {
        Ok(tool_error) => (tool_error, None),
        Err(fault) => (false, Some(fault)),
    };
    let signal = match &broken {
        Some(fault) => Signal::Broken(fault.reason),
        None if tool_error && inbound::says_throttled(&beginning, errand.asking.guard) => {
            Signal::Throttled(None)
        }
        None => Signal::Fine,
    };
    let terminal = Terminal::Passed(Passed { bytes, broken });
    Ok(Outcome::Passed(Arrived { terminal, tool_error, asks: false, signal }))
}

// To the end; whether that says it is an error of the tool.
async fn pump(
    flow: &mut Flow<'_>,
    large: &mut Large,
    errand: &Errand<'_>,
    to: &mpsc::Sender<Piece>,
    bytes: &mut usize,
) -> Result<bool, Fault> {
    let deadline = errand.asking.deadline;
    loop {
        let ready = flow.take();
        if !ready.is_empty() {
            *bytes += ready.len();
            hand_on(Piece::Bytes(ready), errand, to).await?;
        }
        let chunk = tokio::select! {
            biased;
            chunk = large.next() => chunk?,
            () = to.closed() => return Err(gone()),
        };
        let Some(chunk) = chunk else { break };
        deadline.extend();
        flow.push(&chunk).map_err(garbled)?;
    }
    let tool_error = flow.finish().map_err(garbled)?;
    let rest = flow.take();
    *bytes += rest.len();
    hand_on(Piece::Bytes(rest), errand, to).await?;
    hand_on(Piece::End, errand, to).await?;
    Ok(tool_error)
}

async fn hand_on(piece: Piece, errand: &Errand<'_>, to: &mpsc::Sender<Piece>) -> Result<(), Fault> {
    let piece = match to.try_send(piece) {
        Ok(()) => return Ok(()),
        Err(mpsc::error::TrySendError::Closed(_)) => return Err(gone()),
        Err(mpsc::error::TrySendError::Full(piece)) => piece,
    };
    // What is waited for is the caller.
    let _aside = errand.asking.guard.asking(errand.asking.deadline);
    to.send(piece).await.map_err(|_| gone())
}

fn garbled(odd: Odd) -> Fault {
    let text = "the upstream's answer turned out to be no valid message";
    Fault::new(Reason::Garbled, Delivery::Unknown, text).because(odd)
}

fn gone() -> Fault {
    let text = "the client went away while the answer was passed on";
    Fault::new(Reason::Cancelled, Delivery::Unknown, text)
}

// Where a tool's error would say that it means throttling.
fn beginning(head: &[u8]) -> Vec<u8> {
    let result = memchr::memmem::find(head, b"\"result\"").unwrap_or(0);
    head[result..].iter().take(inbound::THROTTLE_SCAN_MAX).copied().collect()
}
