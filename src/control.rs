//! The one writer: a closed set of events becomes the next snapshot.
//!
//! ```text
//!  file changed, SIGHUP ─┐
//!  upstream told         ├─► one task ──► load, validate, diff, build, swap, retire
//!  stop                 ─┘
//! ```
//!
//! A failure before the swap changes nothing. Unchanged upstreams are kept: same process, same
//! connections, same breaker and counters. What cannot change while running is refused by name,
//! and then the whole file is, so that what runs is always one file's content.

pub mod diff;
pub mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hashbrown::{HashMap, HashSet};
use tokio::sync::{mpsc, oneshot};

use crate::aside::aside;
use crate::catalog::freshness::Freshness;
use crate::catalog::keep;
use crate::catalog::merge::{Catalog, Part};
use crate::catalog::slice::Slice;
use crate::catalog::view::View;
use crate::config::secret::{Scrubber, Secret};
use crate::config::{Config, UpstreamConfig};
use crate::gateway::Gateway;
use crate::gateway::builtin;
use crate::gateway::snapshot::Snapshot;
use crate::identity::Identity;
use crate::observe::Observe;
use crate::protocol::method::ListKind;
use crate::upstream::keeper::{Event, Told};
use crate::upstream::{Site, Upstream};

/// Most events that wait for the writer; a keeper that finds the queue full waits.
pub const EVENTS_MAX: usize = 256;

/// How a new configuration is read. The file, in production; a closure in tests.
pub type Load = Box<dyn Fn() -> Result<Config, String> + Send>;

/// What one upstream offers and how fresh that is.
struct Offer {
    slice: Option<Arc<Slice>>,
    freshness: Freshness,
}

/// The state that only the writer sees.
pub struct Control {
    site: Site,
    observe: Arc<Observe>,
    events_tx: mpsc::Sender<Told>,
    offers: HashMap<Arc<str>, Offer>,
    // New instances that are not ready yet: the old one of the name serves until they are.
    successors: HashMap<Arc<str>, Arc<Upstream>>,
    builtin: Arc<Slice>,
    // All that ever was one: an instance of an old configuration may still be at work, and its
    // secret does not become public by being replaced.
    secrets: Vec<Secret>,
    number: u64,
}

/// How many secrets are remembered; beyond it the oldest are forgotten. A reload brings a handful.
const SECRETS_MAX: usize = 10_000;

/// What the writer can be told besides the upstreams' events.
pub enum Order {
    /// Read the configuration again.
    Reload(Why, Option<oneshot::Sender<Result<String, String>>>),
    /// Finish everything; what is under way has so long to end.
    Stop(Duration, oneshot::Sender<()>),
}

/// Who asked for a reload.
#[derive(Clone, Copy, Debug)]
pub enum Why {
    /// The file changed.
    File,
    /// SIGHUP.
    Signal,
}

impl Control {
    /// A writer for this machine. The receiver goes to [`Control::run`].
    pub fn new(site: Site, observe: Arc<Observe>) -> (Control, mpsc::Receiver<Told>) {
        let (events_tx, events) = mpsc::channel(EVENTS_MAX);
        let control = Control {
            site,
            observe,
            events_tx,
            offers: HashMap::new(),
            successors: HashMap::new(),
            builtin: builtin::slice(),
            secrets: Vec::new(),
            number: 0,
        };
        (control, events)
    }

    /// The first snapshot: kept catalogs at once, upstreams starting behind it.
    pub fn first(&mut self, config: Arc<Config>) -> Snapshot {
        let mut upstreams = HashMap::new();
        let scrubber = self.scrubber(&config);
        for c in config.upstreams.iter().filter(|c| c.enabled) {
            upstreams.insert(c.name.clone(), self.start(c, &scrubber));
        }
        self.snapshot(config, upstreams, None)
    }

