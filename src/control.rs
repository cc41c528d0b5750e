//! The one writer: a closed set of events becomes the next snapshot.
//!
//! ```text
//!  file changed, SIGHUP ─┐
//!  upstream told         ├─► one thread ──► load, validate, diff, build, swap, retire
//!  stop                 ─┘
//! ```
//!
//! A failure before the swap changes nothing. Unchanged upstreams are kept: same process, same
//! connections, same breaker and counters. What cannot change while running is refused by name,
//! and then the whole file is, so that what runs is always one file's content.
//!
//! A changed upstream serves in its old form until the new one is ready. One that is not within
//! `gateway.rollback_after` is given up: the old form goes on, the rest of the file stays in force,
//! and the next reload, whatever it is for, tries it again.

pub mod diff;
pub mod good;
pub mod plan;
mod reload;
mod successor;
#[cfg(test)]
mod tests;
pub mod watch;

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use hashbrown::{HashMap, HashSet};
use tokio::sync::{mpsc, oneshot};

use crate::catalog::freshness::Freshness;
use crate::catalog::keep;
use crate::catalog::merge::{Catalog, Part};
use crate::catalog::slice::Slice;
use crate::catalog::view::View;
use crate::config::secret::{Scrubber, Secret};
use crate::config::{self, Config, Trouble, UpstreamConfig};
use crate::gateway::Gateway;
use crate::gateway::builtin;
use crate::gateway::snapshot::Snapshot;
use crate::gateway::standing::{self, Standing};
use crate::identity::Identity;
use crate::observe::Observe;
use crate::protocol::method::ListKind;
use crate::upstream::keeper::{Event, Told};
use crate::upstream::{Rates, Site, Upstream};

use successor::Successor;

/// Most events that wait for the writer; a keeper that finds the queue full waits.
pub const EVENTS_MAX: usize = 256;

