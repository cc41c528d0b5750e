//! An answer that is being made: JSON or events, whichever is needed.

use bytes::Bytes;
use tokio::time::{MissedTickBehavior, interval};

use crate::protocol::revision::{Era, Revision};
use crate::protocol::sse;

use super::body::Events;
use super::http::{Out, events, json};
use super::legacy::Running;
use super::{Edge, checks, modern};

/// The answer as JSON if it comes without notices and soon; as events as soon as there is
/// something to tell, or when it is time for a sign of life.
pub async fn lazily(
    edge: &Edge,
    running: Running,
    accepts: checks::Accepts,
    revision: Revision,
) -> Out {
    let Running { mut work, mut notices } = running;
    // Without a stream there is no way for notices, nor to ask anything.
    if !accepts.events {
        drop(notices);
        return finished(work.await, revision);
    }
    let every = edge.gateway.current.load().config.gateway.keep_alive;
    let mut told = true;
    let first = tokio::select! {
        biased;
        done = &mut work => {
            // Notices that came together with the end still go first.
            match notices.try_recv() {
                Ok(notice) => Some((notice, Some(done))),
                Err(_) if accepts.json => return finished(done, revision),
                Err(_) => {
                    told = false;
                    Some((Bytes::new(), Some(done)))
                }
            }
        }
        Some(notice) = notices.recv() => Some((notice, None)),
        () = tokio::time::sleep(every) => None,
    };
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
        while let Ok(notice) = notices.try_recv() {
            if tx.send(sse::event(&notice)).await.is_err() {
                return;
            }
        }
        if let Some(message) = end {
            let _ = tx.send(sse::event(&message)).await;
        }
    }))
}

fn finished(done: Option<Bytes>, revision: Revision) -> Out {
    match done {
        Some(message) if revision.era() == Era::Modern => json(modern::status(&message), message),
        Some(message) => json(200, message),
        // Cancelled: no response is owed; an empty stream ends the exchange
        // (2025-11-25 basic/utilities/cancellation).
        None => events(Events::new(|tx| async move { drop(tx) })),
    }
}
