//! Counts over the last while, in bounded memory.
//!
//! Time is cut into steps of a tenth of the window and each step has a bucket, so the window
//! slides a tenth at a time: what is counted is between nine and ten tenths of its length old at
//! most. Ten buckets of a few numbers replace a list that would grow with the load.

use std::time::Duration;

use tokio::time::Instant;

/// Steps of a window. Ten: fine enough to forget smoothly, small enough to add up on each call.
pub(super) const STEPS: usize = 10;

/// `N` counters over the last while.
#[derive(Debug)]
pub(super) struct Window<const N: usize> {
    epoch: Instant,
    /// Length of a step in nanoseconds, never zero.
    step: u128,
    buckets: [Bucket<N>; STEPS],
}

#[derive(Clone, Copy, Debug)]
struct Bucket<const N: usize> {
    /// Number of the step it counts, from the epoch; `None`: counts nothing.
    step: Option<u128>,
    counts: [u64; N],
}

const fn empty<const N: usize>() -> [Bucket<N>; STEPS] {
    [Bucket { step: None, counts: [0; N] }; STEPS]
}

impl<const N: usize> Window<N> {
    /// An empty window of this length that starts counting its steps now.
    pub(super) fn new(length: Duration, now: Instant) -> Window<N> {
        Window { epoch: now, step: step_of(length), buckets: empty() }
    }

    /// Add to several counters at once.
    pub(super) fn add(&mut self, now: Instant, counts: [u64; N]) {
        let step = self.step_at(now);
        let bucket = &mut self.buckets[(step % STEPS as u128) as usize];
        if bucket.step != Some(step) {
            *bucket = Bucket { step: Some(step), counts: [0; N] };
        }
        for (sum, count) in bucket.counts.iter_mut().zip(counts) {
            *sum += count;
        }
    }

    /// What was counted over the last while.
    pub(super) fn sums(&self, now: Instant) -> [u64; N] {
        let current = self.step_at(now);
        let mut sums = [0; N];
        for bucket in &self.buckets {
            if bucket.step.is_some_and(|step| step + STEPS as u128 > current) {
                for (sum, count) in sums.iter_mut().zip(bucket.counts) {
                    *sum += count;
                }
            }
        }
        sums
    }

    /// Forget all.
    pub(super) fn clear(&mut self) {
        self.buckets = empty();
    }

    /// Change the length. What is in the window counts as if it had happened now: it stays a
    /// little too long rather than being forgotten by a reload.
    pub(super) fn resize(&mut self, length: Duration, now: Instant) {
        if step_of(length) != self.step {
            let sums = self.sums(now);
            self.clear();
            self.step = step_of(length);
            self.add(now, sums);
        }
    }

    fn step_at(&self, now: Instant) -> u128 {
        now.saturating_duration_since(self.epoch).as_nanos() / self.step
    }
}

fn step_of(length: Duration) -> u128 {
    (length.as_nanos() / STEPS as u128).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_older_than_the_window_no_longer_counts() {
        let start = Instant::now();
        let mut w = Window::<2>::new(10 * S, start);
        w.add(start, [1, 0]);
        w.add(start + 5 * S, [1, 1]);
        assert_eq!(w.sums(start + 9 * S), [2, 1]);
        assert_eq!(w.sums(start + 10 * S), [1, 1]);
        assert_eq!(w.sums(start + 15 * S), [0, 0]);
    }

    #[test]
    fn a_bucket_is_reused_for_its_next_turn() {
        let start = Instant::now();
        let mut w = Window::<1>::new(10 * S, start);
        for second in 0..100 {
            w.add(start + second * S, [1]);
        }
        assert_eq!(w.sums(start + 99 * S), [10]);
    }

    #[test]
    fn a_new_length_keeps_what_is_counted() {
        let start = Instant::now();
        let mut w = Window::<1>::new(10 * S, start);
        w.add(start, [3]);
        w.resize(20 * S, start + 5 * S);
        assert_eq!(w.sums(start + 19 * S), [3]);
        assert_eq!(w.sums(start + 30 * S), [0]);
    }
}
