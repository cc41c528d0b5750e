//! How much memory the gateway may use, and whether there is room for more.
//!
//! What the system says is in RAM is the measure, since nothing else counts all of it. It is asked
//! ten times a second while requests come, since their answers take room too, and by whoever comes
//! after a share of the ceiling was announced. In between, what was announced counts as used. So a
//! rush is refused before it is in memory, and an idle gateway asks nothing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::failure::{Reason, Refusal};

/// What a call takes besides its body: its states, its session's book, buffers of two connections.
const CALL_COST: u64 = 16 << 10;
/// The system is asked after this share of the ceiling was announced.
const SHARE: u64 = 16;
/// How often [`Memory::look_again`] should be called.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A request of this size takes no more than a call does anyway. So what a call in flight may wait
/// for comes through: an answer to its question, its cancellation.
pub const SMALL: usize = 16 << 10;
/// How often it is asked at most: reading it takes some microseconds.
const ASK_EVERY: Duration = Duration::from_millis(10);
/// When who finds no room may come back: by then answers have left, and what was freed has been
/// given back to the system.
const COME_BACK: Duration = Duration::from_secs(2);

/// The book of it.
pub struct Memory {
    // Bytes in RAM when the system was asked last.
    used: AtomicU64,
    // Bytes announced since.
    since: AtomicU64,
    asked: Mutex<Option<Instant>>,
    // Whether somebody was refused since there was room last.
    full: AtomicBool,
    read: fn() -> Option<u64>,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::read_by(crate::observe::metrics::resident_bytes)
    }
}

impl Memory {
    fn read_by(read: fn() -> Option<u64>) -> Memory {
        Memory {
            used: AtomicU64::new(0),
            since: AtomicU64::new(0),
            asked: Mutex::default(),
            full: AtomicBool::new(false),
            read,
        }
    }

    /// Announce a request with a body of so many bytes.
    ///
    /// # Errors
    /// When there is no room for it below `max` bytes.
    pub fn admit(&self, bytes: u64, max: usize) -> Result<(), Refusal> {
        let (bytes, max) = (bytes.saturating_add(CALL_COST), max as u64);
        let since = self.since.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if since <= max / SHARE && self.used.load(Ordering::Relaxed) <= max {
            return Ok(());
        }
        self.ask(bytes);
        let now = self.used.load(Ordering::Relaxed) + self.since.load(Ordering::Relaxed);
        if now <= max {
            if self.full.swap(false, Ordering::Relaxed) {
                tracing::info!(bytes = now, "there is room below gateway.max_memory again");
            }
            return Ok(());
        }
        if !self.full.swap(true, Ordering::Relaxed) {
            tracing::warn!(bytes = now, "gateway.max_memory is reached: new calls are refused");
        }
        // It is not let in, so it will not be there.
        let _ = self.since.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |since| {
            Some(since.saturating_sub(bytes))
        });
        Err(full())
    }

    /// Whether a request would be refused now. Announces nothing.
    ///
    /// # Errors
    /// What it would be told.
    pub fn look(&self, max: usize) -> Result<(), Refusal> {
        self.ask(0);
        let now = self.used.load(Ordering::Relaxed) + self.since.load(Ordering::Relaxed);
        if now + CALL_COST <= max as u64 { Ok(()) } else { Err(full()) }
    }

    /// Ask the system, if anything was announced since it was asked last. For whoever has a clock.
    pub fn look_again(&self) {
        if self.since.load(Ordering::Relaxed) > 0 {
            self.ask(0);
        }
    }

    #[cold]
    fn ask(&self, announced: u64) {
        // Who finds it being asked takes what was known.
        let Ok(mut asked) = self.asked.try_lock() else { return };
        let now = Instant::now();
        if asked.is_some_and(|at| now.duration_since(at) < ASK_EVERY) {
            return;
        }
        *asked = Some(now);
        // Where there is nothing to read, nothing is known to be used.
        self.used.store((self.read)().unwrap_or(0), Ordering::Relaxed);
        self.since.store(announced, Ordering::Relaxed);
    }
}

#[cold]
fn full() -> Refusal {
    let text = "the gateway uses as much memory as it may (gateway.max_memory)";
    Refusal::new(Reason::Overloaded, text).retry_after(COME_BACK)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[tokio::test(start_paused = true)]
    async fn what_is_announced_counts_until_the_system_is_asked() {
        let memory = Memory::read_by(|| Some(100 << 20));
        // 108 MiB in RAM and announced: the first announcements are before anybody asked.
        let admitted = (0..100).filter(|_| memory.admit(1 << 20, 108 * MIB).is_ok()).count();
        assert!((8..16).contains(&admitted), "{admitted}");
        // Asked again, those are in what the system says.
        tokio::time::advance(ASK_EVERY).await;
        assert!(memory.admit(1 << 20, 108 * MIB).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn without_room_nothing_is_let_in_until_there_is_some() {
        static USED: AtomicU64 = AtomicU64::new(50 << 20);
        let memory = Memory::read_by(|| Some(USED.load(Ordering::Relaxed)));
        assert!(memory.admit(10 << 20, 64 * MIB).is_ok());
        USED.store(65 << 20, Ordering::Relaxed);
        tokio::time::advance(ASK_EVERY).await;
        for _ in 0..3 {
            let refusal = memory.admit(1, 64 * MIB).expect_err("no room");
            assert_eq!(
                (refusal.reason, refusal.retry_after),
                (Reason::Overloaded, Some(COME_BACK))
            );
        }
        USED.store(20 << 20, Ordering::Relaxed);
        assert!(memory.admit(1, 64 * MIB).is_err(), "it was asked just now");
        assert!(memory.look(64 * MIB).is_err());
        tokio::time::advance(ASK_EVERY).await;
        assert!(memory.admit(1, 64 * MIB).is_ok());
        assert!(memory.admit(45 << 20, 64 * MIB).is_err());
        assert!(memory.look(64 * MIB).is_ok(), "there is room for less");
        // A higher ceiling counts at once.
        assert!(memory.admit(45 << 20, 128 * MIB).is_ok());
    }
}