    fn scrubber(&mut self, config: &Config) -> Scrubber {
        for secret in config.secrets() {
            if !self.secrets.contains(&secret) {
                self.secrets.push(secret);
            }
        }
        let over = self.secrets.len().saturating_sub(SECRETS_MAX);
        self.secrets.drain(..over);
        Scrubber::new(self.secrets.iter().cloned())
    }

    fn start(&mut self, config: &Arc<UpstreamConfig>, scrubber: &Scrubber) -> Arc<Upstream> {
        let kept = keep::load(
            &self.site.state_dir,
            &config.name,
            &keep::identity(&config.transport),
            config.max_items,
        )
        .map(|k| (Arc::new(k.slice), k.fetched_at));
        let offer = match &kept {
            Some((slice, fetched_at)) => Offer {
                slice: Some(slice.clone()),
                freshness: Freshness::Stale {
                    since: *fetched_at,
                    why: "not asked yet since the gateway started".into(),
                },
            },
            None => Offer {
                slice: None,
                freshness: Freshness::Missing {
                    since: SystemTime::now(),
                    why: "not asked yet since the gateway started".into(),
                },
            },
        };
        self.offers.insert(config.name.clone(), offer);
        Upstream::start(
            config.clone(),
            &self.site,
            scrubber.clone(),
            self.events_tx.clone(),
            kept.map(|(slice, _)| slice),
        )
    }

    fn snapshot(
        &mut self,
        config: Arc<Config>,
        upstreams: HashMap<Arc<str>, Arc<Upstream>>,
        before: Option<&Snapshot>,
    ) -> Snapshot {
        self.number += 1;
        let mut parts: Vec<Part> = Vec::new();
        for c in config.upstreams.iter().filter(|c| c.enabled) {
            if let Some(offer) = self.offers.get(&c.name) {
                parts.push(Part {
                    config: c.clone(),
                    slice: offer.slice.clone(),
                    freshness: offer.freshness.clone(),
                });
            }
        }
        if config.gateway.builtin {
            parts.push(Part {
                config: Arc::new(diff::builtin_config(config.upstreams.len())),
                slice: Some(self.builtin.clone()),
                freshness: Freshness::Live,
            });
        }
        let catalog =
            Arc::new(Catalog::build(self.number, parts, before.map(|b| b.catalog.as_ref())));
        Self::report_drops(&catalog, before);
        let identity = Arc::new(Identity::new(&config, before.map(|b| b.identity.as_ref())));
        let mut views = HashMap::new();
        views.insert(None, Arc::new(View::new(&catalog, None)));
        for (name, rule) in &config.views {
            views.insert(Some(name.clone()), Arc::new(View::new(&catalog, Some(rule))));
        }
        let metrics = &self.observe.metrics;
        let mut series = HashMap::new();
        for name in upstreams.keys().cloned().chain([Arc::from(builtin::NAME)]) {
            let tools = catalog.exposed_names(&name, ListKind::Tools);
            series.insert(name.clone(), metrics.upstream(&name, &tools));
        }
        metrics.retain_upstreams(&series.keys().cloned().collect::<Vec<_>>());
        Snapshot {
            number: self.number,
            configured_at: before
                .filter(|b| Arc::ptr_eq(&b.config, &config))
                .map_or_else(SystemTime::now, |b| b.configured_at),
            config,
            upstreams,
            successors: self.successors.clone(),
            catalog,
            identity,
            views,
            series,
            no_series: metrics.nobody(),
        }
    }

    fn report_drops(catalog: &Catalog, before: Option<&Snapshot>) {
        let known: HashSet<_> = before.iter().flat_map(|b| b.catalog.drops()).collect();
        for drop in catalog.drops() {
            if !known.contains(drop) {
                tracing::warn!(upstream = %drop.upstream, kind = drop.kind.as_str(),
                    native = drop.native.as_deref(), exposed = drop.exposed.as_deref(),
                    why = %drop.why, "entry dropped from the catalog");
            }
        }
    }

