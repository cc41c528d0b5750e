//! A socket whose other side does not read is given up.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::time::{Sleep, sleep};

use super::UNREAD_TIME;

/// A writer that fails when nothing could be written for [`UNREAD_TIME`].
pub struct Impatient<W> {
    inner: W,
    // Runs while a write waits.
    until: Option<Pin<Box<Sleep>>>,
    // Whether one does, for who would close the connection.
    waits: Arc<AtomicBool>,
}

impl<W: AsyncWrite + Unpin> Impatient<W> {
    /// Around a writer; `waits` says whether a write waits for the other side.
    pub fn new(inner: W, waits: Arc<AtomicBool>) -> Impatient<W> {
        Impatient { inner, until: None, waits }
    }

    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut W>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(done) = poll(Pin::new(&mut self.inner), cx) {
            if self.until.take().is_some() {
                self.waits.store(false, Ordering::Release);
            }
            return Poll::Ready(done);
        }
        if self.until.is_none() {
            self.waits.store(true, Ordering::Release);
        }
        let until = self.until.get_or_insert_with(|| Box::pin(sleep(UNREAD_TIME)));
        ready!(until.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Impatient<W> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll(cx, |w, cx| w.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll(cx, |w, cx| w.poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll(cx, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll(cx, AsyncWrite::poll_shutdown)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test(start_paused = true)]
    async fn who_reads_slowly_is_served_and_who_does_not_read_is_given_up() {
        let (ours, mut theirs) = tokio::io::duplex(8);
        let mut out = Impatient::new(ours, Arc::default());
        let reader = tokio::spawn(async move {
            let mut eight = [0; 8];
            for _ in 0..4 {
                tokio::time::sleep(UNREAD_TIME - Duration::from_secs(1)).await;
                theirs.read_exact(&mut eight).await.unwrap();
            }
            theirs
        });
        out.write_all(&[0; 40]).await.unwrap();
        let _open = reader.await.unwrap();
        let failed = out.write_all(&[0; 8]).await.unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
    }
}
