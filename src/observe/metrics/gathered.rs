//! What is gathered at scrape: plain numbers that whoever renders looks up where they live.

use std::sync::Arc;
use std::time::Duration;

use crate::config::upkeep::UpkeepState;
use crate::shim::resident_kib;

use super::page::Page;
use super::{
    BREAKER, BREAKER_TO, CATALOG_AGE, CATALOG_BYTES, CATALOG_DROPPED, CATALOG_ENTRIES, CHILD_CPU,
    CHILD_RESIDENT, CHILDREN, CONNECTIONS, DROPPED, HEDGES, IDLE, IN_FLIGHT, LOG_DROPPED,
    MEMORY_RESTARTS, NOISE, ON_LAST_GOOD, OPEN_FDS, PROCESSES, QUEUE_DEPTH, RECEIVED,
    REPLICA_CALLS, REPLICA_EJECTED, REPLICA_EJECTIONS, REPLICA_FAILURES, REPLICA_IN_FLIGHT,
    REPLICA_UP, RESIDENT, RESTARTS, ROLLED_BACK, SENT, SESSIONS, SPANS_DROPPED, STDERR_DROPPED,
    STREAMS, TASKS, UNMATCHED, UP, UPKEEP, UPTIME, UpstreamSeries,
};

/// Everything that is only known elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// The running upstreams.
    pub upstreams: Vec<UpstreamFacts>,
    /// Sessions of old clients.
    pub sessions: u64,
    /// Open notification streams.
    pub streams: u64,
    /// Open connections of clients.
    pub connections: u64,
    /// Tasks of the runtime.
    pub tasks: u64,
    /// Upstreams whose changed form was given up.
    pub rolled_back: u64,
    /// Whether the last good configuration is in force.
    pub on_last_good: bool,
    /// Dropped log lines; [`crate::observe::Observe::render`] puts it in.
    pub log_lines_dropped: u64,
    /// Dropped spans; [`crate::observe::Observe::render`] puts it in.
    pub spans_dropped: u64,
}

/// How one upstream is now.
#[derive(Clone, Debug, Default)]
pub struct UpstreamFacts {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it is connected; `None` for one that is not meant to be, since it has no
    /// credential yet or is stopped while nobody uses it. It gets no series, so that nobody is woken for it.
    pub up: Option<bool>,
    /// Calls under way.
    pub in_flight: u64,
    /// Calls that wait for one of them to end.
    pub queued: u64,
    /// Its breaker.
    pub breaker: BreakerState,
    /// What its operators want it to be, if that is something else than in use.
    pub upkeep: Option<UpkeepState>,
    /// What it has in the catalog.
    pub catalog: Vec<CatalogFacts>,
    /// Time since its lists were last confirmed; `None`: never.
    pub catalog_age: Option<Duration>,
    /// Entries left out of the catalog.
    pub catalog_dropped: u64,
    /// Rises each time an upstream of this name is made anew and its totals begin at zero.
    pub incarnation: u64,
    /// What it counted since then.
    pub totals: Totals,
    /// Its processes, if it has some and no URL.
    pub child: Option<ChildFacts>,
    /// Its replicas, if it has several. What they count begins anew with each incarnation.
    pub replicas: Vec<ReplicaFacts>,
}

/// The processes of an upstream now.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChildFacts {
    /// Children that run: one, and one more for each conversation that can ask back.
    pub children: u64,
    /// These and all that they started.
    pub processes: u64,
    /// Bytes of their memory that are in RAM.
    pub resident: u64,
    /// How long the oldest child has been running.
    pub uptime: Option<Duration>,
    /// Whether it is stopped because nobody uses it; `None`: that never happens to it.
    pub idle: Option<bool>,
}

/// How one replica is now.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaFacts {
    /// Its place in the file, from 1.
    pub number: usize,
    /// Whether it is connected.
    pub up: bool,
    /// Whether it gets no calls for a while.
    pub ejected: bool,
    /// Calls under way.
    pub in_flight: u64,
    /// Attempts made at it.
    pub calls: u64,
    /// Of these, those in which it failed.
    pub failures: u64,
    /// Times it was left out.
    pub ejections: u64,
}

impl ReplicaFacts {
    fn tell(&self, page: &mut Page, upstream: &str) {
        let number = self.number.to_string();
        for (family, value) in [
            (&REPLICA_UP, u64::from(self.up)),
            (&REPLICA_EJECTED, u64::from(self.ejected)),
            (&REPLICA_IN_FLIGHT, self.in_flight),
            (&REPLICA_CALLS, self.calls),
            (&REPLICA_FAILURES, self.failures),
            (&REPLICA_EJECTIONS, self.ejections),
        ] {
            page.value(family, &[upstream, &number], value as f64);
        }
    }
}

