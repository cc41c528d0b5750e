//! HTTP+SSE towards an upstream: one event stream on which everything comes, and a POST for each
//! message that goes (2024-11-05 basic/transports, "HTTP with SSE"). The stream is the session:
//! nothing can be taken up again after it, and what was under way has an unknown outcome.
//!
//! The POSTs of requests go side by side, since some servers answer one only when its work is
//! done. A notification goes alone: `initialized` must arrive before what follows it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::Uri;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Unasked;
use super::http::{HttpFault, HttpWire};
use super::pipe::{
    Heard, Inside, LAST_WORDS, Lost, Outgoing, Pipe, PipeCounters, Table, closing, count,
};
use crate::config::secret::Scrubber;
use crate::failure::{Delivery, Fault, Reason};
use crate::protocol::message::{Frame, Kind};

/// Most POSTs at once; further messages wait. A server that takes messages answers a POST in a
/// round trip, and one that answers it when the work is done has fewer calls at once than this.
const POSTS_MAX: usize = 64;
/// How long the POST of a message that nobody waits for may take.
const POST_TIME: Duration = Duration::from_secs(10);
/// How long the response to a request's POST may be behind its answer on the stream. Cutting it
/// off costs the connection, so a moment is worth waiting.
const LINGER: Duration = Duration::from_secs(2);

/// Open the stream and learn where to post. Says nothing yet.
///
/// # Errors
/// [`Reason::ConnectFailed`], or what the upstream's status says; no message was sent.
pub async fn connect(
    wire: HttpWire,
    scrubber: Scrubber,
    counters: Arc<PipeCounters>,
) -> Result<(Pipe, mpsc::Receiver<Unasked>), Fault> {
    let (mut events, endpoint) = wire.open_sse().await?;
    let max = wire.max_message();
    let (pipe, inside, unasked) = Pipe::new(wire.upstream().clone(), max, scrubber, counters);
    tokio::spawn(async move {
        let Inside { table, mut outbox, closing: asked, ended, .. } = inside;
        let door = Arc::new(Door { wire, endpoint, table: table.clone() });
        let mut posts = JoinSet::new();
        let mut alone = false;
        let lost = loop {
            tokio::select! {
                () = asked.cancelled() => break closing(),
                heard = events.next() => match heard {
                    Ok(Some(data)) => {
                        if !table.take(Heard::Whole(data)) {
                            events.unasked();
                        }
                    }
                    Ok(None) => break stream_ended(events.broken.take()),
                    Err(_) => {
                        count(&table.counters.oversize);
                        break Lost::too_large(max);
                    }
                },
                Some(posted) = posts.join_next() => match posted {
                    Ok(Posted { lost: Some(lost), .. }) => break lost,
                    Ok(posted) => alone &= !posted.was_alone,
                    // It holds no lock and nothing in it panics; then nothing is known of it.
                    Err(_) => break stream_ended(None),
                },
                next = outbox.next(), if !alone && posts.len() < POSTS_MAX => {
                    let goes_alone = next.awaited.is_none() && is_notification(&next.message);
                    alone = goes_alone;
                    posts.spawn(door.clone().post(next, goes_alone));
                }
            }
        };
        if asked.is_cancelled() {
            // The session ends with its stream, so these go first.
            let last = async {
                while alone && let Some(Ok(posted)) = posts.join_next().await {
                    alone &= !posted.was_alone;
                }
                while let Some(message) = outbox.aside() {
                    door.clone().post(Outgoing { message, awaited: None }, true).await;
                }
            };
            let _ = tokio::time::timeout(LAST_WORDS, last).await;
        }
        drop(events);
        asked.cancel();
        outbox.close(&table, lost.clone());
        table.fail_all(lost.clone());
        // Only now: what is posted may yet be read, and says so as unknown.
        drop(posts);
        ended.send_replace(Some(lost));
    });
    Ok((pipe, unasked))
}

fn is_notification(message: &Bytes) -> bool {
    Frame::scan(message.clone()).is_ok_and(|frame| frame.kind() == Kind::Notification)
}

fn stream_ended(broken: Option<String>) -> Lost {
    let lost = Lost::new("the upstream's event stream ended");
    Lost { cause: broken.unwrap_or_default(), ..lost }
}

/// Where messages are posted.
struct Door {
    wire: HttpWire,
    endpoint: Uri,
    table: Arc<Table>,
}

/// What became of a POST.
struct Posted {
    was_alone: bool,
    /// The upstream does not know the session any more.
    lost: Option<Lost>,
}

impl Door {
    async fn post(self: Arc<Self>, out: Outgoing, was_alone: bool) -> Posted {
        let post = self.wire.post_to(&self.endpoint, &out.message);
        let posted = match &out.awaited {
            Some((_, slot)) => tokio::select! {
                posted = post => posted,
                // Answered, or given up by its caller.
                () = async { slot.over().await; tokio::time::sleep(LINGER).await } => Ok(()),
            },
            None => tokio::time::timeout(POST_TIME, post).await.unwrap_or_else(|_| {
                let text = "the upstream did not take a message in time";
                Err(Fault::new(Reason::DeadlineExceeded, Delivery::Unknown, text).into())
            }),
        };
        let Err(failed) = posted else { return Posted { was_alone, lost: None } };
        let gone = matches!(failed.status, Some(404 | 410));
        match out.awaited {
            Some((id, _)) => {
                self.table.fail_one(id, if gone { forgotten(failed) } else { failed.fault });
            }
            None => tracing::debug!(upstream = %self.wire.upstream(), cause = %failed.fault.cause,
                "a message was not taken: {}", failed.fault.text),
        }
        let lost = gone.then(|| Lost::new("the upstream no longer knows the session"));
        Posted { was_alone, lost }
    }
}

fn forgotten(failed: HttpFault) -> Fault {
    let text = "the upstream no longer knows the session";
    let status = failed.status.unwrap_or(0);
    Fault::new(Reason::ConnectionLost, failed.fault.delivery, text)
        .because(format_args!("HTTP {status}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
