//! Which replica gets a call: a state machine without I/O.
//!
//! The one with the fewest calls under way, of those that are well. One that fails several times in
//! a row is *ejected*: it gets none for a time that doubles from ejection to ejection, up to a
//! bound. When the time is over it is *on trial*: one call at once, whose end decides. Nobody is
//! left without a replica: when none is well, the one whose time ends first gets the call.
//!
//! A call that another replica answered, although it was asked later (`hedge_after`), is no
//! failure: its answer may have been on its way. But one that loses each of its calls so, many in a
//! row and for some time, and answers nothing meanwhile, is of no use, and ejected too. It would
//! not be seen otherwise, for no caller waits for it long enough. One that is only slower answers
//! now and then: what is not hedged, or what the budget of retries lets it finish.
//!
//! This is each replica's own breaker. The upstream's breaker stays one for all of them: it opens
//! when the service as a whole fails, which a single bad replica does not make it do.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::EjectionConfig;

/// So many more calls in a row must be lost to others than must fail, since one says less.
const LOST_FACTOR: u32 = 3;

/// Which replicas, one bit for each.
pub type Set = u32;

/// The replicas of one upstream, by number.
#[derive(Debug)]
pub struct Roster {
    // A lock and not atomics, because a choice compares all of them. Held for a few comparisons,
    // and by upstreams with replicas only.
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: EjectionConfig,
    seats: Box<[Seat]>,
    // Where the next choice begins to look, so that equals take turns.
    turn: usize,
}

#[derive(Clone, Debug, Default)]
struct Seat {
    in_flight: u32,
    failures: u32,
    // Calls in a row that another one answered sooner, and since when.
    lost: u32,
    lost_since: Option<Instant>,
    // Ejected until then; from then on it is on trial, until a call of it ends well.
    until: Option<Instant>,
    trials: u32,
    // Ejections since it was last well for long.
    ejections: u32,
    well_since: Option<Instant>,
    facts: Facts,
}

/// What a replica counted, and how it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Calls under way.
    pub in_flight: u32,
    /// Failures in a row.
    pub failing: u32,
    /// How long it still gets no calls.
    pub ejected_for: Option<Duration>,
    /// Calls that it got.
    pub calls: u64,
    /// Of these, those that failed.
    pub failures: u64,
    /// Times it was ejected.
    pub ejections: u64,
}

/// What a choice goes by.
#[derive(Clone, Copy, Debug)]
pub enum By<'a> {
    /// The fewest calls under way.
    Load,
    /// The same replica for the same text, as long as it is well: a conversation has one.
    Affinity(&'a str),
}

/// A call at a replica. Dropping it says nothing of how the replica is.
#[derive(Debug)]
#[must_use]
pub struct Taken<'a> {
    roster: &'a Roster,
    /// Which one.
    pub number: usize,
    trial: bool,
}

impl Roster {
    /// So many replicas, all of them well.
    pub fn new(config: EjectionConfig, number: usize) -> Roster {
        let seats = vec![Seat::default(); number].into();
        Roster { inner: Mutex::new(Inner { config, seats, turn: 0 }) }
    }

    /// Take new settings; who is ejected stays so for as long as was decided.
    pub fn reconfigure(&self, config: EjectionConfig) {
        self.lock().config = config;
    }

    /// A replica for a call: of those that can be reached, and of those not in `tried` if there are
    /// any. `None`: none can be reached, or with `anew` all of those were tried.
    pub fn choose(&self, reached: Set, tried: Set, anew: bool, by: By<'_>) -> Option<Taken<'_>> {
        let mut inner = self.lock();
        let now = Instant::now();
        let among = |set: Set| inner.well(set, now, by).or_else(|| inner.least_bad(set, now));
        // A well one that was tried is better than a bad one that was not.
        let number = if anew {
            among(reached & !tried)?
        } else {
            inner.well(reached & !tried, now, by).or_else(|| among(reached))?
        };
        Some(self.take(&mut inner, number, now))
    }

    /// This one, whatever is known of it: what the call is about is there and nowhere else.
    pub fn this(&self, number: usize) -> Taken<'_> {
        self.take(&mut self.lock(), number, Instant::now())
    }

