//! A child's stderr, relayed to our log: scrubbed, cut, rationed, and always drained.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::Instant;

use crate::config::secret::Scrubber;
use crate::shim::Told;
use crate::upstream::transport::pipe::{PipeCounters, add, count};

/// Longest line relayed, in bytes. A stack trace's line fits; a dump of a document does not.
const LINE_MAX: usize = 4 * 1024;

/// How many last lines are kept for the report of the child's end.
const TAIL_LINES: usize = 20;

/// The time that `stderr_per_minute` is about.
const MINUTE: Duration = Duration::from_secs(60);

/// The end of what a child said, and what its supervisor told.
#[derive(Default)]
pub(super) struct Tail {
    pub(super) lines: VecDeque<String>,
    pub(super) told: Vec<Told>,
}

/// Most words of a supervisor that are kept; it has one or two.
const TOLD_MAX: usize = 4;

/// Read at a time.
const CHUNK: usize = 8 * 1024;

/// What to log.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Line(String),
    Dropped(u64),
}

/// Read stderr to its end.
pub(super) async fn relay(
    mut from: impl AsyncRead + Unpin,
    upstream: Arc<str>,
    per_minute: usize,
    scrubber: Scrubber,
    counters: Arc<PipeCounters>,
    tail: Arc<Mutex<Tail>>,
) {
    let mut relay = Relay::new(per_minute, scrubber, counters, tail, Instant::now());
    let mut chunk = vec![0; CHUNK];
    let mut said = Vec::new();
    loop {
        let read = tokio::select! {
            read = from.read(&mut chunk) => Some(read.unwrap_or(0)),
            () = wake(relay.summary_at()) => None,
        };
        match read {
            None => relay.tick(Instant::now(), &mut said),
            Some(0) => relay.end(Instant::now(), &mut said),
            Some(n) => relay.push(&chunk[..n], Instant::now(), &mut said),
        }
        for said in said.drain(..) {
            match said {
                Said::Line(line) => {
                    tracing::info!(target: "weirkeeper::child", %upstream, line);
                }
                Said::Dropped(bytes) => tracing::warn!(
                    target: "weirkeeper::child", %upstream, bytes,
                    "more on stderr than stderr_per_minute; the rest was dropped"
                ),
            }
        }
        if read == Some(0) {
            return;
        }
    }
}

async fn wake(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Bytes in, what to log out.
struct Relay {
    per_minute: usize,
    scrubber: Scrubber,
    counters: Arc<PipeCounters>,
    tail: Arc<Mutex<Tail>>,
    held: Vec<u8>,
    /// Bytes of the open line that were not held.
    beyond: usize,
    minute: Instant,
    used: usize,
    dropped: u64,
}

impl Relay {
    fn new(
        per_minute: usize,
        scrubber: Scrubber,
        counters: Arc<PipeCounters>,
        tail: Arc<Mutex<Tail>>,
        now: Instant,
    ) -> Relay {
        Relay {
            per_minute,
            scrubber,
            counters,
            tail,
            held: Vec::new(),
            beyond: 0,
            minute: now,
            used: 0,
            dropped: 0,
        }
    }

    /// When the next [`Said::Dropped`] is due.
    fn summary_at(&self) -> Option<Instant> {
        (self.dropped > 0).then(|| self.minute + MINUTE)
    }

    fn tick(&mut self, now: Instant, said: &mut Vec<Said>) {
        if now >= self.minute + MINUTE {
            self.summary(said);
            self.minute = now;
            self.used = 0;
        }
    }

    fn summary(&mut self, said: &mut Vec<Said>) {
        if self.dropped > 0 {
            said.push(Said::Dropped(std::mem::take(&mut self.dropped)));
        }
    }

    fn end(&mut self, now: Instant, said: &mut Vec<Said>) {
        self.line(now, said);
        self.summary(said);
    }

    fn push(&mut self, mut bytes: &[u8], now: Instant, said: &mut Vec<Said>) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            self.hold(&bytes[..end]);
            self.line(now, said);
            bytes = &bytes[end + 1..];
        }
        self.hold(bytes);
    }

    // A line is held a little further than it is shown: a secret may begin before the end of
    // what is shown and go on behind it, and is only found whole.
    fn slack(&self) -> usize {
        2 * self.scrubber.longest()
    }

    fn hold(&mut self, bytes: &[u8]) {
        let room = (LINE_MAX + self.slack()).saturating_sub(self.held.len()).min(bytes.len());
        self.held.extend_from_slice(&bytes[..room]);
        self.beyond += bytes.len() - room;
    }

    fn line(&mut self, now: Instant, said: &mut Vec<Said>) {
        self.tick(now, said);
        let raw = std::mem::take(&mut self.held);
        let beyond = std::mem::take(&mut self.beyond);
        if let Some(told) = Told::read(&raw) {
            let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
            if tail.told.len() < TOLD_MAX {
                tail.told.push(told);
            }
            return;
        }
        let text = String::from_utf8_lossy(&raw);
        if text.trim().is_empty() {
            return;
        }
        count(&self.counters.stderr_lines);
        let mut line = self.scrubber.scrub(text.trim_end()).into_owned();
        if beyond > 0 {
            // The last bytes held may be the first ones of a secret.
            let sure = line.len().saturating_sub(self.slack());
            cut(&mut line, sure);
        }
        let whole = line.len();
        cut(&mut line, LINE_MAX);
        let lost = beyond + (whole - line.len());
        if lost > 0 {
            line.push('…');
        }
        // Colours and cursor moves are for a terminal that is not there, and could fool ours.
        let line = line.replace(|c: char| c.is_control() && c != '\t', " ");
        if self.used + line.len() <= self.per_minute {
            self.used += line.len();
            add(&self.counters.stderr_dropped_bytes, lost as u64);
            said.push(Said::Line(line.clone()));
        } else {
            let lost = (raw.len() + beyond) as u64;
            self.dropped += lost;
            add(&self.counters.stderr_dropped_bytes, lost);
        }
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.lines.len() >= TAIL_LINES {
            tail.lines.pop_front();
        }
        tail.lines.push_back(line);
    }
}

