//! The stream of an old host's session, on which the gateway speaks unasked.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::failure::Reason;
use crate::protocol::message::Kind;
use crate::upstream::transport::http::{EventStream, StreamRefused};

use super::Bridge;
use super::questions::STREAM;
use super::session::Live;

/// Pause before the session's stream is opened again, where the gateway names none.
const REOPEN: Duration = Duration::from_millis(250);
/// Longest such pause. Nobody waits for it as for an answer, and it goes on for as long as the
/// gateway is away.
const REOPEN_MAX: Duration = Duration::from_secs(5);
/// Shortest and longest pause that the gateway may name: it cannot have us ask in a hot loop, nor
/// keep the host from its notices for good.
const RETRY: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(300);
/// A stream that lived so long was no failed attempt.
const SETTLED: Duration = Duration::from_secs(5);

fn bounded(pause: Duration) -> Duration {
    pause.clamp(*RETRY.start(), *RETRY.end())
}

impl Bridge {
    /// Keep the session's stream open, on which the gateway speaks unasked.
    pub async fn attend(self: Arc<Self>) {
        let mut open = self.home.open.subscribe();
        loop {
            let live = open.borrow_and_update().clone();
            let attended = async {
                if let Some(live) = &live {
                    self.stream_of(live).await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = attended => {}
                changed = open.changed() => if changed.is_err() { return },
            }
            self.withdraw(STREAM);
        }
    }

    async fn stream_of(&self, live: &Arc<Live>) {
        let mut last: Option<String> = None;
        let mut pause = REOPEN;
        // Whether nothing can have been missed when the stream is opened next.
        let mut smooth = true;
        loop {
            match self.wire.stream(&live.headers, last.as_deref()).await {
                Ok(mut stream) => {
                    self.rose();
                    if !smooth {
                        self.withdraw(STREAM);
                        self.restore(live).await;
                    }
                    let begun = Instant::now();
                    self.hear(&mut stream).await;
                    last = stream.last_event_id().map(str::to_owned).or(last);
                    // A gateway that names a pause ends the stream on purpose, to be polled.
                    smooth = stream.retry().is_some() && last.is_some();
                    pause = match stream.retry() {
                        Some(pause) => bounded(pause),
                        None if begun.elapsed() > SETTLED => REOPEN,
                        None => (pause * 2).min(REOPEN_MAX),
                    };
                }
                Err(StreamRefused::Fault(failed)) if failed.status == Some(404) && live.named => {
                    if self.renew(live).await.is_ok() {
                        return;
                    }
                    pause = REOPEN_MAX;
                }
                // The gateway has forgotten that event, or does not resume.
                Err(refused) if refused.for_good() && last.is_some() => {
                    (last, smooth) = (None, false);
                    continue;
                }
                Err(StreamRefused::Fault(failed))
                    if failed.fault.reason == Reason::CredentialRefused =>
                {
                    self.fell(&failed.fault, failed.status);
                    (pause, smooth) = (REOPEN_MAX, false);
                }
                Err(refused) if refused.for_good() => return,
                Err(refused) => {
                    if let StreamRefused::Fault(failed) = refused {
                        self.fell(&failed.fault, failed.status);
                    }
                    smooth = false;
                    pause = (pause * 2).min(REOPEN_MAX);
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn hear(&self, stream: &mut EventStream) {
        while let Ok(Some(frame)) = stream.next().await {
            match frame.kind() {
                Kind::Request => self.ask(STREAM, &frame).await,
                Kind::Notification => self.notice(STREAM, &frame),
                // Answers come with their requests.
                Kind::Result | Kind::Error => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_that_the_gateway_names_is_no_hot_loop_and_no_year() {
        assert_eq!(bounded(Duration::ZERO), Duration::from_millis(100));
        assert_eq!(bounded(Duration::from_secs(3)), Duration::from_secs(3));
        assert_eq!(bounded(Duration::from_secs(365 * 86_400)), Duration::from_secs(300));
    }
}