    fn take(&self, inner: &mut Inner, number: usize, now: Instant) -> Taken<'_> {
        inner.turn = number + 1;
        let seat = &mut inner.seats[number];
        let trial = seat.on_trial(now);
        seat.in_flight += 1;
        seat.trials += u32::from(trial);
        seat.facts.calls += 1;
        Taken { roster: self, number, trial }
    }

    /// How each stands.
    pub fn facts(&self) -> Vec<Facts> {
        let (inner, now) = (self.lock(), Instant::now());
        let facts = |seat: &Seat| Facts {
            in_flight: seat.in_flight,
            failing: seat.failures,
            ejected_for: seat.until.and_then(|until| until.checked_duration_since(now)),
            ..seat.facts
        };
        inner.seats.iter().map(facts).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Only comparisons and additions happen under it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    // In the order of turns.
    fn numbers(&self, set: Set) -> impl Iterator<Item = usize> {
        let (all, turn) = (self.seats.len(), self.turn);
        (0..all).map(move |n| (n + turn) % all).filter(move |n| set & 1 << n != 0)
    }

    fn well(&self, set: Set, now: Instant, by: By<'_>) -> Option<usize> {
        let well = self.numbers(set).filter(|n| self.seats[*n].is_well(now));
        match by {
            By::Load => well.min_by_key(|n| self.seats[*n].in_flight),
            By::Affinity(text) => well.max_by_key(|n| weight(text, *n)),
        }
    }

    fn least_bad(&self, set: Set, now: Instant) -> Option<usize> {
        // One on trial is over its time already; then the one with the fewest calls.
        let left = |seat: &Seat| seat.until.map(|until| until.saturating_duration_since(now));
        self.numbers(set).min_by_key(|n| (left(&self.seats[*n]), self.seats[*n].in_flight))
    }
}

// Each text has an order of the replicas of its own, which losing one of them does not change
// (rendezvous hashing, with FNV-1a).
fn weight(text: &str, number: usize) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = text.bytes().chain([0, number as u8]).fold(0xcbf2_9ce4_8422_2325, mix);
    // Its last bytes have changed few of the upper bits yet.
    (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Seat {
    fn on_trial(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    fn is_well(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now && self.trials == 0)
    }

    fn failed(&mut self, config: &EjectionConfig, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.facts.failures += 1;
        if self.until.is_some() || self.failures >= config.consecutive.get() {
            self.eject(config, now);
        }
    }

    // A rush in which many are lost at once is over soon, and says nothing.
    fn lost(&mut self, config: &EjectionConfig, now: Instant) {
        self.lost = self.lost.saturating_add(1);
        let since = *self.lost_since.get_or_insert(now);
        let enough = config.consecutive.get().saturating_mul(LOST_FACTOR);
        if self.lost >= enough && now - since >= config.first {
            self.eject(config, now);
        }
    }

    fn eject(&mut self, config: &EjectionConfig, now: Instant) {
        match self.until {
            // What began before, or went there for want of a better one.
            Some(until) if until > now => return,
            // It was on trial.
            Some(_) => {}
            None => {
                let long = self.well_since.is_none_or(|since| now - since >= config.longest);
                if long {
                    self.ejections = 0;
                }
            }
        }
        let doubled = 1u32.checked_shl(self.ejections).unwrap_or(u32::MAX);
        self.until = Some(now + config.first.saturating_mul(doubled).min(config.longest));
        self.ejections = (self.ejections + 1).min(31);
        self.facts.ejections += 1;
    }

    fn succeeded(&mut self, now: Instant) {
        self.failures = 0;
        self.lost = 0;
        self.lost_since = None;
        if self.until.take().is_some() {
            self.well_since = Some(now);
        }
    }
}

impl Taken<'_> {
    /// The replica answered.
    pub fn succeeded(self) {
        self.roster.lock().seats[self.number].succeeded(Instant::now());
    }

    /// The replica failed.
    pub fn failed(self) {
        let mut inner = self.roster.lock();
        let config = inner.config;
        inner.seats[self.number].failed(&config, Instant::now());
    }

    /// Another one, asked later, answered sooner.
    pub fn lost(self) {
        let mut inner = self.roster.lock();
        let config = inner.config;
        inner.seats[self.number].lost(&config, Instant::now());
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut inner = self.roster.lock();
        let seat = &mut inner.seats[self.number];
        seat.in_flight -= 1;
        seat.trials -= u32::from(self.trial);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
