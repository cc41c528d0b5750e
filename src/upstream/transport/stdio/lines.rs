//! Lines of bounded length from a stream of bytes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::upstream::transport::pace::Pace;
use crate::upstream::transport::pipe::{Glance, Heard, PipeCounters, add};

/// Read at a time: what a pipe holds, so that one read empties it.
const CHUNK: usize = 64 * 1024;

/// Bytes of one line that are read before others have a turn.
const TURN: usize = 256 << 10;
/// How long it is rested after each read of a line that is thrown away. Reading as fast as bytes
/// come would cost everybody else their part of the processor, all the more as each read would find
/// little; meanwhile the pipe fills, and it is the sender who waits. Ten megabytes a second.
const REST: Duration = Duration::from_millis(6);

/// A reader of lines that never holds more than `max` bytes of one.
pub(super) struct Lines<R> {
    from: R,
    held: BytesMut,
    searched: usize,
    max: usize,
    skipping: Option<Glance>,
    pace: Pace,
    counters: Arc<PipeCounters>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// What is read is counted while it comes: a line that is thrown away takes its time.
    pub(super) fn new(from: R, max: usize, counters: Arc<PipeCounters>) -> Lines<R> {
        Lines {
            from,
            held: BytesMut::new(),
            searched: 0,
            max,
            skipping: None,
            pace: Pace::default(),
            counters,
        }
    }

    /// The last line was nothing that was waited for. Who says many such is listened to less.
    pub(super) fn unasked(&mut self) {
        self.pace.count();
    }

    /// The next line; `None` at the end. What stands behind the last line feed is a line too.
    pub(super) async fn next(&mut self) -> io::Result<Option<Heard>> {
        let mut turn = 0;
        loop {
            if let Some(line) = self.cut() {
                return Ok(Some(line));
            }
            self.pace.rest().await;
            if self.skipping.is_some() {
                tokio::time::sleep(REST).await;
            } else if turn >= TURN {
                turn = 0;
                tokio::task::yield_now().await;
            }
            // Room for one byte over the limit, the line feed of a line that just fits.
            let room = (self.max + 1 - self.held.len()).min(CHUNK);
            self.held.reserve(room);
            let n = self.from.read_buf(&mut (&mut self.held).limit(room)).await?;
            add(&self.counters.bytes_in, n as u64);
            turn += n;
            if n == 0 {
                return Ok(self.rest());
            }
        }
    }

    fn cut(&mut self) -> Option<Heard> {
        let found = memchr::memchr(b'\n', &self.held[self.searched..]).map(|n| n + self.searched);
        if let Some(end) = found {
            let mut line = self.held.split_to(end + 1);
            line.truncate(end);
            self.searched = 0;
            return Some(match self.skipping.take() {
                None => Heard::Whole(line.freeze()),
                Some(mut glance) => {
                    glance.feed(&line);
                    Heard::TooLong(glance)
                }
            });
        }
        self.searched = self.held.len();
        if self.skipping.is_some() || self.held.len() > self.max {
            self.skipping.get_or_insert_default().feed(&self.held);
            self.held.clear();
            self.searched = 0;
        }
        None
    }

    fn rest(&mut self) -> Option<Heard> {
        if let Some(glance) = self.skipping.take() {
            return Some(Heard::TooLong(glance));
        }
        self.searched = 0;
        (!self.held.is_empty()).then(|| Heard::Whole(self.held.split().freeze()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;

    use super::*;

    async fn all(pieces: Vec<Vec<u8>>, max: usize) -> Vec<Option<Vec<u8>>> {
        let mut builder = PieceReader { pieces: pieces.into() };
        let mut lines = Lines::new(&mut builder, max, Arc::default());
        let mut out = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            assert!(lines.held.len() <= max + 1, "holds {} of {max}", lines.held.len());
            out.push(match line {
                Heard::Whole(b) => Some(b.to_vec()),
                Heard::TooLong(_) => None,
            });
        }
        out
    }

    struct PieceReader {
        pieces: std::collections::VecDeque<Vec<u8>>,
    }

    impl AsyncRead for PieceReader {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buf: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            if let Some(mut piece) = self.pieces.pop_front() {
                let n = piece.len().min(buf.remaining());
                buf.put_slice(&piece[..n]);
                piece.drain(..n);
                if !piece.is_empty() {
                    self.pieces.push_front(piece);
                }
            }
            std::task::Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_line_that_just_fits_is_kept_and_one_more_byte_is_not() {
        let got = all(vec![b"12345\n123456\n\nab".to_vec()], 5).await;
        assert_eq!(got, [Some(b"12345".to_vec()), None, Some(vec![]), Some(b"ab".to_vec())]);
        assert_eq!(all(vec![b"1234567".to_vec()], 5).await, [None]);
    }

    #[tokio::test]
    async fn a_line_too_long_still_tells_its_id() {
        let text = format!(r#"{{"result":"{}","jsonrpc":"2.0","id":9}}"#, "x".repeat(500));
        let counters = Arc::<PipeCounters>::default();
        let mut lines = Lines::new(text.as_bytes(), 64, counters.clone());
        let Some(Heard::TooLong(glance)) = lines.next().await.unwrap() else { panic!("it fits") };
        assert_eq!(glance.answers(), Some(9));
        assert_eq!(counters.bytes_in.load(Ordering::Relaxed), text.len() as u64);
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_too_much_waits_and_nobody_else_does() {
        let line = vec![b'x'; 100 << 20];
        let begun = tokio::time::Instant::now();
        let mut lines = Lines::new(&line[..], 16 << 20, Arc::default());
        let Some(Heard::TooLong(_)) = lines.next().await.unwrap() else { panic!("it fits") };
        let reads = (84 << 20) / CHUNK as u32;
        assert!(begun.elapsed() >= REST * reads, "{:?}", begun.elapsed());
        // One that fits is read as it comes, and lets others have their turn.
        let (begun, turns) = (tokio::time::Instant::now(), std::cell::Cell::new(0));
        let mut lines = Lines::new(&line[..8 << 20], 16 << 20, Arc::default());
        let others = async {
            loop {
                turns.set(turns.get() + 1);
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            line = lines.next() => assert!(matches!(line.unwrap(), Some(Heard::Whole(_)))),
            () = others => {}
        }
        assert!(turns.get() >= 31, "{}", turns.get());
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn cutting_does_not_depend_on_how_bytes_arrive(
            text in "[ab\n]{0,80}", cuts in prop::collection::vec(1usize..9, 1..30), max in 1usize..12,
        ) {
            let mut pieces = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, more) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece.to_vec());
                rest = more;
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            let got = runtime.block_on(all(pieces, max));
            let mut want: Vec<_> = text.split('\n').map(|l| l.as_bytes().to_vec()).collect();
            if want.last().is_some_and(Vec::is_empty) {
                want.pop();
            }
            let want: Vec<_> = want.into_iter().map(|l| (l.len() <= max).then_some(l)).collect();
            prop_assert_eq!(got, want);
        }
    }
}
