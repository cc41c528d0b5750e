//! The gateway as somebody's child: one JSON-RPC message a line on stdin and stdout.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;

use crate::call::Consumer;
use crate::protocol::message::one_line;

use super::Edge;
use super::pipe::{OUT_MAX, Pipe};

/// Serve one pipe until it ends.
pub async fn serve(
    edge: Arc<Edge>,
    consumer: Arc<Consumer>,
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin + Send + 'static,
) {
    let (tx, rx) = mpsc::channel::<Bytes>(OUT_MAX);
    let writer = tokio::spawn(write(output, rx));
    read(&edge, Pipe::new(edge.clone(), consumer, "stdio", tx), input).await;
    let _ = writer.await;
}

async fn read(edge: &Edge, mut pipe: Pipe, input: impl AsyncRead + Unpin) {
    let max = edge.gateway.current.load().config.gateway.max_body;
    let mut input = BufReader::new(input);
    let mut line = Vec::new();
    loop {
        line.clear();
        let more = tokio::select! {
            more = read_line(&mut input, &mut line, max) => more,
            () = edge.stop.cancelled() => break,
        };
        match more {
            Line::End => break,
            Line::TooLong => pipe.too_long(max).await,
            Line::Whole if line.iter().all(u8::is_ascii_whitespace) => {}
            Line::Whole => pipe.hear(Bytes::copy_from_slice(&line)).await,
        }
    }
    // Calls under way are still answered (hosts close stdin to end us, and wait).
    pipe.finish().await;
}

/// What came of reading a line.
pub enum Line {
    /// It is whole, its end included.
    Whole,
    /// It was longer than may be, and was passed over.
    TooLong,
    /// There are no more.
    End,
}

/// Read one line of `max` bytes at most into `line`, which is empty.
pub async fn read_line(
    input: &mut (impl AsyncBufReadExt + Unpin),
    line: &mut Vec<u8>,
    max: usize,
) -> Line {
    let mut too_long = false;
    loop {
        let Ok(chunk) = input.fill_buf().await else { return Line::End };
        if chunk.is_empty() {
            return if line.is_empty() && !too_long { Line::End } else { whole(too_long) };
        }
        let (take, end) = match memchr::memchr(b'\n', chunk) {
            Some(at) => (at + 1, true),
            None => (chunk.len(), false),
        };
        if line.len() + take > max {
            too_long = true;
            line.clear();
        }
        if !too_long {
            line.extend_from_slice(&chunk[..take]);
        }
        input.consume(take);
        if end {
            return whole(too_long);
        }
    }
}

fn whole(too_long: bool) -> Line {
    if too_long { Line::TooLong } else { Line::Whole }
}

/// Write messages, one a line, until there are no more or nobody reads.
pub async fn write(mut output: impl AsyncWrite + Unpin, mut rx: mpsc::Receiver<Bytes>) {
    while let Some(message) = rx.recv().await {
        let mut line = one_line(&message).to_vec();
        line.push(b'\n');
        if output.write_all(&line).await.is_err() || output.flush().await.is_err() {
            return;
        }
    }
}