/// A part of the catalog.
#[derive(Clone, Copy, Debug)]
pub struct CatalogFacts {
    /// `tools`, `prompts`, …
    pub kind: &'static str,
    /// Entries.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The state of a breaker; the numbers are the metric's values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BreakerState {
    /// Lets calls through.
    #[default]
    Closed = 0,
    /// Lets a few through to see.
    Probing = 1,
    /// Lets none through.
    Open = 2,
}

impl BreakerState {
    const ALL: [BreakerState; 3] =
        [BreakerState::Closed, BreakerState::Probing, BreakerState::Open];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::Probing => "probing",
            BreakerState::Open => "open",
        }
    }
}

/// Why a message of an upstream, or a small one for it, was dropped: notices for which there was
/// no room; cancellations and refusals that a child does not read; messages that are too large;
/// questions for which there was no room; events that are no message.
pub const DROPPED_WHY: [&str; 5] = ["notice", "unread", "oversize", "question", "garbled"];

/// How a second attempt beside a slow first one ended: with the call's answer, or without.
pub const HEDGE_OUTCOMES: [&str; 2] = ["won", "lost"];

/// What an upstream counts by itself; each only grows as long as the upstream lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Starts or connections besides the first.
    pub restarts: u64,
    /// Milliseconds of processor time that its processes used.
    pub cpu_ms: u64,
    /// Children that were ended because they used too much memory.
    pub memory_restarts: u64,
    /// Lines on stdout, frames and events that were no message.
    pub stdout_noise: u64,
    /// Bytes of stderr that were not relayed.
    pub stderr_dropped_bytes: u64,
    /// Answers that no request waited for.
    pub unmatched_answers: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Messages that were dropped, in the order of [`DROPPED_WHY`].
    pub dropped: [u64; DROPPED_WHY.len()],
    /// Second attempts beside a first one, in the order of [`HEDGE_OUTCOMES`].
    pub hedges: [u64; HEDGE_OUTCOMES.len()],
    /// Times the breaker went to closed, probing, open; as [`BreakerState`] numbers them.
    pub breaker_to: [u64; 3],
}

impl Totals {
    fn with(self, other: Totals, f: impl Fn(u64, u64) -> u64) -> Totals {
        Totals {
            restarts: f(self.restarts, other.restarts),
            cpu_ms: f(self.cpu_ms, other.cpu_ms),
            memory_restarts: f(self.memory_restarts, other.memory_restarts),
            stdout_noise: f(self.stdout_noise, other.stdout_noise),
            stderr_dropped_bytes: f(self.stderr_dropped_bytes, other.stderr_dropped_bytes),
            unmatched_answers: f(self.unmatched_answers, other.unmatched_answers),
            received_bytes: f(self.received_bytes, other.received_bytes),
            sent_bytes: f(self.sent_bytes, other.sent_bytes),
            dropped: std::array::from_fn(|i| f(self.dropped[i], other.dropped[i])),
            hedges: std::array::from_fn(|i| f(self.hedges[i], other.hedges[i])),
            breaker_to: std::array::from_fn(|i| f(self.breaker_to[i], other.breaker_to[i])),
        }
    }
}

/// Keeps totals growing when an upstream is made anew under the same name.
#[derive(Default)]
pub(super) struct Carried {
    incarnation: u64,
    /// What all before this incarnation counted.
    before: Totals,
    /// The most this incarnation said.
    now: Totals,
}

impl Carried {
    /// Takes in what was just seen and says what all incarnations counted together. Scrapes may
    /// overlap and a late one may bring old numbers: those change nothing.
    pub(super) fn take_in(&mut self, incarnation: u64, seen: Totals) -> Totals {
        if incarnation > self.incarnation {
            self.before = self.before.with(self.now, u64::saturating_add);
            self.now = Totals::default();
            self.incarnation = incarnation;
        }
        if incarnation == self.incarnation {
            self.now = self.now.with(seen, u64::max);
        }
        self.before.with(self.now, u64::saturating_add)
    }
}

impl Gathered {
    /// `find` gives the branch that carries an upstream's totals.
    pub(super) fn tell(&self, page: &mut Page, find: impl Fn(&str) -> Option<Arc<UpstreamSeries>>) {
        for facts in &self.upstreams {
            // Facts that were gathered before a reload and rendered after it may be of an
            // upstream that is gone.
            if let Some(series) = find(&facts.name) {
                facts.tell(page, &series.carry(facts.incarnation, facts.totals));
            }
        }
        page.value(&SESSIONS, &[], self.sessions as f64);
        page.value(&STREAMS, &[], self.streams as f64);
        page.value(&CONNECTIONS, &[], self.connections as f64);
        page.value(&TASKS, &[], self.tasks as f64);
        page.value(&ROLLED_BACK, &[], self.rolled_back as f64);
        page.value(&ON_LAST_GOOD, &[], f64::from(u8::from(self.on_last_good)));
        page.value(&LOG_DROPPED, &[], self.log_lines_dropped as f64);
        page.value(&SPANS_DROPPED, &[], self.spans_dropped as f64);
    }
}

