//! The new instance of a changed upstream, until it takes over or is given up.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Control, Offer};
use crate::catalog::freshness::Freshness;
use crate::config::{Program, TransportConfig, Trouble, UpstreamConfig};
use crate::gateway::Gateway;
use crate::gateway::standing::Told;
use crate::package;
use crate::upstream::Upstream;
use crate::upstream::condition::State;
use crate::upstream::keeper::Event;

/// How often it is looked at whether a successor still waits for something that is no fault of it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Successor {
    pub upstream: Arc<Upstream>,
    // When it is given up.
    until: Instant,
    // When it is looked at next.
    look: Instant,
}

impl Successor {
    /// One that is begun now and has so long.
    pub(super) fn new(upstream: Arc<Upstream>, patience: Duration) -> Successor {
        let now = Instant::now();
        Successor { upstream, until: now + patience, look: now + LOOK_EVERY }
    }
}

/// Wait for a moment, if there is one.
pub(super) async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Control {
    /// When to look at the successors.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.successors.values().map(|s| s.until.min(s.look)).min()
    }

    /// A successor is ready: it takes over. It is not: the old one goes on, and it tries again.
    pub(super) fn succeed(&mut self, gateway: &Gateway, name: &Arc<str>, event: Event) -> bool {
        let slice = match event {
            Event::Changed => return false,
            Event::Stale(why) => {
                tracing::warn!(upstream = %name, why = %why,
                    "the new instance does not start; the old one keeps serving");
                return false;
            }
            Event::Fresh(slice) => slice,
        };
        let Some(new) = self.successors.remove(name) else { return false };
        let before = gateway.current.load();
        let mut upstreams = before.upstreams.clone();
        let old = upstreams.insert(name.clone(), new.upstream);
        self.offers.insert(name.clone(), Offer { slice: Some(slice), freshness: Freshness::Live });
        let next = self.snapshot(before.config.clone(), upstreams, Some(&before));
        gateway.current.publish(next);
        tracing::info!(upstream = %name, "the new instance has taken over");
        if let Some(old) = old {
            self.retire(old, None);
        }
        self.settle();
        false
    }

    /// Give up the successors whose time is over. Says whether there were any.
    pub(super) fn give_up_late_ones(&mut self, gateway: &Gateway) -> bool {
        let now = Instant::now();
        let snapshot = gateway.current.load();
        let patience = snapshot.config.gateway.rollback_after;
        let mut late = Vec::new();
        for (name, successor) in &mut self.successors {
            if successor.until.min(successor.look) > now {
                continue;
            }
            successor.look = now + LOOK_EVERY;
            let serves = || snapshot.upstreams.get(name).is_some_and(|old| old.is_ready());
            let installing = is_installing(&successor.upstream.config(), &self.site.cache_dir);
            if installing || successor.upstream.is_in_line() {
                // Its time begins when its package is there and it is its turn to start.
                successor.until = successor.look + patience;
            } else if successor.until > now {
                // It has time.
            } else if serves() {
                late.push(name.clone());
            } else {
                // Giving up would help nobody: whichever is ready first serves.
                successor.until = now + patience;
            }
        }
        let mut any = false;
        for name in late {
            if let Some(successor) = self.successors.remove(&name) {
                self.give_up(&name, successor.upstream, patience);
                any = true;
            }
        }
        if any {
            self.tell_standing(gateway);
            self.settle();
        }
        any
    }

    fn give_up(&mut self, name: &Arc<str>, successor: Arc<Upstream>, patience: Duration) {
        let condition = successor.condition();
        let why = match (condition.state, &*condition.why) {
            (State::Starting, "") => "it is still starting",
            (_, why) => why,
        };
        let cause = if condition.cause.is_empty() { why } else { &condition.cause };
        tracing::warn!(upstream = %name, reason = %Trouble::RolledBack, why, cause,
            remedy = Trouble::RolledBack.remedy(),
            "the new instance was not ready within {patience:?} and is stopped; the old one goes \
             on serving, and the rest of the file stays in force");
        self.observe.metrics.config_trouble(Trouble::RolledBack);
        let text = format!("the new instance was not ready within {patience:?}: {cause}");
        self.standing.rolled_back.insert(name.clone(), Told::now(Trouble::RolledBack, &text));
        // It never carried a call.
        self.retire(successor, Some(Duration::ZERO));
    }
}

fn is_installing(config: &UpstreamConfig, cache_dir: &std::path::Path) -> bool {
    match &config.transport {
        TransportConfig::Stdio(child) => match &child.program {
            Program::Package(spec) => package::is_installing(spec, cache_dir),
            Program::Command(_) => false,
        },
        TransportConfig::Http(_) => false,
    }
}
