//! An answer whose stream ended before it, fetched from where the stream ended.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::protocol::message::Frame;
use crate::upstream::transport::{OnNotice, Unasked};

use super::outcome::{HttpFault, RequestError, StreamEnd};
use super::{Header, HttpWire, StreamRefused};

/// Pause before the stream is asked for again, where the upstream names none: as long as a
/// restarting process or a proxy's hiccup takes, short beside any deadline.
const PAUSE: Duration = Duration::from_millis(500);
/// Least pause, whatever the upstream asks for.
const LEAST_PAUSE: Duration = Duration::from_millis(50);
/// So many streams in a row that bring nothing new end it: the upstream has forgotten the answer.
const BARREN_MAX: u32 = 5;

impl HttpWire {
    /// Go on with the answer to `id` after its stream ended at an event that had an id
    /// (2025-11-25 basic/transports, "resumability and redelivery"; a server may end a stream
    /// early on purpose, to be polled). Nothing is sent twice: the stream is asked for, not the
    /// request. The time is the caller's to limit.
    ///
    /// # Errors
    /// When the upstream does not give the rest: the end it was, or what it sent instead.
    pub async fn resume(
        &self,
        id: u64,
        headers: &[Header],
        mut end: StreamEnd,
        on_notice: OnNotice<'_>,
        unasked: &mpsc::Sender<Unasked>,
    ) -> Result<Frame, RequestError> {
        let mut barren = 0;
        while let Some(from) = end.last_event_id.clone().filter(|_| barren < BARREN_MAX) {
            tokio::time::sleep(end.retry.unwrap_or(PAUSE).max(LEAST_PAUSE)).await;
            barren += 1;
            let mut stream = match self.stream(headers, Some(&from)).await {
                Ok(stream) => stream,
                Err(refused) if refused.for_good() => break,
                Err(StreamRefused::Fault(failed)) => {
                    end.broken = Some(failed.fault.cause);
                    continue;
                }
                Err(StreamRefused::NotOffered) => break,
            };
            let events = &mut stream.events;
            let found = self.0.await_answer(events, id, [headers, &[]], on_notice, unasked).await;
            let status = end.status;
            match found.map_err(|fault| HttpFault { fault, status: Some(status) })? {
                Some(frame) => return Ok(frame),
                None => {
                    end.retry = events.retry.or(end.retry);
                    end.broken = events.broken.take();
                    if let Some(seen) = events.last_event_id.take().filter(|seen| *seen != from) {
                        end.last_event_id = Some(seen);
                        barren = 0;
                    }
                }
            }
        }
        Err(RequestError::StreamEnded(end))
    }
}
