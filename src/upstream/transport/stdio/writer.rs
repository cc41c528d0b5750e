//! The one task that writes to a child's stdin: one message, one line.

use std::io;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::counters::{StdioCounters, add};
use super::slot::{Lost, Slot};
use super::table::Table;

/// Messages that wait to be written. Few: what waits here waits for a child that does not read,
/// and each may be as large as a request body. Further callers wait with their message.
pub(super) const QUEUE_MAX: usize = 64;

/// Small messages of our own (cancellations, refusals) that wait to be written; they go first.
/// Beyond that they are dropped and counted.
pub(super) const ASIDES_MAX: usize = 1024;

/// A message on its way out.
pub(super) struct Outgoing {
    /// On one line, without the line feed.
    pub(super) line: Bytes,
    /// Who waits for its answer.
    pub(super) slot: Option<Arc<Slot>>,
}

/// Write until told to stop, or until nobody reads; then say so with `broken`.
pub(super) async fn write(
    mut stdin: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Outgoing>,
    mut asides: mpsc::Receiver<Bytes>,
    table: Arc<Table>,
    closing: CancellationToken,
    broken: CancellationToken,
) {
    let lost = loop {
        let next = tokio::select! {
            biased;
            () = closing.cancelled() => break Lost::new("the server process is being stopped"),
            Some(line) = asides.recv() => Outgoing { line, slot: None },
            Some(outgoing) = queue.recv() => outgoing,
        };
        if next.slot.as_ref().is_some_and(|slot| !slot.begin()) {
            continue; // nobody waits for it any more
        }
        let mut written = 0;
        let outcome = tokio::select! {
            biased;
            () = closing.cancelled() => None,
            outcome = write_line(&mut stdin, next.line, &mut written, &table.counters) => {
                Some(outcome)
            }
        };
        if matches!(outcome, Some(Ok(()))) {
            continue;
        }
        if written == 0 {
            next.slot.inspect(|slot| slot.unsend());
        }
        if outcome.is_none() {
            break Lost::new("the server process is being stopped");
        }
        broken.cancel();
        break Lost::new("the server process does not read its input any more");
    };
    // In this order: a message that still got into the queue has its slot in the table already.
    drop(stdin);
    drop(queue);
    table.fail_unsent(lost);
}

async fn write_line(
    to: &mut (impl AsyncWrite + Unpin),
    line: Bytes,
    written: &mut usize,
    counters: &StdioCounters,
) -> io::Result<()> {
    // One gathering write for the line and its line feed, where the pipe has room.
    let mut rest = line.chain(&b"\n"[..]);
    while rest.has_remaining() {
        match to.write_buf(&mut rest).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => {
                *written += n;
                add(&counters.bytes_out, n as u64);
            }
        }
    }
    to.flush().await
}