impl UpstreamFacts {
    fn tell(&self, page: &mut Page, totals: &Totals) {
        let name = [&*self.name];
        if let Some(up) = self.up {
            page.value(&UP, &name, f64::from(u8::from(up)));
        }
        page.value(&IN_FLIGHT, &name, self.in_flight as f64);
        page.value(&QUEUE_DEPTH, &name, self.queued as f64);
        page.value(&BREAKER, &name, f64::from(self.breaker as u8));
        for state in UpkeepState::ALL {
            let on = self.upkeep == Some(state);
            page.value(&UPKEEP, &[&*self.name, state.as_str()], f64::from(u8::from(on)));
        }
        for part in &self.catalog {
            page.value(&CATALOG_ENTRIES, &[&*self.name, part.kind], part.entries as f64);
            page.value(&CATALOG_BYTES, &[&*self.name, part.kind], part.bytes as f64);
        }
        if let Some(child) = &self.child {
            page.value(&CHILDREN, &name, child.children as f64);
            page.value(&PROCESSES, &name, child.processes as f64);
            page.value(&CHILD_RESIDENT, &name, child.resident as f64);
            if let Some(uptime) = child.uptime {
                page.value(&UPTIME, &name, uptime.as_secs_f64());
            }
            if let Some(idle) = child.idle {
                page.value(&IDLE, &name, f64::from(u8::from(idle)));
            }
            page.value(&CHILD_CPU, &name, totals.cpu_ms as f64 / 1000.0);
            page.value(&MEMORY_RESTARTS, &name, totals.memory_restarts as f64);
        }
        if let Some(age) = self.catalog_age {
            page.value(&CATALOG_AGE, &name, age.as_secs_f64());
        }
        page.value(&CATALOG_DROPPED, &name, self.catalog_dropped as f64);
        for replica in &self.replicas {
            replica.tell(page, &self.name);
        }
        for to in BreakerState::ALL {
            let count = totals.breaker_to[to as usize];
            page.value(&BREAKER_TO, &[&*self.name, to.as_str()], count as f64);
        }
        for (outcome, total) in HEDGE_OUTCOMES.iter().zip(totals.hedges) {
            page.value(&HEDGES, &[&*self.name, outcome], total as f64);
        }
        for (why, total) in DROPPED_WHY.iter().zip(totals.dropped) {
            page.value(&DROPPED, &[&*self.name, why], total as f64);
        }
        for (family, total) in [
            (&RESTARTS, totals.restarts),
            (&NOISE, totals.stdout_noise),
            (&STDERR_DROPPED, totals.stderr_dropped_bytes),
            (&UNMATCHED, totals.unmatched_answers),
            (&RECEIVED, totals.received_bytes),
            (&SENT, totals.sent_bytes),
        ] {
            page.value(family, &name, total as f64);
        }
    }
}

/// What the kernel says of this process; nothing where there is no `/proc`.
pub(super) fn tell_process(page: &mut Page) {
    if let Some(bytes) = resident_bytes() {
        page.value(&RESIDENT, &[], bytes as f64);
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        // One of them is the folder that is being read.
        page.value(&OPEN_FDS, &[], entries.count().saturating_sub(1) as f64);
    }
}

/// Memory of this process that is in RAM.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some(resident_kib(&status)? * 1024)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn resident_memory_is_read() {
        assert_eq!(resident_kib("Name:\tweir\nVmRSS:\t   12345 kB\nX:\t1\n"), Some(12345));
        assert_eq!(resident_kib("Name:\tweir\n"), None);
    }

    proptest! {
        // Lives of an upstream, each a list of growths; scrapes in between, some of them late.
        #[test]
        fn totals_only_grow_and_lose_nothing_that_was_seen(
            lives in proptest::collection::vec(proptest::collection::vec(0u64..100, 1..5), 1..5),
            late in any::<bool>(),
        ) {
            let mut carried = Carried::default();
            let mut told = 0;
            let mut sum = 0;
            let mut old = (0, Totals::default());
            for (incarnation, life) in lives.iter().enumerate() {
                let mut count = 0;
                for growth in life {
                    count += growth;
                    sum += growth;
                    let seen = Totals { restarts: count, ..Totals::default() };
                    let now = carried.take_in(incarnation as u64, seen).restarts;
                    prop_assert_eq!(now, sum);
                    prop_assert!(now >= told);
                    told = now;
                    if late {
                        prop_assert_eq!(carried.take_in(old.0, old.1).restarts, sum);
                    }
                    old = (incarnation as u64, seen);
                }
            }
        }
    }
}