fn cut(text: &mut String, at: usize) {
    if at < text.len() {
        let at = (0..=at).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(at);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;

    use super::*;
    use crate::config::secret::Secret;

    const SECRET: &str = "sk-1234567890abcdef";

    fn relay(per_minute: usize) -> Relay {
        let scrubber = Scrubber::new([Secret::new(SECRET)]);
        Relay::new(per_minute, scrubber, Arc::default(), Arc::default(), Instant::now())
    }

    fn lines(said: &[Said]) -> Vec<&str> {
        said.iter()
            .map(|s| match s {
                Said::Line(l) => l.as_str(),
                Said::Dropped(_) => "(dropped)",
            })
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_rationed_and_accounted_for() {
        let mut r = relay(20);
        let mut said = Vec::new();
        for n in 0..100 {
            r.push(format!("line {n:04}\n").as_bytes(), Instant::now(), &mut said);
        }
        assert_eq!(lines(&said), ["line 0000", "line 0001"]);
        assert_eq!(r.counters.stderr_lines.load(Ordering::Relaxed), 100);
        assert_eq!(r.counters.stderr_dropped_bytes.load(Ordering::Relaxed), 98 * 9);
        let due = r.summary_at().expect("something was dropped");
        tokio::time::advance(due - Instant::now()).await;
        said.clear();
        r.tick(Instant::now(), &mut said);
        assert_eq!(said, [Said::Dropped(98 * 9)]);
        assert_eq!(r.summary_at(), None);
        r.push(b"again\n", Instant::now(), &mut said);
        assert_eq!(said[1], Said::Line("again".into()));
        let tail = r.tail.lock().expect("not poisoned");
        assert_eq!(tail.lines.len(), TAIL_LINES);
        assert_eq!(tail.lines.back().map(String::as_str), Some("again"));
    }

    #[test]
    fn a_supervisors_word_is_no_line() {
        let mut r = relay(1000);
        let mut said = Vec::new();
        r.push(b"open\n\x1eweir signal 9\nopen end", Instant::now(), &mut said);
        r.end(Instant::now(), &mut said);
        assert_eq!(lines(&said), ["open", "open end"]);
        assert_eq!(r.tail.lock().expect("not poisoned").told, [Told::Signal(9)]);
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        let mut r = relay(1000);
        let mut said = Vec::new();
        r.push(b"\x1b[31mred\x07\xff\r\n", Instant::now(), &mut said);
        assert_eq!(lines(&said), [" [31mred \u{fffd}"]);
    }

    proptest! {
        #[test]
        fn no_part_of_a_secret_is_shown_wherever_it_stands(
            before in 0usize..(LINE_MAX + 80), repeat in 1usize..400, piece in 1usize..9000,
        ) {
            let text = format!("{}{}tail\n", "x".repeat(before), SECRET.repeat(repeat));
            let mut r = relay(1_000_000);
            let mut said = Vec::new();
            for piece in text.as_bytes().chunks(piece) {
                r.push(piece, Instant::now(), &mut said);
            }
            let lines = lines(&said);
            prop_assert_eq!(lines.len(), 1);
            prop_assert!(lines[0].len() <= LINE_MAX + '…'.len_utf8());
            prop_assert!(!lines[0].contains("sk-"), "{}", lines[0]);
            prop_assert_eq!(lines[0].starts_with('x'), before > 0);
        }
    }
}
