//! What is counted as calls end: prepared handles, one branch of the tree per upstream.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use prometheus::{Histogram, HistogramOpts};

use crate::failure::Reason;
use crate::observe::record::Outcome;
use crate::protocol::method::METHODS;

use super::gathered::{Carried, Totals};
use super::page::Page;
use super::{
    CALL_DURATION, CALLS, Family, LIMITER_WAIT, LIMITER_WAITS, OTHER, REFUSALS, RETRIES,
    TOOL_DURATION, UNKNOWN,
};

/// Most tools of one upstream with a series of their own: each is eight lines of a scrape, and
/// more tools than this no model is shown anyway. Further ones share `_other`.
pub const TOOLS_MAX: usize = 2000;

/// From a cached read to the longest call that progress can keep alive; seconds.
const CALL_BUCKETS: [f64; 13] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
/// Coarser, since there are many more of them; seconds.
const TOOL_BUCKETS: [f64; 5] = [0.05, 0.25, 1.0, 5.0, 30.0];

/// The series of one upstream.
pub struct UpstreamSeries {
    name: Arc<str>,
    /// As in [`METHODS`], then one for methods that are not in it.
    methods: [OnceLock<Box<MethodSeries>>; METHODS.len() + 1],
    tools: ArcSwap<HashMap<Arc<str>, Arc<ToolSeries>>>,
    other_tool: Arc<ToolSeries>,
    refusals: [AtomicU64; Reason::ALL.len()],
    unknown: [AtomicU64; Reason::ALL.len()],
    retries: AtomicU64,
    limiter_waits: AtomicU64,
    limiter_wait_micros: AtomicU64,
    carried: Mutex<Carried>,
}

/// The series of one tool. Made of the catalog's names only.
pub struct ToolSeries {
    name: Arc<str>,
    duration: OnceLock<Histogram>,
}

struct MethodSeries {
    duration: Histogram,
    outcomes: [AtomicU64; Outcome::COUNT],
}

impl UpstreamSeries {
    pub(super) fn new(name: Arc<str>) -> UpstreamSeries {
        UpstreamSeries {
            name,
            methods: std::array::from_fn(|_| OnceLock::new()),
            tools: ArcSwap::default(),
            other_tool: Arc::new(ToolSeries::new(OTHER.into())),
            refusals: std::array::from_fn(|_| AtomicU64::new(0)),
            unknown: std::array::from_fn(|_| AtomicU64::new(0)),
            retries: AtomicU64::new(0),
            limiter_waits: AtomicU64::new(0),
            limiter_wait_micros: AtomicU64::new(0),
            carried: Mutex::default(),
        }
    }

    /// The upstream's name, as it stands in the label.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The series of a tool by its exposed name; `_other` if the catalog does not have it.
    pub fn tool(&self, exposed: &str) -> Arc<ToolSeries> {
        self.tools.load().get(exposed).unwrap_or(&self.other_tool).clone()
    }

    /// A call ended. `method` is one of the table, or anything for one that is not.
    pub(in crate::observe) fn ended(&self, method: &str, outcome: Outcome, took: Duration) {
        let at = METHODS.iter().position(|m| m.name == method).unwrap_or(METHODS.len());
        let series = self.methods[at].get_or_init(Box::default);
        series.outcomes[outcome.index()].fetch_add(1, Ordering::Relaxed);
        match outcome {
            Outcome::Refused(reason) => self.refused(reason),
            _ => series.duration.observe(took.as_secs_f64()),
        }
    }

    /// A call went through the guard.
    pub(in crate::observe) fn spent(&self, limited: Duration, attempts: u32) {
        if !limited.is_zero() {
            self.limiter_waits.fetch_add(1, Ordering::Relaxed);
            self.limiter_wait_micros.fetch_add(limited.as_micros() as u64, Ordering::Relaxed);
        }
        if attempts > 1 {
            self.retries.fetch_add(u64::from(attempts - 1), Ordering::Relaxed);
        }
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.refusals[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A call ended of which nobody knows whether it took effect.
    pub(in crate::observe) fn unknown(&self, reason: Reason) {
        self.unknown[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn retain_tools(&self, names: &[Arc<str>]) {
        let tools = self.tools.load();
        // What stays keeps its counts; beyond the bound the first of the catalog's order count.
        let kept = names
            .iter()
            .take(TOOLS_MAX)
            .map(|name| {
                let series = tools.get(name).cloned();
                (name.clone(), series.unwrap_or_else(|| Arc::new(ToolSeries::new(name.clone()))))
            })
            .collect();
        self.tools.store(Arc::new(kept));
    }

    pub(super) fn carry(&self, incarnation: u64, totals: Totals) -> Totals {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner).take_in(incarnation, totals)
    }

    pub(super) fn tell(&self, page: &mut Page) {
        let name = &*self.name;
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        for (at, series) in self.methods.iter().enumerate() {
            let Some(series) = series.get() else { continue };
            let method = METHODS.get(at).map_or(OTHER, |m| m.name);
            for outcome in Outcome::all() {
                let count = load(&series.outcomes[outcome.index()]);
                // Success is told from its first zero on, so that a share has a denominator.
                if count > 0 || outcome == Outcome::Ok {
                    let reason = outcome.reason().map_or("", Reason::as_str);
                    let labels = [name, method, outcome.as_str(), reason];
                    page.value(&CALLS, &labels, count as f64);
                }
            }
            if series.duration.get_sample_count() > 0 {
                page.histogram(&CALL_DURATION, &[name, method], &series.duration);
            }
        }
        let tools = self.tools.load();
        let mut used: Vec<_> = tools.values().chain([&self.other_tool]).collect();
        used.sort_by(|a, b| a.name.cmp(&b.name));
        for tool in used {
            if let Some(duration) = tool.duration.get() {
                page.histogram(&TOOL_DURATION, &[name, &tool.name], duration);
            }
        }
        for (family, counts) in [(&REFUSALS, &self.refusals), (&UNKNOWN, &self.unknown)] {
            for reason in Reason::ALL {
                let count = load(&counts[reason as usize]);
                if count > 0 {
                    page.value(family, &[name, reason.as_str()], count as f64);
                }
            }
        }
        if name != super::NONE {
            let waited = Duration::from_micros(load(&self.limiter_wait_micros));
            page.value(&RETRIES, &[name], load(&self.retries) as f64);
            page.value(&LIMITER_WAITS, &[name], load(&self.limiter_waits) as f64);
            page.value(&LIMITER_WAIT, &[name], waited.as_secs_f64());
        }
    }
}

impl ToolSeries {
    fn new(name: Arc<str>) -> ToolSeries {
        ToolSeries { name, duration: OnceLock::new() }
    }

    /// The tool's exposed name, or `_other`.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// A call of the tool ended.
    pub(in crate::observe) fn ended(&self, took: Duration) {
        // Most tools of a catalog are never called; their buckets are made with the first call.
        self.duration
            .get_or_init(|| histogram(&TOOL_DURATION, &TOOL_BUCKETS))
            .observe(took.as_secs_f64());
    }
}

impl Default for MethodSeries {
    fn default() -> Self {
        MethodSeries {
            duration: histogram(&CALL_DURATION, &CALL_BUCKETS),
            outcomes: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

fn histogram(family: &Family, buckets: &[f64]) -> Histogram {
    let opts = HistogramOpts::new(family.name, family.help).buckets(buckets.to_vec());
    Histogram::with_opts(opts).expect("our own names and buckets are valid")
}
