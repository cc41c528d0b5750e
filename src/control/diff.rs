//! Old × new configuration: what can't change, what is kept, built, retired.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::freshness::Freshness;
use crate::catalog::merge::Part;
use crate::catalog::slice::Slice;
use crate::config::secret::{ConsumerKey, Template};
use crate::config::{
    BreakerConfig, ChildConfig, ConcurrencyConfig, Config, ConsumerConfig, EraChoice, GuardConfig,
    HttpConfig, Isolation, Patterns, RateConfig, RetryConfig, ThrottleConfig, TransportConfig,
    UpstreamConfig, UrlTransport,
};
use crate::gateway::builtin;

/// Keys that differ and need a restart.
pub fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let (o, n) = (&old.gateway, &new.gateway);
    [
        ("gateway.listen", o.listen != n.listen),
        ("gateway.state_dir", o.state_dir != n.state_dir),
        ("gateway.cache_dir", o.cache_dir != n.cache_dir),
        ("gateway.sealing_key", o.sealing_key != n.sealing_key),
        ("gateway.max_connections", o.max_connections != n.max_connections),
        ("admin.listen", old.admin.listen != new.admin.listen),
        // A slip of the hand must not open the door to everybody.
        (
            "consumers (taking out the last one)",
            !old.consumers.is_empty() && new.consumers.is_empty(),
        ),
        ("log.format", old.log.format != new.log.format),
        ("trace", old.trace != new.trace),
    ]
    .into_iter()
    .filter_map(|(key, differs)| differs.then_some(key))
    .collect()
}

type ConsumerFacts = (Arc<str>, Vec<String>, Option<Arc<str>>, Option<RateConfig>);

fn consumers(config: &Config) -> Vec<ConsumerFacts> {
    let keys = |c: &ConsumerConfig| c.keys.iter().map(ConsumerKey::to_text).collect();
    config.consumers.iter().map(|c| (c.name.clone(), keys(c), c.view.clone(), c.rate)).collect()
}

/// Whether nothing differs.
pub fn same(old: &Config, new: &Config) -> bool {
    old.gateway == new.gateway
        && old.admin == new.admin
        && old.log == new.log
        && old.trace == new.trace
        && old.upstreams == new.upstreams
        && old.views == new.views
        && consumers(old) == consumers(new)
}

/// What runs under a name while a new configuration is looked at.
#[derive(Clone)]
pub struct Running {
    /// The settings of the instance that serves: its own way to the server, which is not the
    /// file's where a successor is on its way or was given up.
    pub serving: Arc<UpstreamConfig>,
    /// Those of its successor, where one is on its way.
    pub successor: Option<Arc<UpstreamConfig>>,
    /// Whether it serves now; what does not is replaced at once.
    pub ready: bool,
}

/// What runs, by name.
pub type AllRunning = BTreeMap<Arc<str>, Running>;

/// All that a configuration starts, as if it ran: for comparing where nothing does.
pub fn as_if_running(config: &Config) -> AllRunning {
    let enabled = config.upstreams.iter().filter(|u| u.enabled);
    enabled
        .map(|u| (u.name.clone(), Running { serving: u.clone(), successor: None, ready: true }))
        .collect()
}

/// What happens to the upstreams.
#[derive(Default, Debug)]
pub struct Plan {
    /// Same process or endpoint; limits and filters may be new.
    pub keep: BTreeSet<Arc<str>>,
    /// Started, for the first time or anew.
    pub build: BTreeSet<Arc<str>>,
    /// Of those started, whose old instance serves until the new one is ready.
    pub beside: BTreeSet<Arc<str>>,
    /// Of those kept, whose successor is on its way and stays so.
    pub awaited: BTreeSet<Arc<str>>,
    /// Finished.
    pub retire: BTreeSet<Arc<str>>,
    /// Of those kept, whose limits, filters or timeouts are new.
    pub settings: BTreeSet<Arc<str>>,
    /// Views that are new, gone, or not what they were.
    pub views: BTreeSet<Arc<str>>,
    /// Consumers that are new, gone, or not what they were.
    pub consumers: BTreeSet<Arc<str>>,
}

