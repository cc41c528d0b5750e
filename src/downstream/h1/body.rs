//! The body of a request, whoever serves its connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::wire::Left;

use super::io::Shared;

/// How much of a refused request's body is still read, and for how long: enough for an honest
/// client that had begun to send, little for one that goes on.
pub const LINGER_MAX: usize = 1 << 20;
/// See [`LINGER_MAX`].
pub const LINGER_TIME: Duration = Duration::from_secs(1);

/// A body.
pub enum InBody {
    /// All of it, which came with the head; or none.
    Whole(Option<Bytes>),
    /// What comes on a connection of ours.
    Rest(Rest),
    /// What comes on one of hyper's.
    Hyper(Incoming),
}

/// The body of the request that is being answered on a connection.
pub struct Rest(Arc<dyn Source>);

// Without the type of the stream.
trait Source: Send + Sync {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>>;
    fn left(&self) -> Left;
    fn leave(&self);
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Source for Shared<S> {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        self.lock().poll_body(cx)
    }

    fn left(&self) -> Left {
        self.lock().left
    }

    fn leave(&self) {
        self.lock().left_behind = true;
    }
}

impl InBody {
    /// What is still to be read on this connection.
    pub(super) fn rest<S>(io: Arc<Shared<S>>) -> InBody
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        InBody::Rest(Rest(io))
    }

    /// Read on for a while after a refusal, and keep nothing. A connection that is closed with
    /// bytes unread is reset, and the reset can overtake the answer: the client would see a broken
    /// connection and not why.
    pub fn leave(self) {
        match self {
            InBody::Whole(_) => {}
            InBody::Rest(rest) => rest.0.leave(),
            InBody::Hyper(body) => {
                tokio::spawn(tokio::time::timeout(LINGER_TIME, pass_over(body)));
            }
        }
    }
}

async fn pass_over(mut body: Incoming) {
    let mut left = LINGER_MAX;
    while let Some(Ok(frame)) = body.frame().await {
        let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return };
        left = rest;
    }
}

impl Body for InBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            InBody::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            InBody::Rest(rest) => rest.0.poll(cx).map(|b| b.map(|b| b.map(Frame::data))),
            InBody::Hyper(body) => {
                Pin::new(body).poll_frame(cx).map(|f| f.map(|f| f.map_err(io::Error::other)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            InBody::Whole(bytes) => bytes.is_none(),
            InBody::Rest(rest) => rest.0.left().is_over(),
            InBody::Hyper(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            InBody::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            InBody::Rest(rest) => match rest.0.left() {
                Left::Length(left) => SizeHint::with_exact(left),
                Left::Nothing => SizeHint::with_exact(0),
                _ => SizeHint::default(),
            },
            InBody::Hyper(body) => body.size_hint(),
        }
    }
}
