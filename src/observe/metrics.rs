//! Every series, declared once: the doc comment is the help text, the label names stand beside.
//!
//! Two kinds. What happens to calls is *counted* as it happens, in `series`: a call touches
//! prepared handles and hashes no labels. What is a state, or is counted where it happens by
//! parts that know no metrics, is *gathered* at scrape as plain numbers (`gathered`).
//!
//! The series form a tree (upstream, then method or tool) and a scrape walks it. Taking an
//! upstream out is taking a branch off: a late call may still count into the branch, but nobody
//! sees it and it cannot grow back by itself. Labels come from the configuration, the catalog
//! and closed sets; never from what a client or an upstream says.

mod gathered;
mod page;
mod series;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::Trouble;
use crate::failure::Reason;

pub use gathered::{
    BreakerState, CatalogFacts, ChildFacts, DROPPED_WHY, Gathered, HEDGE_OUTCOMES, ReplicaFacts,
    Totals, UpstreamFacts, resident_bytes,
};
pub use page::{Family, Kind};
pub use series::{TOOLS_MAX, ToolSeries, UpstreamSeries};

use page::{Page, families};

/// Label of what belongs to no upstream, or to no tool or method we know. Configured names begin
/// with a letter, so it is never one of them.
pub const NONE: &str = "_none";
/// Label of tools and methods that get no series of their own.
pub const OTHER: &str = "_other";

