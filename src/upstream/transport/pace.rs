//! How closely an upstream is listened to that says much without being asked.

use std::time::Duration;

use tokio::time::Instant;

/// So many messages are read before it is looked at how fast they come.
const BURST: u32 = 64;
/// Messages that come faster than one each, on average, are a flood.
const EACH: Duration = Duration::from_millis(1);
/// How long a flood is left alone at a time: one look then finds what came meanwhile, where each
/// message by itself would cost everybody else a wakeup's part of the processor. An answer that
/// stands among them waits so much longer.
const REST: Duration = Duration::from_millis(10);

/// Counts what one connection says unasked, and rests when that is very much.
#[derive(Debug, Default)]
pub struct Pace {
    heard: u32,
    since: Option<Instant>,
}

impl Pace {
    /// One message came that nobody waits for.
    pub fn count(&mut self) {
        self.heard += 1;
    }

    /// To be awaited when all that has come was looked at, and before more is read.
    pub async fn rest(&mut self) {
        if self.heard < BURST {
            return;
        }
        let now = Instant::now();
        let floods = self.since.is_some_and(|since| now - since < EACH * self.heard);
        (self.heard, self.since) = (0, Some(now));
        if floods {
            tokio::time::sleep(REST).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_looked_at_now_and_then_and_words_at_once() {
        let mut pace = Pace::default();
        let begun = Instant::now();
        for _ in 0..500 {
            tokio::time::advance(EACH * 2).await;
            pace.count();
            pace.rest().await;
        }
        assert_eq!(begun.elapsed(), EACH * 1000);
        // Ten thousand in a second: what came during a rest is found at once behind it.
        let (begun, mut looks, mut heard) = (Instant::now(), 0, 0);
        while heard < 10_000 {
            tokio::time::advance(EACH).await;
            let there = begun.elapsed().as_millis() * 10;
            (heard..there).for_each(|_| pace.count());
            heard = there;
            looks += 1;
            pace.rest().await;
        }
        assert!(looks < 120, "{looks}");
        assert!(begun.elapsed() < Duration::from_millis(1100));
    }
}