    /// Write snapshots until told to stop.
    pub async fn run(
        mut self,
        gateway: Arc<Gateway>,
        mut events: mpsc::Receiver<Told>,
        mut orders: mpsc::Receiver<Order>,
        load: Load,
    ) {
        loop {
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else { return };
                    let mut shown = Vec::new();
                    let mut changed = self.take(&gateway, event, &mut shown);
                    // What came meanwhile goes into the same snapshot.
                    while let Ok(event) = events.try_recv() {
                        changed |= self.take(&gateway, event, &mut shown);
                    }
                    if changed {
                        aside(|| self.republish(&gateway));
                    }
                    drop(shown);
                }
                order = orders.recv() => match order {
                    None => return,
                    Some(Order::Reload(why, reply)) => {
                        let said = aside(|| self.reload(&gateway, why, &load));
                        self.observe.metrics.reloaded(said.is_ok());
                        if let Some(reply) = reply {
                            let _ = reply.send(said);
                        }
                    }
                    Some(Order::Stop(patience, done)) => {
                        self.stop(&gateway, &mut events, patience).await;
                        let _ = done.send(());
                        return;
                    }
                },
            }
        }
    }

    // What is to be dropped when the next snapshot is out goes into `shown`.
    fn take(
        &mut self,
        gateway: &Gateway,
        told: Told,
        shown: &mut Vec<oneshot::Sender<()>>,
    ) -> bool {
        let Told { name, incarnation, event, done } = told;
        shown.extend(done);
        if self.successors.get(&name).is_some_and(|s| s.incarnation == incarnation) {
            return self.succeed(gateway, &name, event);
        }
        // An event of an upstream that is no longer there, or was disabled, comes too late.
        let known = gateway.current.load().upstreams.get(&name).map(|u| u.incarnation);
        if known != Some(incarnation) {
            return false;
        }
        let Some(offer) = self.offers.get_mut(&name) else { return false };
        match event {
            Event::Fresh(slice) => {
                let slice = match &offer.slice {
                    Some(before) => Arc::new(Slice::clone(&slice).keeping(before)),
                    None => slice,
                };
                let same = matches!(offer.freshness, Freshness::Live)
                    && offer.slice.as_ref().is_some_and(|before| slice.is_as(before));
                offer.slice = Some(slice);
                offer.freshness = Freshness::Live;
                !same
            }
            Event::Stale(why) => {
                let why = why.to_string();
                let since = match &offer.freshness {
                    Freshness::Live => SystemTime::now(),
                    Freshness::Stale { since, .. } | Freshness::Missing { since, .. } => *since,
                };
                offer.freshness = if offer.slice.is_some() {
                    Freshness::Stale { since, why }
                } else {
                    Freshness::Missing { since, why }
                };
                true
            }
            Event::Changed => false,
        }
    }

    // A successor is ready: it takes over. It is not: the old one goes on, and it tries again.
    fn succeed(&mut self, gateway: &Gateway, name: &Arc<str>, event: Event) -> bool {
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
        let old = upstreams.insert(name.clone(), new);
        self.offers.insert(name.clone(), Offer { slice: Some(slice), freshness: Freshness::Live });
        let next = aside(|| self.snapshot(before.config.clone(), upstreams, Some(&before)));
        let patience = before.config.gateway.drain_timeout;
        gateway.current.publish(next);
        tracing::info!(upstream = %name, "the new instance has taken over");
        if let Some(old) = old {
            self.retire(old, patience);
        }
        false
    }

    fn retire(&self, old: Arc<Upstream>, patience: Duration) {
        old.silence();
        self.observe.metrics.settle(&old.name, old.incarnation, old.totals());
        tokio::spawn(async move { old.retire(patience).await });
    }

    fn republish(&mut self, gateway: &Gateway) {
        let before = gateway.current.load();
        let next = self.snapshot(before.config.clone(), before.upstreams.clone(), Some(&before));
        gateway.current.publish(next);
    }

    fn reload(&mut self, gateway: &Gateway, why: Why, load: &Load) -> Result<String, String> {
        let before = gateway.current.load();
        let config = match load() {
            Ok(config) => Arc::new(config),
            Err(problems) => {
                // Last: they go over several lines.
                tracing::error!(?why, %problems, "the new configuration is refused, nothing changed");
                return Err(problems);
            }
        };
        let fixed = diff::needs_restart(&before.config, &config);
        if !fixed.is_empty() {
            let text = format!(
                "the new configuration is refused, nothing changed: {} cannot change while \
                 running; restart the gateway, or set it back",
                fixed.join(", ")
            );
            tracing::error!(?why, "{text}");
            return Err(text);
        }
        if diff::same(&before.config, &config) {
            tracing::info!(?why, "the configuration is unchanged");
            return Ok("unchanged".into());
        }
        let plan = diff::upstreams(&before.config, &config);
        let scrubber = self.scrubber(&config);
        gateway.scrub_logs(scrubber.clone());
        let mut upstreams = HashMap::new();
        let mut retired: Vec<Arc<Upstream>> = Vec::new();
        for c in config.upstreams.iter().filter(|c| c.enabled) {
            match before.upstreams.get(&c.name) {
                Some(kept) if plan.keep.contains(&c.name) => {
                    // Where a successor is on its way, the settings are for both; where they are
                    // reached is each one's own.
                    if let Some(successor) = self.successors.get(&c.name) {
                        successor.reconfigure(c.clone());
                        let mut own = (**c).clone();
                        own.transport = kept.config().transport.clone();
                        kept.reconfigure(Arc::new(own));
                    } else {
                        kept.reconfigure(c.clone());
                    }
                    upstreams.insert(c.name.clone(), kept.clone());
                }
                Some(old) if old.is_ready() && c.dormant.is_none() => {
                    let (events, site) = (self.events_tx.clone(), &self.site);
                    let new = Upstream::start(c.clone(), site, scrubber.clone(), events, None);
                    retired.extend(self.successors.insert(c.name.clone(), new));
                    upstreams.insert(c.name.clone(), old.clone());
                }
                _ => {
                    retired.extend(self.successors.remove(&c.name));
                    upstreams.insert(c.name.clone(), self.start(c, &scrubber));
                }
            }
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
        retired.extend(orphaned.iter().filter_map(|name| self.successors.remove(name)));
        let patience = config.gateway.drain_timeout;
        let next = self.snapshot(config.clone(), upstreams, Some(&before));
        gateway.current.publish(next);
        for old in retired {
            self.retire(old, patience);
        }
        for c in config.upstreams.iter().filter(|c| c.enabled && plan.build.contains(&c.name)) {
            if let Some(why) = &c.dormant {
                tracing::warn!(upstream = %c.name, "the upstream is dormant: {why}");
            }
        }
        let said = plan.to_string();
        tracing::info!(?why, "configuration reloaded: {said}");
        Ok(said)
    }

    async fn stop(
        &mut self,
        gateway: &Gateway,
        events: &mut mpsc::Receiver<Told>,
        patience: Duration,
    ) {
        let snapshot = gateway.current.load();
        let all: Vec<_> = snapshot
            .upstreams
            .values()
            .chain(self.successors.values())
            .map(|u| {
                let u = u.clone();
                tokio::spawn(async move { u.retire(patience).await })
            })
            .collect();
        let wait = async {
            for one in all {
                let _ = one.await;
            }
        };
        tokio::pin!(wait);
        loop {
            tokio::select! {
                () = &mut wait => return,
                // Keepers tell of their end; nobody needs to hear it any more.
                _ = events.recv() => {}
            }
        }
    }
}

/// Where the configuration comes from, read anew at each reload.
pub fn load_from(
    path: PathBuf,
    adjust: impl Fn(&mut Config) -> Result<(), String> + Send + 'static,
) -> Load {
    Box::new(move || {
        let mut config = crate::config::load(&path, &|name| std::env::var(name).ok())
            .map_err(|problems| problems.to_string())?;
        adjust(&mut config)?;
        Ok(config)
    })
}