families! {
    /// Calls that ended, by upstream, method, outcome and, unless all went well, the reason.
    CALLS: Counter "weir_calls_total" ["upstream", "method", "outcome", "reason"];
    /// Time from a call's arrival to its end, waiting included. Refused calls are not in it: they end at once and would hide the others.
    CALL_DURATION: Histogram "weir_call_duration_seconds" ["upstream", "method"];
    /// The same, by tool as the agents see it; `_other` for tools beyond 2000 of one upstream.
    TOOL_DURATION: Histogram "weir_tool_call_duration_seconds" ["upstream", "tool"];
    /// Calls under way.
    IN_FLIGHT: Gauge "weir_calls_in_flight" ["upstream"];
    /// Calls that wait because as many as allowed are under way.
    QUEUE_DEPTH: Gauge "weir_queue_depth" ["upstream"];
    /// Calls that waited for the rate limit.
    LIMITER_WAITS: Counter "weir_limiter_waits_total" ["upstream"];
    /// Time that calls waited for the rate limit.
    LIMITER_WAIT: Counter "weir_limiter_wait_seconds_total" ["upstream"];
    /// Calls that the gateway itself said no to. The upstream never saw them.
    REFUSALS: Counter "weir_refusals_total" ["upstream", "reason"];
    /// Calls that may have taken effect although they have no answer: of each the agent was told so.
    UNKNOWN: Counter "weir_unknown_outcomes_total" ["upstream", "reason"];
    /// The breaker: 0 closed, 1 probing, 2 open.
    BREAKER: Gauge "weir_breaker_state" ["upstream"];
    /// Times the breaker went into a state.
    BREAKER_TO: Counter "weir_breaker_transitions_total" ["upstream", "to"];
    /// Attempts besides the first, of calls that may be repeated.
    RETRIES: Counter "weir_retries_total" ["upstream"];
    /// Second attempts beside a slow first one (`hedge_after`) whose call ended: their answer was the first (`won`) or not (`lost`).
    HEDGES: Counter "weir_hedges_total" ["upstream", "outcome"];
    /// Whether the upstream's operators let no calls through (`state` in the file): none that are new (`draining`), or none at all (`maintenance`).
    UPKEEP: Gauge "weir_upstream_upkeep" ["upstream", "state"];
    /// Whether the upstream is connected. One without a credential, or stopped while nobody uses it, is not meant to be, and absent.
    UP: Gauge "weir_upstream_up" ["upstream"];
    /// Whether the replica is connected. Replicas are numbered from 1, in the order of `urls`.
    REPLICA_UP: Gauge "weir_replica_up" ["upstream", "replica"];
    /// Whether the replica gets no calls for a while, because it failed.
    REPLICA_EJECTED: Gauge "weir_replica_ejected" ["upstream", "replica"];
    /// Calls under way at the replica.
    REPLICA_IN_FLIGHT: Gauge "weir_replica_calls_in_flight" ["upstream", "replica"];
    /// Attempts of calls that were made at the replica.
    REPLICA_CALLS: Counter "weir_replica_calls_total" ["upstream", "replica"];
    /// Of these, those in which the replica failed.
    REPLICA_FAILURES: Counter "weir_replica_failures_total" ["upstream", "replica"];
    /// Times the replica was left out for a while.
    REPLICA_EJECTIONS: Counter "weir_replica_ejections_total" ["upstream", "replica"];
    /// Times the upstream's process was started again, or its endpoint connected to again. A session that it ended and that was renewed does not count.
    RESTARTS: Counter "weir_upstream_restarts_total" ["upstream"];
    /// Child processes that run for an upstream: one, and one for each conversation that can ask back.
    CHILDREN: Gauge "weir_upstream_children" ["upstream"];
    /// Processes of an upstream's children: the programs and all that they started.
    PROCESSES: Gauge "weir_upstream_processes" ["upstream"];
    /// Memory of these processes that is in RAM. What they share counts in each.
    CHILD_RESIDENT: Gauge "weir_upstream_resident_memory_bytes" ["upstream"];
    /// Processor time of these processes and of those before them, as last seen of each.
    CHILD_CPU: Counter "weir_upstream_cpu_seconds_total" ["upstream"];
    /// How long the oldest child of an upstream has been running.
    UPTIME: Gauge "weir_upstream_uptime_seconds" ["upstream"];
    /// Whether the upstream's process is stopped because nobody uses it; only where idle_stop is set.
    IDLE: Gauge "weir_upstream_idle" ["upstream"];
    /// Children that were ended because they used more memory than memory_max.
    MEMORY_RESTARTS: Counter "weir_upstream_memory_restarts_total" ["upstream"];
    /// Lines on an upstream's stdout, frames and events that were no message.
    NOISE: Counter "weir_upstream_stdout_noise_total" ["upstream"];
    /// Bytes of an upstream's stderr that were not relayed to the log.
    STDERR_DROPPED: Counter "weir_upstream_stderr_dropped_bytes_total" ["upstream"];
    /// Answers of an upstream to no request that was waiting.
    UNMATCHED: Counter "weir_upstream_unmatched_answers_total" ["upstream"];
    /// Messages from or to an upstream that were dropped, and why.
    DROPPED: Counter "weir_upstream_dropped_messages_total" ["upstream", "why"];
    /// Bytes received from an upstream.
    RECEIVED: Counter "weir_received_bytes_total" ["upstream"];
    /// Bytes sent to an upstream.
    SENT: Counter "weir_sent_bytes_total" ["upstream"];
    /// Entries of the catalog.
    CATALOG_ENTRIES: Gauge "weir_catalog_entries" ["upstream", "kind"];
    /// Bytes of the catalog's entries.
    CATALOG_BYTES: Gauge "weir_catalog_bytes" ["upstream", "kind"];
    /// Time since the upstream last confirmed what it offers.
    CATALOG_AGE: Gauge "weir_catalog_age_seconds" ["upstream"];
    /// Entries that the upstream offers and the catalog leaves out: too many, or a name that is taken.
    CATALOG_DROPPED: Gauge "weir_catalog_dropped_entries" ["upstream"];
    /// Reloads of the configuration that took effect (`ok`) or were refused (`failed`).
    RELOADS: Counter "weir_config_reloads_total" ["result"];
    /// Whether the last reload took effect; 1 from the start on.
    RELOAD_OK: Gauge "weir_config_last_reload_successful" [];
    /// Unix time of the last reload that took effect, or of the start.
    RELOAD_AT: Gauge "weir_config_last_reload_success_timestamp_seconds" [];
    /// Times that the file was not taken as it stands, by the reason that the log line and `/status` have too.
    CONFIG_TROUBLES: Counter "weir_config_troubles_total" ["reason"];
    /// Upstreams whose changed form did not start and was given up: their old form serves on.
    ROLLED_BACK: Gauge "weir_config_rolled_back_upstreams" [];
    /// Whether the last good configuration is in force because the file was broken at the start.
    ON_LAST_GOOD: Gauge "weir_config_on_last_good" [];
    /// Sessions of clients of the older revisions.
    SESSIONS: Gauge "weir_sessions" [];
    /// Open notification streams.
    STREAMS: Gauge "weir_streams" [];
    /// Open connections of clients.
    CONNECTIONS: Gauge "weir_connections" [];
    /// Connections that were closed on accept.
    CONNECTIONS_REFUSED: Counter "weir_connections_refused_total" ["why"];
    /// Notices for clients that did not read them fast enough.
    NOTICES_DROPPED: Counter "weir_notices_dropped_total" [];
    /// Answers and streams that were given up because the client did not read them.
    UNREAD: Counter "weir_unread_responses_total" [];
    /// Log lines that were dropped because stderr was not read fast enough.
    LOG_DROPPED: Counter "weir_log_lines_dropped_total" [];
    /// Spans that were dropped because the collector was slow or gone.
    SPANS_DROPPED: Counter "weir_spans_dropped_total" [];
    /// Always 1; the version is in the label.
    BUILD: Gauge "weir_build_info" ["version"];
    /// Memory of the gateway's process that is in RAM, children not included.
    RESIDENT: Gauge "weir_process_resident_memory_bytes" [];
    /// Tasks of the gateway that have not ended: connections, streams, upstreams and what they do.
    TASKS: Gauge "weir_process_tasks" [];
    /// Open file descriptors of the gateway's process.
    OPEN_FDS: Gauge "weir_process_open_fds" [];
}

