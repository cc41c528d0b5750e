//! An answer that is being made: JSON or events, whichever is needed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{MissedTickBehavior, interval};

use crate::protocol::revision::{Era, Revision};
use crate::protocol::sse;

use super::body::Events;
use super::legacy::{Running, last_word};
use super::render::Said;
use super::reply::{Out, events, json};
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
    running: Running,
    accepts: checks::Accepts,
    revision: Revision,
    session: Option<&Arc<Session>>,
) -> Out {
    let Running { mut work, mut notices } = running;
    // Without a stream there is no way for notices, nor to ask anything.
    if !accepts.events {
        drop(notices);
        return finished(work.await, revision);
    }
    let every = edge.gateway.current.load().config.gateway.keep_alive;
    let open_after = if session.is_some() { every.min(OPEN_AFTER) } else { every };
    let mut told = true;
    let first = tokio::select! {
        biased;
        done = &mut work => {
            // Notices that came together with the end still go first.
            match last_word(&mut notices).await {
                Some(notice) => Some((notice, Some(done))),
                None if accepts.json => return finished(done, revision),
                None => {
                    told = false;
                    Some((Bytes::new(), Some(done)))
                }
            }
        }
        Some(notice) = notices.recv() => Some((notice, None)),
        () = tokio::time::sleep(open_after) => None,
    };
    if let (Some(session), None | Some((_, None))) = (session, &first) {
        let running = Running { work, notices };
        let first = first.as_ref().map(|(notice, _)| notice.clone());
        match replay::keep(edge, &session.replay, running, first) {
            Ok(reader) => {
                let primed = session.revision >= Revision::R2025_11_25;
                return events(reader.events(edge, primed));
            }
            Err(running) => Running { work, notices } = running,
        }
    }
    events(Events::new(move |tx| async move {
        let mut done = None;
        match first {
            Some((notice, end)) => {
                if told && tx.send(sse::event(&notice)).await.is_err() {
                    return;
                }
                done = end;
            }
            None => {
                let _ = tx.send(sse::comment("")).await;
            }
        }
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.reset();
        let end = loop {
            if let Some(end) = done.take() {
                break end;
            }
            tokio::select! {
                biased;
                Some(notice) = notices.recv() => {
                    if tx.send(sse::event(&notice)).await.is_err() {
                        return;
                    }
                }
                end = &mut work => break end,
                _ = tick.tick() => {
                    if tx.send(sse::comment("")).await.is_err() {
                        return;
                    }
                }
            }
        };
        while let Some(notice) = last_word(&mut notices).await {
            if tx.send(sse::event(&notice)).await.is_err() {
                return;
            }
        }
        if let Some(said) = end {
            let _ = tx.send(sse::event(&said.message)).await;
        }
    }))
}

fn finished(done: Option<Said>, revision: Revision) -> Out {
    match done {
        Some(said) => {
            let code = said.code.filter(|_| revision.era() == Era::Modern);
            json(code.map_or(200, modern::status_of), said.message)
        }
        // Cancelled: no response is owed; an empty stream ends the exchange
        // (2025-11-25 basic/utilities/cancellation).
        None => events(Events::new(|tx| async move { drop(tx) })),
    }
}
