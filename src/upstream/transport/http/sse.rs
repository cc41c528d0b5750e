//! What HTTP+SSE takes of the client: a stream, and POSTs to where its first event says.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::ACCEPT;
use hyper::{Method, Uri};

use crate::failure::{Delivery, Fault, Reason};

use super::answer;
use super::events::Events;
use super::h1::Media;
use super::redirect::{self, Elsewhere};
use super::{EVENTS, HttpFault, HttpWire, POSTED};

/// How much of the body of a POST's response is read, so that its connection can serve the next:
/// servers send a word or nothing.
const TAKEN_MAX: usize = 16 << 10;
/// How long it is waited for.
const TAKEN_TIME: Duration = Duration::from_millis(250);
/// Longest name of the place to post to. It is a path with a session's id.
const ENDPOINT_MAX: usize = 4 << 10;

impl HttpWire {
    pub(crate) fn upstream(&self) -> &Arc<str> {
        &self.0.upstream
    }

    pub(crate) fn max_message(&self) -> usize {
        self.0.max_message
    }

    /// Open the stream, and learn where to post (2024-11-05 basic/transports, "HTTP with SSE").
    pub(crate) async fn open_sse(&self) -> Result<(Events, Uri), Fault> {
        let inner = &*self.0;
        let accept = [(ACCEPT, EVENTS)];
        let ((head, body), moved) =
            inner.send_to(Method::GET, &inner.uri, [&accept, &[], &[]], &Bytes::new()).await?;
        let from = moved.as_ref().unwrap_or(&inner.uri);
        if !head.status.is_success() {
            let failed = answer::refused(&head, body, &inner.counters).await;
            return Err(failed.fault);
        }
        if head.media != Media::Events {
            return Err(no_endpoint("the upstream's answer is no event stream"));
        }
        let mut events = Events::new(body, inner.max_message, inner.counters.clone());
        // Comments and bare ids may come before it.
        let first = loop {
            match events.next_event().await {
                Ok(Some(event)) if event.event.is_none() && event.data.is_empty() => {}
                Ok(Some(event)) => break event,
                Ok(None) | Err(_) => {
                    return Err(no_endpoint("the upstream's event stream ended at once"));
                }
            }
        };
        let named = std::str::from_utf8(&first.data).ok();
        let named = named.filter(|text| text.len() <= ENDPOINT_MAX);
        match named.filter(|_| first.event.as_deref() == Some("endpoint")) {
            None => Err(no_endpoint("the upstream's event stream does not say where to post")),
            Some(named) => match redirect::within(from, named) {
                Ok(endpoint) => Ok((events, endpoint)),
                Err(Elsewhere::OtherOrigin) => Err(no_endpoint(
                    "the upstream's event stream wants messages posted to another origin, which is refused",
                )),
                Err(Elsewhere::Nowhere) => {
                    Err(no_endpoint("the upstream's event stream names no usable place to post to"))
                }
            },
        }
    }

    /// Post a message whose answer comes on the stream. Returns when the upstream has taken it.
    pub(crate) async fn post_to(&self, endpoint: &Uri, message: &Bytes) -> Result<(), HttpFault> {
        let inner = &*self.0;
        let sent = inner.send_to(Method::POST, endpoint, [&POSTED, &[], &[]], message).await?;
        let (head, body) = sent.0;
        if !head.status.is_success() {
            return Err(answer::refused(&head, body, &inner.counters).await);
        }
        let rest = answer::read(body, TAKEN_MAX, &inner.counters);
        let _ = tokio::time::timeout(TAKEN_TIME, rest).await;
        Ok(())
    }
}

fn no_endpoint(text: &str) -> Fault {
    Fault::new(Reason::ConnectFailed, Delivery::NotSent, text)
}