/// Why a connection was closed on accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionRefusal {
    /// As many are open as may be.
    Limit,
    /// The system could not accept it: no descriptors left, or gone before it was accepted.
    AcceptFailed,
}

impl ConnectionRefusal {
    const ALL: [ConnectionRefusal; 2] = [ConnectionRefusal::Limit, ConnectionRefusal::AcceptFailed];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            ConnectionRefusal::Limit => "max_connections",
            ConnectionRefusal::AcceptFailed => "accept_failed",
        }
    }
}

/// All that is counted. Not global: each gateway has its own.
pub struct Metrics {
    upstreams: RwLock<BTreeMap<Arc<str>, Arc<UpstreamSeries>>>,
    nobody: Arc<UpstreamSeries>,
    reloads_ok: AtomicU64,
    reloads_failed: AtomicU64,
    last_reload_failed: AtomicU64,
    last_reload_at: AtomicU64,
    config_troubles: [AtomicU64; Trouble::ALL.len()],
    connections_refused: [AtomicU64; ConnectionRefusal::ALL.len()],
    notices_dropped: AtomicU64,
    unread_dropped: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    /// Everything at zero; the configuration counts as loaded now.
    pub fn new() -> Metrics {
        Metrics {
            upstreams: RwLock::default(),
            nobody: Arc::new(UpstreamSeries::new(NONE.into())),
            reloads_ok: AtomicU64::new(0),
            reloads_failed: AtomicU64::new(0),
            last_reload_failed: AtomicU64::new(0),
            last_reload_at: AtomicU64::new(unix_now()),
            config_troubles: Default::default(),
            connections_refused: Default::default(),
            notices_dropped: AtomicU64::new(0),
            unread_dropped: AtomicU64::new(0),
        }
    }

    /// The names of all series as a query can use them: a histogram has three.
    pub fn names() -> Vec<String> {
        FAMILIES.iter().flat_map(|f| f.names()).collect()
    }

