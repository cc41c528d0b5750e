//! How often calls start: a token bucket with a line in order of arrival.
//!
//! The bucket is one instant, the one at which it will be full again; a token moves it one
//! interval later (the "generic cell rate algorithm"). Whole nanoseconds, so nothing drifts.
//!
//! Who finds no token lines up. Only the first in line watches the clock; the others wait for
//! its place. So everything that changes the future — somebody cancels, the upstream asks for a
//! pause, a reload changes the rate — reaches all who wait without anybody keeping a list:
//! the first looks again, goes or gives up, and the next is first. Whoever would wait too long
//! by what is known when it comes is refused at once and told how long it would have been.
//!
//! What holds exactly: in any time *t* no more than `burst + t × per_second` calls start. What
//! errs, always to that side: a token that is given back ([`Token`]) after others were taken is
//! lost; and with `burst = 1` the lateness of the timer (about a millisecond per wait) is.
//!
//! The line is bounded by itself: nobody joins who would wait longer than `max_wait`, so it holds
//! `per_second × max_wait + burst` at most.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::lock;
use crate::config::RateConfig;

/// How much longer than its patience someone in line waits to become first. Timers ring on whole
/// milliseconds: the one before it may take its token in the same tick in which this one's
/// patience ends.
const TICK_SLACK: Duration = Duration::from_millis(5);

/// Longest interval between two tokens, 31 years; keeps the arithmetic far from its limits.
const INTERVAL_MAX: f64 = 1e18;

/// A rate of starts. Cannot be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds from token to token.
    interval: NonZeroU64,
    burst: NonZeroU32,
}

impl From<&RateConfig> for Rate {
    fn from(config: &RateConfig) -> Rate {
        let interval = 1e9 / config.per_second;
        // The configuration holds nothing but finite rates above zero; anything else would have
        // to be the slowest and not the fastest.
        let interval = if interval > 0.0 { interval.min(INTERVAL_MAX) } else { INTERVAL_MAX };
        let interval = NonZeroU64::new(interval.round() as u64).unwrap_or(NonZeroU64::MIN);
        Rate { interval, burst: config.burst }
    }
}

/// A bucket of tokens, or none but a tap that can be shut for a while ([`Limiter::pause`]).
#[derive(Debug)]
pub struct Limiter {
    epoch: Instant,
    /// A lock and not an atomic, because the bucket, the pause and the length of the line decide
    /// together whether someone may go. Held for a few additions.
    bucket: Mutex<Bucket>,
    /// One permit, held by the first in line; the semaphore is fair, so its queue is the line.
    turn: Semaphore,
    /// Wakes the first in line when the future has changed.
    changed: Notify,
}

/// There is no token in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dry {
    /// When there would be one for who asks.
    pub retry_after: Duration,
    /// Because the upstream asked for a pause, and not because of the rate.
    pub paused: bool,
    /// How long it waited before it was known.
    pub waited: Duration,
}

/// A token in hand. Dropping it gives it back, [`Token::spend`] does not.
#[derive(Debug)]
#[must_use]
pub struct Token<'a> {
    limiter: &'a Limiter,
    receipt: Option<Receipt>,
    /// Time in line.
    pub waited: Duration,
}

impl Limiter {
    /// A full bucket; `None`: no limit.
    pub fn new(rate: Option<&RateConfig>) -> Limiter {
        Limiter {
            epoch: Instant::now(),
            bucket: Mutex::new(Bucket {
                rate: rate.map(Rate::from),
                max_wait: max_wait(rate),
                full_at: 0,
                paused_until: 0,
                paused_at: 0,
                waiting: 0,
            }),
            turn: Semaphore::new(1),
            changed: Notify::new(),
        }
    }

    /// Take a new rate. As many tokens as there are stay, up to the new burst; a bucket that
    /// gets its first limit is full. Who waits goes on waiting, at the new rate and with the old
    /// patience.
    pub fn reconfigure(&self, rate: Option<&RateConfig>) {
        let mut bucket = lock(&self.bucket);
        bucket.max_wait = max_wait(rate);
        let now = self.nanos(Instant::now());
        bucket.change_rate(now, rate.map(Rate::from));
        self.changed.notify_one();
    }

