//! How an upstream's changes are heard: a GET stream and subscriptions in an old session, a listen
//! request in the newest revision. What is refused or ends falls back to `refresh`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use crate::protocol::message::{Frame, Kind};
use crate::protocol::meta::ObjectWriter;
use crate::protocol::revision::Era;
use crate::protocol::task;

use super::keeper::{AbortOnDrop, Ear, heard};
use super::link::{Link, Unanswered, Wire, own_request};
use super::subscriptions::{self, Subject};
use super::transport::Unasked;
use super::transport::http::{HttpFault, HttpWire, StreamRefused};

/// Pause before a stream that ended is opened again, unless the upstream names one.
const AGAIN: Duration = Duration::from_secs(5);
/// Least pause before a stream is opened again, whatever the upstream asks for.
const STREAM_PAUSE: Duration = Duration::from_millis(100);
/// Longest.
const STREAM_PAUSE_MAX: Duration = Duration::from_secs(60);
/// So many streams in a row without a word are opened again as soon as the upstream wishes.
const HASTY_MAX: u32 = 3;
/// How long a new listen request may take to be acknowledged before the old one is given up.
const ACK_TIME: Duration = Duration::from_secs(5);
/// Wishes that change within this time make one new listen request.
const GATHER: Duration = Duration::from_millis(20);

/// Hear of changes as long as the link lasts.
pub async fn follow(link: Arc<Link>, ear: Ear) {
    if link.era() == Era::Modern {
        // What tasks tell is asked for on its own: an upstream that refuses an id, perhaps of a
        // task that it has forgotten, must not silence the rest.
        let tasks = listen(link.clone(), ear.clone(), Subject::Task);
        let _tasks = AbortOnDrop(tokio::spawn(tasks));
        return listen(link, ear, Subject::Resource).await;
    }
    let wishes = subscriptions::follow(ear.subscriptions.clone(), link.clone());
    let _wishes = AbortOnDrop(tokio::spawn(wishes));
    if let Wire::Http(wire) = &link.wire {
        get_stream(&link, wire, &Hears::Keeper(ear)).await;
    }
    std::future::pending::<()>().await;
}

/// Hear what an old upstream says on the GET stream of a conversation that is not the keeper's,
/// and hand it to whoever hears that conversation.
pub async fn follow_leased(link: Arc<Link>) {
    if let Wire::Http(wire) = &link.wire {
        get_stream(&link, wire, &Hears::Lease(link.unasked())).await;
    }
}

enum Hears {
    Keeper(Ear),
    Lease(mpsc::Sender<Unasked>),
}

impl Hears {
    async fn hear(&self, link: &Link, message: Unasked) {
        match self {
            Hears::Keeper(ear) => heard(link, message, ear).await,
            Hears::Lease(listener) => {
                let _ = listener.send(message).await;
            }
        }
    }

    fn missed(&self) {
        // The keeper's own stream is told of changes as well.
        if let Hears::Keeper(ear) = self {
            ear.missed();
        }
    }
}

// 2026-07-28 basic/patterns/subscriptions. A request's wishes cannot change: other wishes are
// another request, and the old one goes when the new one is acknowledged, so nothing falls between.
async fn listen(link: Arc<Link>, ear: Ear, subject: Subject) {
    let mut changes = ear.subscriptions.changes();
    let mut current: Option<AbortOnDrop> = None;
    let mut asked: BTreeSet<Arc<str>> = BTreeSet::new();
    let mut first = true;
    loop {
        changes.mark_unchanged();
        let capabilities = link.agreed.capabilities.as_bytes();
        let offered = match subject {
            Subject::Resource => link.agreed.offers("resources.subscribe"),
            Subject::Task => task::has_extension(capabilities, task::EXTENSION),
        };
        let wishes = offered.then(|| ear.subscriptions.wanted(subject, &link.upstream));
        let wishes = wishes.unwrap_or_default();
        if first || wishes != asked {
            first = false;
            match filter(&link, subject, &wishes) {
                Some(filter) => {
                    let acknowledged = Arc::new(Notify::new());
                    let late = Arc::new(AtomicBool::new(false));
                    let heard = (acknowledged.clone(), late.clone());
                    let next = listening(link.clone(), ear.clone(), filter, heard);
                    let next = AbortOnDrop(tokio::spawn(next));
                    if tokio::time::timeout(ACK_TIME, acknowledged.notified()).await.is_err() {
                        // The old one goes, and nobody listens until the new one is heard.
                        late.store(true, Ordering::Relaxed);
                    }
                    current = Some(next);
                }
                None => current = None,
            }
            asked = wishes;
        }
        if changes.changed().await.is_err() {
            break;
        }
        tokio::time::sleep(GATHER).await;
    }
    drop(current);
}

