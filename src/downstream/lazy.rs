//! An answer that is being made: JSON or events, whichever is needed.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::protocol::revision::{Era, Revision};
use crate::protocol::sse;

use super::body::{Events, Pieces};
use super::legacy::{Running, Step};
use super::render::Said;
use super::reply::{Out, events, in_pieces, json_in_two};
use super::session::Session;
use super::{Edge, checks, modern, replay};

/// When a stream is opened for an old client, so that it has something to come back to: long
/// after most answers, before anybody loses patience.
const OPEN_AFTER: Duration = Duration::from_secs(1);

/// The answer as JSON if it comes without notices and soon; as events as soon as there is
/// something to tell, or when it is time for a sign of life. A call of an old session goes on when
/// its stream breaks, and its client may come back for the rest.
pub async fn lazily(
    edge: &Arc<Edge>,
    mut running: Running,
    accepts: checks::Accepts,
    revision: Revision,
    session: Option<&Arc<Session>>,
) -> Out {
    // Without a stream there is no way for notices, nor to ask anything.
    if !accepts.events {
        let Running { work, notices, .. } = running;
        drop(notices);
        return finished(work.await, revision);
    }
    let every = edge.gateway.current.load().config.gateway.keep_alive;
    let open_after = if session.is_some() { every.min(OPEN_AFTER) } else { every };
    let opens = Instant::now() + open_after;
    let mut timer = edge.timers.take();
    let first = loop {
        let step = tokio::select! {
            biased;
            step = running.next_or_offer() => Some(step),
            () = poll_fn(|cx| timer.poll(cx, opens)) => None,
        };
        match step {
            Some(Ok(step)) => break Some(step),
            Some(Err(offer)) if accepts.json && accepts.pieces => {
                if let Some(pieces) = offer.take() {
                    return in_pieces(Pieces::new(running.work, pieces));
                }
            }
            Some(Err(declined)) => drop(declined),
            None => break None,
        }
    };
    drop(timer);
    let mut first = match first {
        Some(Step::End(done)) if accepts.json => return finished(done, revision),
        first => first,
    };
    let ended = running.is_over() || matches!(first, Some(Step::End(_)));
    if let Some(session) = session.filter(|_| !ended) {
        let notice = match first.take() {
            Some(Step::Notice(notice)) => Some(notice),
            _ => None,
        };
        match replay::keep(edge, &session.replay, running, notice) {
            Ok(reader) => {
                let primed = session.revision >= Revision::R2025_11_25;
                return events(reader.events(edge, primed));
            }
            Err((back, notice)) => {
                running = back;
                first = notice.map(Step::Notice);
            }
        }
    }
    events(Events::new(move |tx| async move {
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.reset();
        // A sign of life, if it is that for which the stream was opened.
        let mut event = match first {
            Some(step) => of_step(step),
            None => Some((sse::comment(""), false)),
        };
        while let Some((bytes, last)) = event {
            if tx.send(bytes).await.is_err() || last {
                return;
            }
            event = tokio::select! {
                biased;
                step = running.next() => of_step(step),
                _ = tick.tick() => Some((sse::comment(""), false)),
            };
        }
    }))
}

// The event that says it, and whether it is the last; none where no response is owed.
fn of_step(step: Step) -> Option<(Bytes, bool)> {
    match step {
        Step::Notice(notice) => Some((sse::event(&notice), false)),
        Step::End(said) => said.map(|said| (sse::event(&said.whole()), true)),
    }
}

fn finished(done: Option<Said>, revision: Revision) -> Out {
    match done {
        Some(said) => {
            let code = said.code.filter(|_| revision.era() == Era::Modern);
            let status = code.map_or(200, modern::status_of);
            json_in_two(status, said.head, said.rest)
        }
        // Cancelled: no response is owed; an empty stream ends the exchange
        // (2025-11-25 basic/utilities/cancellation).
        None => events(Events::new(|tx| async move { drop(tx) })),
    }
}