    /// Give out nothing for this long from now; a longer pause that runs already holds. Tokens
    /// go on coming in meanwhile.
    pub fn pause(&self, how_long: Duration) {
        let mut bucket = lock(&self.bucket);
        let now = self.nanos(Instant::now());
        if bucket.paused_until <= now {
            bucket.paused_at = now;
        }
        let until = now + how_long.as_nanos();
        bucket.paused_until = bucket.paused_until.max(until);
        self.changed.notify_one();
    }

    /// A token now, or how long it would take until there is one. For quotas, where nobody
    /// waits. The token is spent.
    pub fn try_take(&self) -> Result<(), Duration> {
        let mut bucket = lock(&self.bucket);
        let now = self.nanos(Instant::now());
        let wait = bucket.wait(now, bucket.waiting);
        if wait.is_zero() {
            bucket.take(now);
            Ok(())
        } else {
            Err(wait)
        }
    }

    /// A token, waited for in order of arrival: not longer than the rate's `max_wait` and not
    /// past `deadline`. Refuses at once when it can be known that it would take longer. Where
    /// there is no rate there is no `max_wait` either, and a pause refuses at once.
    pub async fn take(&self, deadline: Instant) -> Result<Token<'_>, Dry> {
        let (came, give_up) = {
            let mut bucket = lock(&self.bucket);
            // Under the lock: before it, others could take what is then seen as taken later.
            let came = Instant::now();
            let now = self.nanos(came);
            let wait = bucket.wait(now, bucket.waiting);
            if wait.is_zero() && bucket.waiting == 0 {
                return Ok(self.token(bucket.take(now), Duration::ZERO));
            }
            let patience = bucket.max_wait.min(deadline.saturating_duration_since(came));
            if wait > patience {
                return Err(bucket.dry(now, wait, Duration::ZERO));
            }
            bucket.waiting += 1;
            (came, came + patience)
        };
        // Boxed, since most calls find a token.
        Box::pin(self.line_up(came, give_up)).await
    }

    // Wait in line, in which the place is taken already.
    async fn line_up(&self, came: Instant, give_up: Instant) -> Result<Token<'_>, Dry> {
        let mut place = Place { limiter: self, held: true };
        let turn = timeout_at(give_up + TICK_SLACK, self.turn.acquire()).await;
        let Ok(turn) = turn else {
            let bucket = lock(&self.bucket);
            let now = self.nanos(Instant::now());
            // Behind all who are in line now, itself not counted.
            let wait = bucket.wait(now, bucket.waiting - 1);
            return Err(bucket.dry(now, wait, came.elapsed()));
        };
        let _turn = turn.expect("the semaphore is never closed");
        loop {
            let wake = {
                let mut bucket = lock(&self.bucket);
                let instant = Instant::now();
                let now = self.nanos(instant);
                let wait = bucket.wait(now, 0);
                if wait.is_zero() {
                    // In the same breath, so that nobody counts the token and the place.
                    place.leave(&mut bucket);
                    return Ok(self.token(bucket.take(now), instant - came));
                }
                if wait > give_up.saturating_duration_since(instant) {
                    return Err(bucket.dry(now, wait, instant - came));
                }
                instant + wait
            };
            tokio::select! {
                () = sleep_until(wake) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// How long a call with this much time would wait for a token that is not taken.
    ///
    /// # Errors
    /// As [`Limiter::take`], for the same calls.
    pub fn look(&self, time: Duration) -> Result<Duration, Dry> {
        let bucket = lock(&self.bucket);
        let now = self.nanos(Instant::now());
        let wait = bucket.wait(now, bucket.waiting);
        if wait > bucket.max_wait.min(time) {
            return Err(bucket.dry(now, wait, Duration::ZERO));
        }
        Ok(wait)
    }

    /// How long ago the pause began that is not over.
    pub fn paused_for(&self) -> Option<Duration> {
        let bucket = lock(&self.bucket);
        let now = self.nanos(Instant::now());
        (bucket.paused_until > now).then(|| duration(now - bucket.paused_at))
    }

    /// Tokens in the bucket; `None`: no limit.
    pub fn tokens(&self) -> Option<f64> {
        lock(&self.bucket).tokens(self.nanos(Instant::now()))
    }

    /// How long the pause still lasts, if there is one.
    pub fn paused(&self) -> Option<Duration> {
        let bucket = lock(&self.bucket);
        let left = bucket.paused_until.saturating_sub(self.nanos(Instant::now()));
        (left > 0).then(|| duration(left))
    }

    /// How many wait in line.
    pub fn waiting(&self) -> u32 {
        lock(&self.bucket).waiting
    }

    fn token(&self, receipt: Receipt, waited: Duration) -> Token<'_> {
        Token { limiter: self, receipt: Some(receipt), waited }
    }

    fn nanos(&self, instant: Instant) -> u128 {
        instant.saturating_duration_since(self.epoch).as_nanos()
    }
}

