//! Response bodies: bytes at hand, or an event stream that does its own work.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

/// Events that wait for the socket; the work behind them waits then.
const EVENTS_MAX: usize = 16;

/// A response body.
pub enum OutBody {
    /// All of it.
    Full(Option<Bytes>),
    /// Events as they come.
    Events(Events),
}

/// An event stream and the work that writes it. The work runs as part of the body: when the
/// client goes away hyper drops the body, and with it the work and the call behind it. That is
/// what cancellation means in the newest revision (2026-07-28 basic/patterns/cancellation).
pub struct Events {
    work: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    rx: mpsc::Receiver<Bytes>,
}

impl Events {
    /// A stream written by `work`, which gets the sending end.
    pub fn new<F>(work: impl FnOnce(mpsc::Sender<Bytes>) -> F) -> Events
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (tx, rx) = mpsc::channel(EVENTS_MAX);
        Events { work: Some(Box::pin(work(tx))), rx }
    }
}

impl OutBody {
    /// No content.
    pub fn empty() -> OutBody {
        OutBody::Full(None)
    }
}

impl From<Bytes> for OutBody {
    fn from(bytes: Bytes) -> OutBody {
        OutBody::Full((!bytes.is_empty()).then_some(bytes))
    }
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            OutBody::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            OutBody::Events(events) => {
                if events.work.as_mut().is_some_and(|work| work.as_mut().poll(cx).is_ready()) {
                    events.work = None;
                }
                events.rx.poll_recv(cx).map(|b| b.map(|b| Ok(Frame::data(b))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, OutBody::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            OutBody::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            OutBody::Events(_) => SizeHint::default(),
        }
    }
}
