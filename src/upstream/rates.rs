//! How often an upstream may be called, and what an instance has of the one that it replaces.

use std::collections::HashMap;
use std::sync::Arc;

use crate::catalog::keep;
use crate::config::{ToolRule, UpstreamConfig};
use crate::guard::Limiter;

use super::Upstream;

/// The limiters of the tools that have their own, by pattern.
pub(super) type OfTools = HashMap<String, Arc<Limiter>>;

/// The limiters of an upstream: what was spent, and the pause that it asked for.
pub struct Rates {
    pub(super) whole: Arc<Limiter>,
    pub(super) tools: Arc<OfTools>,
}

impl Upstream {
    /// Those that go on for an instance with this configuration: the server counts for itself, so a
    /// new instance of ours has no more than was left. None for another server.
    pub fn rates(&self, next: &UpstreamConfig) -> Option<Rates> {
        let same = keep::identity(&self.config.load().transport) == keep::identity(&next.transport);
        same.then(|| Rates {
            whole: self.guard.limiter().clone(),
            tools: self.tool_limiters.load_full(),
        })
    }
}

/// The limiters that these rules want; what `old` has of them is kept.
pub(super) fn of_tools(rules: &[ToolRule], old: Option<&OfTools>) -> OfTools {
    rules
        .iter()
        .filter_map(|rule| {
            let rate = rule.rate?;
            let limiter = match old.and_then(|old| old.get(&rule.pattern)) {
                Some(kept) => {
                    kept.reconfigure(Some(&rate));
                    kept.clone()
                }
                None => Arc::new(Limiter::new(Some(&rate))),
            };
            Some((rule.pattern.clone(), limiter))
        })
        .collect()
}
