//! One new configuration, applied as a whole or not at all.

use std::sync::Arc;

use hashbrown::HashMap;

use super::diff::{self, AllRunning};
use super::successor::Successor;
use super::{Control, Load, Why};
use crate::catalog::freshness::Freshness;
use crate::config::{Config, Trouble};
use crate::gateway::Gateway;
use crate::gateway::snapshot::Snapshot;
use crate::gateway::standing::Told;
use crate::upstream::Upstream;

/// What runs, as far as [`diff`] wants to know.
pub fn running(snapshot: &Snapshot) -> AllRunning {
    let of = |(name, upstream): (&Arc<str>, &Arc<Upstream>)| {
        let successor = snapshot.successors.get(name).map(|s| s.config());
        // Who has just taken over is told only after its lists are shown; it serves all the same.
        let shown = matches!(snapshot.catalog.freshness(name), Some(Freshness::Live));
        let (serving, ready) = (upstream.config(), upstream.is_ready() || shown);
        (name.clone(), diff::Running { serving, successor, ready })
    };
    snapshot.upstreams.iter().map(of).collect()
}

/// What a running gateway says to a configuration before it looks at the upstreams.
pub enum Verdict {
    /// Nothing differs, and nothing is to be tried again.
    Unchanged,
    /// These keys cannot change while running.
    Refused(Vec<&'static str>),
    /// It is applied so.
    Applies(diff::Plan),
}

/// Judge a configuration: what a reload does, and what `weir plan` says that it would do.
pub fn judge(old: &Config, running: &AllRunning, new: &Config) -> Verdict {
    let fixed = diff::needs_restart(old, new);
    if !fixed.is_empty() {
        return Verdict::Refused(fixed);
    }
    let plan = diff::upstreams(old, running, new);
    if diff::same(old, new) && plan.build.is_empty() {
        return Verdict::Unchanged;
    }
    Verdict::Applies(plan)
}

/// The sentence about keys that cannot change.
pub fn refusal(fixed: &[&str]) -> String {
    format!(
        "the new configuration is refused, nothing changed: {} cannot change while running; \
         restart the gateway, or set it back",
        fixed.join(", ")
    )
}

impl Control {
    pub(super) fn reload(
        &mut self,
        gateway: &Gateway,
        why: Why,
        load: &Load,
    ) -> Result<String, String> {
        let before = gateway.current.load();
        let config = match load() {
            Ok(config) => Arc::new(config),
            Err(problems) => {
                let reason = Trouble::Invalid;
                // Last: they go over several lines.
                tracing::error!(?why, %reason, %problems, "the new configuration is refused, nothing changed");
                return Err(self.refused(reason, problems));
            }
        };
        let plan = match judge(&before.config, &running(&before), &config) {
            Verdict::Refused(fixed) => {
                let (reason, text) = (Trouble::NeedsRestart, refusal(&fixed));
                tracing::error!(?why, %reason, "{text}");
                return Err(self.refused(reason, text));
            }
            Verdict::Unchanged => {
                tracing::info!(?why, "the configuration is unchanged");
                self.accepted(&config);
                return Ok("unchanged".into());
            }
            Verdict::Applies(plan) => plan,
        };
        let retired = self.apply(gateway, &before, &config, &plan);
        let now = gateway.current.load();
        for old in retired {
            let stays = now.upstreams.contains_key(&old.name);
            self.retire(old, (!stays).then_some(config.gateway.drain_timeout));
        }
        for c in config.upstreams.iter().filter(|c| c.enabled && plan.build.contains(&c.name)) {
            if let Some(why) = &c.dormant {
                tracing::warn!(upstream = %c.name, "the upstream is dormant: {why}");
            }
        }
        self.accepted(&config);
        let said = plan.to_string();
        tracing::info!(?why, "configuration reloaded: {said}");
        Ok(said)
    }

    fn refused(&mut self, trouble: Trouble, text: String) -> String {
        self.observe.metrics.config_trouble(trouble);
        self.standing.refused = Some(Told::now(trouble, &text));
        text
    }

    // Whatever was given up is tried again, or no longer wanted.
    fn accepted(&mut self, config: &Config) {
        self.standing = crate::gateway::standing::Standing::default();
        self.candidate = Some(config.text.clone());
    }

    // Publish what `plan` says. What is to be retired comes back.
    fn apply(
        &mut self,
        gateway: &Gateway,
        before: &Snapshot,
        config: &Arc<Config>,
        plan: &diff::Plan,
    ) -> Vec<Arc<Upstream>> {
        self.site.starts.resize(config.gateway.max_starting);
        let scrubber = self.scrubber(config);
        gateway.scrub_logs(scrubber.clone());
        let mut upstreams = HashMap::new();
        let mut retired: Vec<Arc<Upstream>> = Vec::new();
        for c in config.upstreams.iter().filter(|c| c.enabled) {
            // Where a successor is on its way, the settings are for both; where they are reached is
            // each one's own.
            let on_own_link = |old: &Upstream| {
                old.reconfigure(Arc::new(diff::on_link_of(c, &old.config())));
            };
            let serving = match before.upstreams.get(&c.name) {
                Some(kept) if plan.awaited.contains(&c.name) => {
                    if let Some(successor) = self.successors.get(&c.name) {
                        successor.upstream.reconfigure(c.clone());
                    }
                    on_own_link(kept);
                    kept.clone()
                }
                Some(kept) if plan.keep.contains(&c.name) => {
                    // Set back before its successor was ready: nobody waits for that any more.
                    retired.extend(self.successors.remove(&c.name).map(|s| s.upstream));
                    kept.reconfigure(c.clone());
                    kept.clone()
                }
                Some(old) if plan.beside.contains(&c.name) => {
                    let (events, site) = (self.events_tx.clone(), &self.site);
                    let rates = old.rates(c);
                    let upstream =
                        Upstream::start(c.clone(), site, scrubber.clone(), events, None, rates);
                    let successor = Successor::new(upstream, config.gateway.rollback_after);
                    let replaced = self.successors.insert(c.name.clone(), successor);
                    retired.extend(replaced.map(|s| s.upstream));
                    on_own_link(old);
                    old.clone()
                }
                _ => {
                    retired.extend(self.successors.remove(&c.name).map(|s| s.upstream));
                    let rates = before.upstreams.get(&c.name).and_then(|old| old.rates(c));
                    self.start(c, &scrubber, rates)
                }
            };
            upstreams.insert(c.name.clone(), serving);
        }
        for (name, old) in &before.upstreams {
            if !upstreams.get(name).is_some_and(|new| Arc::ptr_eq(new, old)) {
                retired.push(old.clone());
            }
            if !upstreams.contains_key(name) {
                self.offers.remove(name);
            }
        }
        if config.log.level != before.config.log.level {
            self.observe.log_level(&config.log.level);
        }
        let orphaned: Vec<_> =
            self.successors.keys().filter(|name| !upstreams.contains_key(*name)).cloned().collect();
        retired.extend(
            orphaned.iter().filter_map(|name| self.successors.remove(name)).map(|s| s.upstream),
        );
        let next = self.snapshot(config.clone(), upstreams, Some(before));
        gateway.current.publish(next);
        retired
    }
}
