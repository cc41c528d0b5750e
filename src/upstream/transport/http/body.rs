//! The body of a response, whichever way its connection is kept.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};

use super::h1;

/// A body.
#[derive(Debug)]
pub enum Body {
    /// Of a connection of ours.
    Own(h1::Body),
    /// Of one of hyper's.
    Hyper(Incoming),
}

/// A body that broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// On a connection of ours.
    #[error(transparent)]
    Own(std::io::Error),
    /// On one of hyper's.
    #[error(transparent)]
    Hyper(hyper::Error),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Body::Own(body) => {
                Pin::new(body).poll_frame(cx).map(|f| f.map(|f| f.map_err(BodyError::Own)))
            }
            Body::Hyper(body) => {
                Pin::new(body).poll_frame(cx).map(|f| f.map(|f| f.map_err(BodyError::Hyper)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Own(body) => body.is_end_stream(),
            Body::Hyper(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Own(body) => body.size_hint(),
            Body::Hyper(body) => body.size_hint(),
        }
    }
}
