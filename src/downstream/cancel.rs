//! The cancellation of one call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use futures_util::task::AtomicWaker;

/// Cancels one call. Cloning shares it. Unlike a token of a tree it has one listener and takes no
/// lock: every call of an old client has one.
#[derive(Clone, Default)]
pub struct Cancel(Arc<State>);

#[derive(Default)]
struct State {
    cancelled: AtomicBool,
    waker: AtomicWaker,
}

impl Cancel {
    /// Cancel the call. Again is no more than once.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
        self.0.waker.wake();
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Resolves when it is cancelled. For one listener: the newest is woken.
    pub async fn cancelled(&self) {
        std::future::poll_fn(|cx| {
            if !self.is_cancelled() {
                self.0.waker.register(cx.waker());
            }
            // Again, since it may have come in between.
            if self.is_cancelled() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_listens_hears_of_it_before_and_after() {
        let cancel = Cancel::default();
        let waits = tokio::spawn({
            let cancel = cancel.clone();
            async move { cancel.cancelled().await }
        });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished() && !cancel.is_cancelled());
        cancel.cancel();
        assert!(waits.await.is_ok());
        cancel.cancel();
        cancel.cancelled().await;
    }
}