    /// All declarations.
    pub fn families() -> &'static [&'static Family] {
        FAMILIES
    }

    /// The series of an upstream; the same as before if it has some already. `tools` are all its
    /// exposed tool names in the catalog now: series of others are removed. Hold on to the
    /// handle, a call should not ask for it. An empty name gives [`Metrics::nobody`].
    pub fn upstream(&self, name: &Arc<str>, tools: &[Arc<str>]) -> Arc<UpstreamSeries> {
        if name.is_empty() {
            return self.nobody();
        }
        let mut upstreams = self.upstreams.write().unwrap_or_else(PoisonError::into_inner);
        let series = upstreams
            .entry(name.clone())
            .or_insert_with(|| Arc::new(UpstreamSeries::new(name.clone())))
            .clone();
        drop(upstreams);
        series.retain_tools(tools);
        series
    }

    /// The series of what belongs to no upstream.
    pub fn nobody(&self) -> Arc<UpstreamSeries> {
        self.nobody.clone()
    }

    /// Remove the series of all upstreams but these.
    pub fn retain_upstreams(&self, names: &[Arc<str>]) {
        let mut upstreams = self.upstreams.write().unwrap_or_else(PoisonError::into_inner);
        upstreams.retain(|name, _| names.contains(name));
    }

    /// The exposed tool names of an upstream changed; an upstream without series is left alone.
    pub fn retain_tools(&self, upstream: &str, tools: &[Arc<str>]) {
        if let Some(series) = self.find(upstream) {
            series.retain_tools(tools);
        }
    }

    /// A request was refused before it became a call (no key, no such method).
    pub fn refused(&self, reason: Reason) {
        self.nobody.refused(reason);
    }

    /// A reload took effect, or was refused.
    pub fn reloaded(&self, ok: bool) {
        self.last_reload_failed.store(u64::from(!ok), Ordering::Relaxed);
        if ok {
            self.last_reload_at.store(unix_now(), Ordering::Relaxed);
            self.reloads_ok.fetch_add(1, Ordering::Relaxed);
        } else {
            self.reloads_failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The file is not in force as it stands: from now on the last reload counts as failed.
    pub fn config_trouble(&self, trouble: Trouble) {
        self.last_reload_failed.store(1, Ordering::Relaxed);
        self.config_troubles[trouble as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A connection was closed on accept.
    pub fn connection_refused(&self, why: ConnectionRefusal) {
        self.connections_refused[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Notices were dropped.
    pub fn notices_dropped(&self, count: u64) {
        self.notices_dropped.fetch_add(count, Ordering::Relaxed);
    }

    /// Responses were given up that their clients did not read.
    pub fn unread_dropped(&self, count: u64) {
        self.unread_dropped.fetch_add(count, Ordering::Relaxed);
    }

    /// The totals of an upstream that is about to be replaced by one of the same name, so that
    /// what it counted since the last scrape is not lost.
    pub fn settle(&self, upstream: &str, incarnation: u64, totals: Totals) {
        if let Some(series) = self.find(upstream) {
            series.carry(incarnation, totals);
        }
    }

    /// The text form of all series (Prometheus text format 0.0.4).
    pub fn render(&self, gathered: &Gathered) -> String {
        let mut page = Page::default();
        self.nobody.tell(&mut page);
        for series in self.upstreams.read().unwrap_or_else(PoisonError::into_inner).values() {
            series.tell(&mut page);
        }
        gathered.tell(&mut page, |name| self.find(name));
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed) as f64;
        page.value(&RELOADS, &["ok"], load(&self.reloads_ok));
        page.value(&RELOADS, &["failed"], load(&self.reloads_failed));
        page.value(&RELOAD_OK, &[], 1.0 - load(&self.last_reload_failed));
        page.value(&RELOAD_AT, &[], load(&self.last_reload_at));
        for trouble in Trouble::ALL {
            let count = &self.config_troubles[trouble as usize];
            page.value(&CONFIG_TROUBLES, &[trouble.as_str()], load(count));
        }
        for why in ConnectionRefusal::ALL {
            let count = &self.connections_refused[why as usize];
            page.value(&CONNECTIONS_REFUSED, &[why.as_str()], load(count));
        }
        page.value(&NOTICES_DROPPED, &[], load(&self.notices_dropped));
        page.value(&UNREAD, &[], load(&self.unread_dropped));
        page.value(&BUILD, &[env!("CARGO_PKG_VERSION")], 1.0);
        gathered::tell_process(&mut page);
        page.text()
    }

    fn find(&self, upstream: &str) -> Option<Arc<UpstreamSeries>> {
        self.upstreams.read().unwrap_or_else(PoisonError::into_inner).get(upstream).cloned()
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
#[path = "metrics/tests.rs"]
mod tests;