/// Compare what runs, and the configuration in force, with a new one.
pub fn upstreams(old: &Config, running: &AllRunning, new: &Config) -> Plan {
    let mut plan = Plan::default();
    for n in new.upstreams.iter().filter(|u| u.enabled) {
        let Some(now) = running.get(&n.name) else {
            plan.build.insert(n.name.clone());
            continue;
        };
        let awaited = now.successor.as_ref().is_some_and(|s| same_link(s, n));
        if awaited || same_link(&now.serving, n) {
            let own = now.successor.as_ref().filter(|_| awaited).unwrap_or(&now.serving);
            if settings_differ(own, n) {
                plan.settings.insert(n.name.clone());
            }
            if awaited {
                plan.awaited.insert(n.name.clone());
            }
            plan.keep.insert(n.name.clone());
            continue;
        }
        // One that loses its credential is dormant at once.
        if now.ready && n.dormant.is_none() {
            plan.beside.insert(n.name.clone());
        }
        plan.retire.insert(n.name.clone());
        plan.build.insert(n.name.clone());
    }
    let enabled = |name: &str| new.upstreams.iter().any(|n| n.enabled && &*n.name == name);
    plan.retire.extend(running.keys().filter(|name| !enabled(name)).cloned());
    let (o, n) = (&old.views, &new.views);
    plan.views = o.keys().chain(n.keys()).filter(|v| o.get(*v) != n.get(*v)).cloned().collect();
    let (o, n) = (consumers(old), consumers(new));
    plan.consumers = o
        .iter()
        .chain(&n)
        .filter(|c| !(o.contains(c) && n.contains(c)))
        .map(|c| c.0.clone())
        .collect();
    plan
}

// What a link is made of. Everything else can change under a running one.
fn same_link(o: &UpstreamConfig, n: &UpstreamConfig) -> bool {
    o.transport == n.transport
        && o.era == n.era
        && o.dormant == n.dormant
        && o.max_message == n.max_message
        && o.max_items == n.max_items
        && o.max_pages == n.max_pages
}

// Its place among the others is no setting of its own.
fn settings_differ(o: &UpstreamConfig, n: &UpstreamConfig) -> bool {
    UpstreamConfig { order: n.order, ..o.clone() } != *n
}

/// New settings for an instance that keeps the link it has: all but what `same_link` is about.
pub fn on_link_of(settings: &UpstreamConfig, own: &UpstreamConfig) -> UpstreamConfig {
    UpstreamConfig {
        transport: own.transport.clone(),
        era: own.era,
        dormant: own.dormant.clone(),
        max_message: own.max_message,
        max_items: own.max_items,
        max_pages: own.max_pages,
        ..settings.clone()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |s: &BTreeSet<Arc<str>>| {
            if s.is_empty() {
                "none".to_owned()
            } else {
                s.iter().map(|n| &**n).collect::<Vec<_>>().join(", ")
            }
        };
        let changed = self.build.intersection(&self.retire).cloned().collect();
        let started = self.build.difference(&self.retire).cloned().collect();
        let retired = self.retire.difference(&self.build).cloned().collect();
        write!(f, "upstreams kept {}", list(&self.keep))?;
        let others = [
            ("started", started),
            ("changed", changed),
            ("retired", retired),
            ("settings of", self.settings.clone()),
        ];
        for (what, names) in others {
            if !names.is_empty() {
                write!(f, "; {what} {}", list(&names))?;
            }
        }
        for (what, names) in [("views", &self.views), ("consumers", &self.consumers)] {
            if !names.is_empty() {
                write!(f, "; {what} changed: {}", list(names))?;
            }
        }
        Ok(())
    }
}

/// The gateway's own tools as a part of the catalog, where they are offered.
pub fn builtin_part(config: &Config, slice: &Arc<Slice>) -> Option<Part> {
    config.gateway.builtin.then(|| Part {
        config: Arc::new(builtin_config(config.upstreams.len())),
        slice: Some(slice.clone()),
        freshness: Freshness::Live,
    })
}

/// The settings of the gateway's own tools, where the catalog wants some. They never travel, so
/// no transport is used.
pub fn builtin_config(order: usize) -> UpstreamConfig {
    let long = Duration::from_secs(60);
    let one = NonZeroU32::MIN;
    UpstreamConfig {
        name: builtin::NAME.into(),
        order,
        prefixed: true,
        enabled: true,
        upkeep: None,
        transport: TransportConfig::Http(HttpConfig {
            url: Template::literal(""),
            replicas: Vec::new(),
            transport: UrlTransport::Auto,
            headers: vec![],
            bearer: None,
            pool_idle: long,
            dial_timeout: long,
        }),
        child: ChildConfig::default(),
        era: EraChoice::Auto,
        isolation: Isolation::Shared,
        instructions: false,
        filter: Patterns::default(),
        dormant: None,
        connect_timeout: long,
        list_timeout: long,
        call_timeout: long,
        max_call_timeout: long,
        hedge_after: None,
        refresh: long,
        max_items: 16,
        max_pages: 1,
        max_message: 1 << 20,
        guard: GuardConfig {
            concurrency: ConcurrencyConfig { max: one, queue: 0 },
            rate: None,
            breaker: BreakerConfig {
                enabled: false,
                window: long,
                min_calls: one,
                failure_share: 1.0,
                slow_call: long,
                slow_share: 1.0,
                consecutive: one,
                open_for: long,
                probes: one,
            },
            retry: RetryConfig { attempts: 0, backoff: long, backoff_max: long, budget: 0.0 },
            throttle: ThrottleConfig { texts: vec![], pause: long, pause_max: long },
        },
        ejection: crate::config::EjectionConfig::default(),
        idempotency: None,
        tools: vec![],
    }
}