/// How long the end waits for a disk that takes the last good configuration.
const KEEP_TIME: Duration = Duration::from_secs(2);

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
    successors: HashMap<Arc<str>, Successor>,
    // Let go of, with calls that go on.
    leaving: Vec<Weak<Upstream>>,
    standing: Standing,
    // Keeps configurations that proved good; and the text of one that has yet to.
    good: Option<good::Keeper>,
    candidate: Option<Arc<str>>,
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
            leaving: Vec::new(),
            standing: Standing::default(),
            good: None,
            candidate: None,
            builtin: builtin::slice(),
            secrets: Vec::new(),
            number: 0,
        };
        (control, events)
    }

    /// Keep the text of each configuration that proved good at this place.
    pub fn keep_good(&mut self, place: good::Place) {
        self.good = Some(good::Keeper::start(place));
    }

    /// The first configuration is the last good one, since the file is broken as `problems` says.
    pub fn on_last_good(&mut self, problems: &str) {
        self.standing.last_good = Some(standing::Told::now(Trouble::LastGood, problems));
        self.observe.metrics.config_trouble(Trouble::LastGood);
    }

    /// The first snapshot: kept catalogs at once, upstreams starting behind it.
    pub fn first(&mut self, config: Arc<Config>) -> Snapshot {
        let mut upstreams = HashMap::new();
        let scrubber = self.scrubber(&config);
        for c in config.upstreams.iter().filter(|c| c.enabled) {
            upstreams.insert(c.name.clone(), self.start(c, &scrubber, None));
        }
        // It starts, so it is good; whether each upstream does, a later start would see too.
        if self.standing.last_good.is_none() {
            self.candidate = Some(config.text.clone());
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

    fn start(
        &mut self,
        config: &Arc<UpstreamConfig>,
        scrubber: &Scrubber,
        rates: Option<Rates>,
    ) -> Arc<Upstream> {
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
            rates,
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
                // Of the instance that serves: where a successor is on its way or was given up, the
                // file's way to the server is another one.
                let own = upstreams.get(&c.name).map_or_else(|| c.clone(), |u| u.config());
                parts.push(Part {
                    config: own,
                    slice: offer.slice.clone(),
                    freshness: offer.freshness.clone(),
                });
            }
        }
        parts.extend(diff::builtin_part(&config, &self.builtin));
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
            successors: self
                .successors
                .iter()
                .map(|(name, s)| (name.clone(), s.upstream.clone()))
                .collect(),
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

    /// Write snapshots until told to stop. A large catalog takes it milliseconds at a stretch, so
    /// where there are calls it is to have a thread of its own.
    pub async fn run(
        mut self,
        gateway: Arc<Gateway>,
        mut events: mpsc::Receiver<Told>,
        mut orders: mpsc::Receiver<Order>,
        load: Load,
    ) {
        self.tell_standing(&gateway);
        self.settle();
        loop {
            let next_look = self.next_look();
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else { return };
                    self.hear(&gateway, event, &mut events);
                }
                () = successor::passed(next_look) => {
                    // One that became ready in the last moment is ready.
                    if let Ok(event) = events.try_recv() {
                        self.hear(&gateway, event, &mut events);
                    }
                    if self.give_up_late_ones(&gateway) {
                        self.republish(&gateway);
                    }
                }
                order = orders.recv() => match order {
                    None => return,
                    Some(Order::Reload(why, reply)) => {
                        let said = self.reload(&gateway, why, &load);
                        self.observe.metrics.reloaded(said.is_ok());
                        self.tell_standing(&gateway);
                        self.settle();
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

    fn hear(&mut self, gateway: &Gateway, event: Told, events: &mut mpsc::Receiver<Told>) {
        let mut shown = Vec::new();
        let mut changed = self.take(gateway, event, &mut shown);
        // What came meanwhile goes into the same snapshot.
        while let Ok(event) = events.try_recv() {
            changed |= self.take(gateway, event, &mut shown);
        }
        if changed {
            self.republish(gateway);
        }
        drop(shown);
    }

    fn tell_standing(&self, gateway: &Gateway) {
        gateway.standing.store(Arc::new(self.standing.clone()));
    }

    // A configuration is good when it is in force and nothing of it is on trial or was given up.
    fn settle(&mut self) {
        if !self.successors.is_empty() {
            return;
        }
        let candidate = self.candidate.take().filter(|_| self.standing.rolled_back.is_empty());
        if let (Some(text), Some(keeper)) = (candidate, &self.good) {
            keeper.keep(text);
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
        if self.successors.get(&name).is_some_and(|s| s.upstream.incarnation == incarnation) {
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

    // One that is replaced has all the time that its calls have; `patience` is for others.
    fn retire(&mut self, old: Arc<Upstream>, patience: Option<Duration>) {
        old.silence();
        self.observe.metrics.settle(&old.name, old.incarnation, old.totals());
        self.leaving.retain(|one| one.strong_count() > 0);
        self.leaving.push(Arc::downgrade(&old));
        let patience = patience.unwrap_or_else(|| old.longest_call());
        tokio::spawn(async move { old.retire(patience).await });
    }

    fn republish(&mut self, gateway: &Gateway) {
        let before = gateway.current.load();
        let next = self.snapshot(before.config.clone(), before.upstreams.clone(), Some(&before));
        gateway.current.publish(next);
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
            .cloned()
            .chain(self.successors.values().map(|s| s.upstream.clone()))
            .chain(self.leaving.iter().filter_map(Weak::upgrade))
            .map(|u| tokio::spawn(async move { u.retire(patience).await }))
            .collect();
        let keeper = self.good.take();
        let wait = async {
            for one in all {
                let _ = one.await;
            }
            if let Some(keeper) = keeper {
                let _ = tokio::time::timeout(KEEP_TIME, keeper.finish()).await;
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

/// Where the configuration comes from, read anew at each reload; `loaded` learns what was read.
pub fn load_from(
    path: PathBuf,
    loaded: watch::Loaded,
    adjust: impl Fn(&mut Config) -> Result<(), String> + Send + 'static,
) -> Load {
    Box::new(move || {
        let told = |problems: config::problem::Problems| problems.to_string();
        let text = config::read_text(&path).map_err(told)?;
        loaded.set(Ok(text.clone().into_bytes()));
        let mut config = config::parse_here(&text, &path).map_err(told)?;
        adjust(&mut config)?;
        Ok(config)
    })
}
