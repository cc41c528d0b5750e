//! The one task that writes to a child's stdin: one message, one line.

use std::io;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use crate::protocol::message::one_line;
use crate::upstream::transport::pipe::{LAST_WORDS, Lost, Outbox, PipeCounters, Table, add};

/// Write until told to stop, or until nobody reads; then say so with `broken`.
pub(super) async fn write(
    mut stdin: impl AsyncWrite + Unpin,
    mut outbox: Outbox,
    table: Arc<Table>,
    closing: CancellationToken,
    broken: CancellationToken,
) {
    let stopped = || Lost::new("the server process is being stopped");
    let lost = loop {
        let next = tokio::select! {
            biased;
            () = closing.cancelled() => {
                let last = last_words(&mut stdin, &mut outbox, &table.counters);
                let _ = tokio::time::timeout(LAST_WORDS, last).await;
                break stopped();
            }
            next = outbox.next() => next,
        };
        let line = one_line(&next.message);
        let mut written = 0;
        let stop = async {
            closing.cancelled().await;
            // Small words of our own are the last ones then.
            if next.awaited.is_none() {
                tokio::time::sleep(LAST_WORDS).await;
            }
        };
        let outcome = tokio::select! {
            biased;
            () = stop => None,
            outcome = write_line(&mut stdin, line, &mut written, &table.counters) => Some(outcome),
        };
        if matches!(outcome, Some(Ok(()))) {
            continue;
        }
        if written == 0 {
            next.awaited.inspect(|(_, slot)| slot.unsend());
        }
        if outcome.is_none() {
            break stopped();
        }
        broken.cancel();
        break Lost::new("the server process does not read its input any more");
    };
    drop(stdin);
    outbox.close(&table, lost);
}

async fn last_words(
    stdin: &mut (impl AsyncWrite + Unpin),
    outbox: &mut Outbox,
    counters: &PipeCounters,
) -> io::Result<()> {
    while let Some(message) = outbox.aside() {
        write_line(stdin, one_line(&message), &mut 0, counters).await?;
    }
    Ok(())
}

async fn write_line(
    to: &mut (impl AsyncWrite + Unpin),
    line: Bytes,
    written: &mut usize,
    counters: &PipeCounters,
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
