//! An answer of which there is more than is kept if that can be avoided.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;

use crate::failure::Fault;
use crate::protocol::message::Frame;

use super::body::Body;
use super::{HttpCounters, add, answer, client};

/// How much of an answer is read before it counts as large. Most answers are a few kilobytes;
/// what is kept of all calls at once, at 256 KiB each, is bearable.
pub const LARGE: usize = 256 << 10;

/// A large answer: its beginning, and the rest, which comes as it is asked for.
pub struct Large {
    pub(super) id: u64,
    pub(super) head: Bytes,
    pub(super) body: Body,
    pub(super) seen: usize,
    pub(super) max: usize,
    pub(super) counters: Arc<HttpCounters>,
}

impl std::fmt::Debug for Large {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Large").field("head", &self.head.len()).finish_non_exhaustive()
    }
}

impl Large {
    /// What has been read of it.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// It will not be needed any more, not for [`Large::whole`] either.
    pub fn forget_head(&mut self) {
        self.head = Bytes::new();
    }

    /// What comes next, behind the head; `None` at the end.
    ///
    /// # Errors
    /// When the connection breaks, or the answer is larger than may be.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            // An upstream that writes faster than we read would else never let go of the task.
            tokio::task::coop::consume_budget().await;
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| answer::broken().because(client::chain(&error)))?;
            // The other kind is trailers, which mean nothing here.
            let Ok(chunk) = frame.into_data() else { continue };
            add(&self.counters.received_bytes, chunk.len());
            self.seen += chunk.len();
            if self.seen > self.max {
                return Err(answer::too_large(self.max));
            }
            return Ok(Some(chunk));
        }
    }

    /// Read it to its end after all.
    ///
    /// # Errors
    /// The same, and when it is no answer to the request.
    pub async fn whole(mut self) -> Result<Frame, Fault> {
        let announced = self.body.size_hint().lower() as usize;
        let mut whole = BytesMut::with_capacity(self.head.len() + announced);
        whole.extend_from_slice(&std::mem::take(&mut self.head));
        while let Some(chunk) = self.next().await? {
            whole.extend_from_slice(&chunk);
        }
        answer::from_json(whole.freeze(), self.id)
    }
}