impl Token<'_> {
    /// The call starts: the token is gone.
    pub fn spend(mut self) {
        self.receipt = None;
    }
}

impl Drop for Token<'_> {
    fn drop(&mut self) {
        if let Some(receipt) = self.receipt.take() {
            lock(&self.limiter.bucket).give_back(receipt);
            self.limiter.changed.notify_one();
        }
    }
}

/// Someone in line; dropping it leaves the line.
struct Place<'a> {
    limiter: &'a Limiter,
    held: bool,
}

impl Place<'_> {
    fn leave(&mut self, bucket: &mut Bucket) {
        self.held = false;
        bucket.waiting -= 1;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.held {
            lock(&self.limiter.bucket).waiting -= 1;
        }
    }
}

/// The arithmetic. Instants are nanoseconds since the limiter was made; 128 bits, because a slow
/// rate times a large burst does not fit into 64.
#[derive(Debug)]
struct Bucket {
    rate: Option<Rate>,
    max_wait: Duration,
    /// When it will be full again, if nobody takes anything.
    full_at: u128,
    paused_until: u128,
    /// When the pause began; a longer one that is asked for meanwhile goes on with it.
    paused_at: u128,
    waiting: u32,
}

/// What taking a token changed: `full_at` before and after.
#[derive(Clone, Copy, Debug)]
struct Receipt {
    before: u128,
    after: u128,
}

impl Bucket {
    /// How long someone waits before whom `ahead` others take a token first.
    fn wait(&self, now: u128, ahead: u32) -> Duration {
        let open = now.max(self.paused_until);
        let Some(rate) = self.rate else { return duration(open - now) };
        let interval = u128::from(rate.interval.get());
        let spare = interval * u128::from(rate.burst.get() - 1);
        let full_at = self.full_at.max(open) + interval * u128::from(ahead);
        duration(full_at.saturating_sub(spare).max(open) - now)
    }

    fn take(&mut self, now: u128) -> Receipt {
        let Some(rate) = self.rate else {
            return Receipt { before: self.full_at, after: self.full_at };
        };
        let before = self.full_at.max(now);
        self.full_at = before + u128::from(rate.interval.get());
        Receipt { before, after: self.full_at }
    }

    /// Undo a take, if nothing was taken since: otherwise it cannot be told any more what the
    /// bucket would be like, and the token is lost rather than given out twice.
    fn give_back(&mut self, receipt: Receipt) {
        if self.full_at == receipt.after {
            self.full_at = receipt.before;
        }
    }

    fn change_rate(&mut self, now: u128, rate: Option<Rate>) {
        if rate == self.rate {
            return;
        }
        let tokens = self.tokens(now);
        self.rate = rate;
        self.full_at = match (rate, tokens) {
            (Some(rate), Some(tokens)) => {
                let missing = (f64::from(rate.burst.get()) - tokens).max(0.0);
                now + (missing * rate.interval.get() as f64) as u128
            }
            _ => 0,
        };
    }

    fn tokens(&self, now: u128) -> Option<f64> {
        let rate = self.rate?;
        let missing = self.full_at.saturating_sub(now) as f64 / rate.interval.get() as f64;
        Some(f64::from(rate.burst.get()) - missing)
    }

    fn dry(&self, now: u128, wait: Duration, waited: Duration) -> Dry {
        Dry { retry_after: wait, paused: self.paused_until > now, waited }
    }
}

fn max_wait(rate: Option<&RateConfig>) -> Duration {
    rate.map_or(Duration::ZERO, |rate| rate.max_wait)
}

/// From nanoseconds; what is longer than 584 years is as good as that.
fn duration(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