fn filter(link: &Link, subject: Subject, wishes: &BTreeSet<Arc<str>>) -> Option<Bytes> {
    let mut filter = ObjectWriter::new();
    for (capability, key) in [
        ("tools.listChanged", "toolsListChanged"),
        ("prompts.listChanged", "promptsListChanged"),
        ("resources.listChanged", "resourcesListChanged"),
    ] {
        if subject == Subject::Resource && link.agreed.offers(capability) {
            filter.raw(key, b"true");
        }
    }
    if !wishes.is_empty() {
        let key = match subject {
            Subject::Resource => "resourceSubscriptions",
            Subject::Task => "taskIds",
        };
        let wishes: Vec<&str> = wishes.iter().map(|wish| &**wish).collect();
        filter.value(key, &wishes);
    }
    let filter = filter.finish();
    (filter != b"{}").then(|| filter.into())
}

async fn listening(
    link: Arc<Link>,
    ear: Ear,
    filter: Bytes,
    (acknowledged, late): (Arc<Notify>, Arc<AtomicBool>),
) {
    let mut failures = 0;
    // A request before this one ended, or was never heard.
    let mut gap = false;
    loop {
        let id = link.mint();
        let wish = [("notifications", filter.clone())];
        let message = own_request(Era::Modern, id, "subscriptions/listen", &wish);
        let open = AtomicBool::new(false);
        let on_notice = |frame: Frame| {
            if frame.method() == "notifications/subscriptions/acknowledged" {
                open.store(true, Ordering::Relaxed);
                acknowledged.notify_one();
                if gap || late.swap(false, Ordering::Relaxed) {
                    ear.missed();
                }
            }
            ear.note(&frame, link.owner.as_deref());
        };
        let end = link.exchange(id, "subscriptions/listen", None, message, &on_notice, None).await;
        gap = true;
        if open.into_inner() {
            failures = 0;
        }
        failures += 1;
        let asked = match end {
            Ok(answered) if answered.frame.kind() == Kind::Error => {
                // It does not want to.
                acknowledged.notify_one();
                return std::future::pending().await;
            }
            Ok(_) => None,
            Err(Unanswered { fault, .. }) => fault.retry_after,
        };
        tokio::time::sleep(pause(failures, asked)).await;
    }
}

// Grows while nothing comes of it; what the upstream asks for goes before, within bounds.
fn pause(failures: u32, asked: Option<Duration>) -> Duration {
    let own = AGAIN.saturating_mul(1 << failures.saturating_sub(1).min(6)).min(STREAM_PAUSE_MAX);
    match asked {
        // A wish for haste is no wish when nothing ever comes.
        Some(asked) if failures > HASTY_MAX => asked.max(own).min(STREAM_PAUSE_MAX),
        Some(asked) => asked.clamp(STREAM_PAUSE, STREAM_PAUSE_MAX),
        None => own,
    }
}

// 2025-11-25 basic/transports, "listening for messages from the server".
async fn get_stream(link: &Arc<Link>, wire: &HttpWire, hears: &Hears) {
    let mut from: Option<String> = None;
    let mut failures = 0;
    // For a while no stream was open: what was said meanwhile is heard only by going on where
    // one ended.
    let mut gap = false;
    loop {
        let asked = match wire.stream(link.headers(), from.as_deref()).await {
            Ok(mut stream) => {
                if gap && from.is_none() {
                    hears.missed();
                }
                gap = true;
                let mut said = false;
                while let Ok(Some(frame)) = stream.next().await {
                    said = true;
                    match frame.kind() {
                        Kind::Notification => {
                            hears.hear(link, Unasked::Notification(frame)).await;
                        }
                        Kind::Request => hears.hear(link, Unasked::Request(frame)).await,
                        Kind::Result | Kind::Error => {}
                    }
                }
                // One that ends again and again without a word is asked for less often.
                failures = if said { 1 } else { failures + 1 };
                from = stream.last_event_id().map(Into::into).or(from);
                stream.retry()
            }
            Err(StreamRefused::Fault(HttpFault { status: Some(404), .. }))
                if link.agreed.session.is_some() =>
            {
                return link.lost();
            }
            // What it cannot go on with it may begin anew.
            Err(refused) if refused.for_good() => {
                if from.take().is_none() {
                    return;
                }
                continue;
            }
            Err(StreamRefused::NotOffered) => return,
            Err(StreamRefused::Fault(HttpFault { fault, .. })) => {
                failures += 1;
                gap = true;
                fault.retry_after
            }
        };
        tokio::time::sleep(pause(failures, asked)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_the_upstream_s_wish_goes_before_within_bounds() {
        let own = [1, 2, 3, 4, 5, 9].map(|n| pause(n, None).as_secs());
        assert_eq!(own, [5, 10, 20, 40, 60, 60]);
        let asked = [0, 7, 3600].map(|s| pause(3, Some(Duration::from_secs(s))));
        assert_eq!(asked, [STREAM_PAUSE, Duration::from_secs(7), STREAM_PAUSE_MAX]);
        let later = [0, 3600].map(|s| pause(4, Some(Duration::from_secs(s))));
        assert_eq!(later, [Duration::from_secs(40), STREAM_PAUSE_MAX]);
    }
}
