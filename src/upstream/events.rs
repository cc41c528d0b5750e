//! How an upstream's changes are heard: a GET stream and subscriptions in an old session, a listen
//! request in the newest revision. What is refused or ends falls back to `refresh`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::protocol::message::{Frame, Kind};
use crate::protocol::meta::ObjectWriter;
use crate::protocol::revision::Era;

use super::keeper::{AbortOnDrop, Ear, heard};
use super::link::{Link, Wire, own_request};
use super::subscriptions;
use super::transport::Unasked;
use super::transport::http::{HttpFault, HttpWire, StreamRefused};

/// Pause before a stream that ended is opened again, unless the upstream names one.
const AGAIN: Duration = Duration::from_secs(5);
/// Least pause before a stream is opened again, whatever the upstream asks for.
const STREAM_PAUSE: Duration = Duration::from_millis(100);
/// Longest.
const STREAM_PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a new listen request may take to be acknowledged before the old one is given up.
const ACK_TIME: Duration = Duration::from_secs(5);
/// Wishes that change within this time make one new listen request.
const GATHER: Duration = Duration::from_millis(20);

/// Hear of changes as long as the link lasts.
pub async fn follow(link: Arc<Link>, ear: Ear) {
    if link.era() == Era::Modern {
        return listen(link, ear).await;
    }
    let wishes = subscriptions::follow(ear.subscriptions.clone(), link.clone());
    let _wishes = AbortOnDrop(tokio::spawn(wishes));
    if let Wire::Http(wire) = &link.wire {
        get_stream(&link, wire, &ear).await;
    }
    std::future::pending::<()>().await;
}

// 2026-07-28 basic/patterns/subscriptions. A request's wishes cannot change: other wishes are
// another request, and the old one goes when the new one is acknowledged, so nothing falls between.
async fn listen(link: Arc<Link>, ear: Ear) {
    let mut changes = ear.subscriptions.changes();
    let mut current: Option<AbortOnDrop> = None;
    let mut asked: BTreeSet<Arc<str>> = BTreeSet::new();
    let mut first = true;
    loop {
        changes.mark_unchanged();
        let uris = if link.agreed.offers("resources.subscribe") {
            ear.subscriptions.wanted(&link.upstream)
        } else {
            BTreeSet::new()
        };
        if first || uris != asked {
            first = false;
            match filter(&link, &uris) {
                Some(filter) => {
                    let acknowledged = Arc::new(Notify::new());
                    let next = listening(link.clone(), ear.clone(), filter, acknowledged.clone());
                    let next = AbortOnDrop(tokio::spawn(next));
                    let _ = tokio::time::timeout(ACK_TIME, acknowledged.notified()).await;
                    current = Some(next);
                }
                None => current = None,
            }
            asked = uris;
        }
        if changes.changed().await.is_err() {
            break;
        }
        tokio::time::sleep(GATHER).await;
    }
    drop(current);
}

fn filter(link: &Link, uris: &BTreeSet<Arc<str>>) -> Option<Bytes> {
    let mut filter = ObjectWriter::new();
    for (capability, key) in [
        ("tools.listChanged", "toolsListChanged"),
        ("prompts.listChanged", "promptsListChanged"),
        ("resources.listChanged", "resourcesListChanged"),
    ] {
        if link.agreed.offers(capability) {
            filter.raw(key, b"true");
        }
    }
    if !uris.is_empty() {
        let uris: Vec<&str> = uris.iter().map(|uri| &**uri).collect();
        filter.value("resourceSubscriptions", &uris);
    }
    let filter = filter.finish();
    (filter != b"{}").then(|| filter.into())
}

async fn listening(link: Arc<Link>, ear: Ear, filter: Bytes, acknowledged: Arc<Notify>) {
    loop {
        let id = link.mint();
        let wish = [("notifications", filter.clone())];
        let message = own_request(Era::Modern, id, "subscriptions/listen", &wish);
        let on_notice = |frame: Frame| {
            if frame.method() == "notifications/subscriptions/acknowledged" {
                acknowledged.notify_one();
            }
            ear.note(&frame);
        };
        let end = link.exchange(id, "subscriptions/listen", None, message, &on_notice, None).await;
        if end.is_ok_and(|a| a.frame.kind() == Kind::Error) {
            // It does not want to.
            acknowledged.notify_one();
            return std::future::pending().await;
        }
        tokio::time::sleep(AGAIN).await;
        // Something may have changed while nobody listened.
        let _ = ear.reload.try_send(());
    }
}

// 2025-11-25 basic/transports, "listening for messages from the server".
async fn get_stream(link: &Arc<Link>, wire: &HttpWire, ear: &Ear) {
    let mut from: Option<String> = None;
    loop {
        let mut pause = AGAIN;
        match wire.stream(&link.headers(""), from.as_deref()).await {
            Ok(mut stream) => {
                while let Ok(Some(frame)) = stream.next().await {
                    match frame.kind() {
                        Kind::Notification => ear.note(&frame),
                        Kind::Request => heard(link, Unasked::Request(frame), ear).await,
                        Kind::Result | Kind::Error => {}
                    }
                }
                from = stream.last_event_id().map(Into::into).or(from);
                pause = stream
                    .retry()
                    .map_or(AGAIN, |asked| asked.clamp(STREAM_PAUSE, STREAM_PAUSE_MAX));
            }
            Err(StreamRefused::Fault(HttpFault { status: Some(404), .. }))
                if link.agreed.session.is_some() =>
            {
                return link.lost();
            }
            // What it cannot go on with it may begin anew.
            Err(refused) if refused.for_good() && from.take().is_none() => return,
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        // Something may have changed while nobody listened.
        let _ = ear.reload.try_send(());
    }
}
