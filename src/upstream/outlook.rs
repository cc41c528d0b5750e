//! What a call of a tool would meet at its upstream, found out without making one.

use std::time::Duration;

use crate::catalog::view::Route;
use crate::config::{ToolRule, UpstreamConfig};
use crate::failure::Refusal;
use crate::guard::{Look, Term};
use crate::protocol::method::ListKind;

use super::Upstream;
use super::condition::Condition;

/// What the settings say of the calls of one route.
#[derive(Clone, Copy)]
pub struct Terms<'c> {
    /// The rule of its tool, if it is one and has one.
    pub rule: Option<&'c ToolRule>,
    /// Whether it changes nothing, by the operator's word or else the tool's own.
    pub read_only: bool,
    /// Time for a call.
    pub timeout: Duration,
    /// When a read gets a second attempt beside the first.
    pub hedge_after: Option<Duration>,
}

impl<'c> Terms<'c> {
    /// Those of `route`.
    pub fn of(config: &'c UpstreamConfig, route: &Route) -> Terms<'c> {
        let rule =
            (route.kind() == ListKind::Tools).then(|| config.tool_rule(route.native())).flatten();
        Terms {
            rule,
            read_only: rule.and_then(|r| r.read_only).or(route.read_only()).unwrap_or(false),
            timeout: rule.and_then(|r| r.call_timeout).unwrap_or(config.call_timeout),
            hedge_after: rule.and_then(|r| r.hedge_after).or(config.hedge_after),
        }
    }
}

/// What a call would meet.
pub struct Outlook {
    /// The time without calls that its operators set.
    pub upkeep: Option<Term>,
    /// Why it is refused before the guard is asked.
    pub refused: Option<Refusal>,
    /// What the guard would say.
    pub guard: Look,
    /// How the upstream is.
    pub condition: Condition,
}

impl Upstream {
    /// What a new call of this route would meet now. Nothing changes by it.
    pub fn outlook(&self, route: &Route) -> Outlook {
        let config = self.config();
        let terms = Terms::of(&config, route);
        let tools = self.tool_limiters.load();
        let bucket = terms.rule.and_then(|rule| tools.get(&rule.pattern));
        Outlook {
            upkeep: self.upkeep(),
            refused: self.refused(),
            guard: self.guard.look(bucket.map(|b| &**b), terms.timeout),
            condition: self.condition(),
        }
    }

    /// Why a new call is refused before the guard is asked, if it is.
    pub fn refused(&self) -> Option<Refusal> {
        self.guard.barred(|| false).or_else(|| self.absence())
    }
}
