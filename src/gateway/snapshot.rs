//! One immutable version of everything the data path reads, and the one place that holds it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use tokio::sync::watch;

use crate::call::Consumer;
use crate::catalog::merge::Catalog;
use crate::catalog::view::{Route, View};
use crate::config::{Config, Patterns, ViewRule};
use crate::failure::{Reason, Refusal};
use crate::identity::{Identity, Member, OPERATOR};
use crate::observe::metrics::UpstreamSeries;
use crate::upstream::Upstream;

/// One version of everything.
pub struct Snapshot {
    /// Counts up with every change.
    pub number: u64,
    /// The configuration in force.
    pub config: Arc<Config>,
    /// When that was taken.
    pub configured_at: SystemTime,
    /// The running upstreams.
    pub upstreams: HashMap<Arc<str>, Arc<Upstream>>,
    /// New instances of some of them that are not ready yet; shown to operators, never called.
    pub successors: HashMap<Arc<str>, Arc<Upstream>>,
    /// What they offer together.
    pub catalog: Arc<Catalog>,
    /// The consumers.
    pub identity: Arc<Identity>,
    /// What each view sees; `None` sees everything.
    pub views: HashMap<Option<Arc<str>>, Arc<View>>,
    /// Prepared metric handles.
    pub series: HashMap<Arc<str>, Arc<UpstreamSeries>>,
    /// Handles for what belongs to no upstream.
    pub no_series: Arc<UpstreamSeries>,
}

impl Snapshot {
    /// What a consumer sees now. A session or stream is older than this snapshot, so the view is
    /// looked up by the consumer's name and not by what it was when the session began.
    pub fn view(&self, consumer: &Consumer) -> Arc<View> {
        self.view_of(consumer, self.identity.named(&consumer.name))
    }

    /// The same for who has looked for the consumer already.
    pub fn view_of(&self, consumer: &Consumer, member: Option<&Member>) -> Arc<View> {
        let view = match member {
            Some(member) => Some(&member.consumer.view),
            None if &*consumer.name == OPERATOR => Some(&consumer.view),
            // Taken out of the configuration: it sees nothing rather than all.
            None => None,
        };
        view.and_then(|v| self.views.get(v)).cloned().unwrap_or_else(|| {
            let nothing = ViewRule { upstreams: Some(vec![]), patterns: Patterns::default() };
            Arc::new(View::new(&self.catalog, Some(&nothing)))
        })
    }

    /// What [`take_quota`] would say, without taking any.
    pub fn look_at_quota(&self, consumer: &Consumer) -> Result<(), Refusal> {
        match self.identity.named(&consumer.name).and_then(|m| m.quota.as_ref()) {
            Some(quota) => {
                quota.look(Duration::ZERO).map(|_| ()).map_err(|dry| used_up(dry.retry_after))
            }
            None => Ok(()),
        }
    }

    /// The metric handles of a route's upstream.
    pub fn series(&self, route: &Route) -> Arc<UpstreamSeries> {
        self.series.get(route.upstream()).unwrap_or(&self.no_series).clone()
    }
}

/// Take one from a consumer's quota.
pub fn take_quota(member: Option<&Member>) -> Result<(), Refusal> {
    match member.and_then(|m| m.quota.as_ref()) {
        Some(quota) => quota.try_take().map_err(used_up),
        None => Ok(()),
    }
}

fn used_up(after: Duration) -> Refusal {
    Refusal::new(Reason::QuotaExceeded, "the consumer's rate quota is used up").retry_after(after)
}

/// The newest snapshot, and word of each new one.
pub struct Current {
    swap: ArcSwap<Snapshot>,
    changed: watch::Sender<u64>,
}

impl Current {
    /// Start with `first`.
    pub fn new(first: Snapshot) -> Current {
        let changed = watch::Sender::new(first.number);
        Current { swap: ArcSwap::from_pointee(first), changed }
    }

    /// The newest.
    pub fn load(&self) -> Arc<Snapshot> {
        self.swap.load_full()
    }

    /// Publish. Called by the one writer only.
    pub fn publish(&self, next: Snapshot) {
        let number = next.number;
        self.swap.store(Arc::new(next));
        self.changed.send_replace(number);
    }

    /// Hears of each new snapshot.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
