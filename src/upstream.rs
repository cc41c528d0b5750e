//! One configured MCP server that we call.
//!
//! ```text
//!  Upstream ── guard ── link ── wire      send() is the only door: nothing reaches a link
//!     │                                   without a Route and without the guard
//!     ├── keeper (one task): connect → agree → load the lists → wait → again
//!     └── or replicas: several of these behind one guard, of which each call gets one
//! ```
//!
//! The keeper owns the link; calls only read the newest [`Condition`]. What it does not do: it
//! knows no views and no consumers, and it never repeats a call by itself; that is `guard`'s
//! judgement.

pub mod asking;
mod child;
pub mod condition;
pub mod connector;
mod errand;
mod events;
pub mod handshake;
mod idempotency;
mod idle;
pub mod inbound;
mod inputs;
pub mod keeper;
mod large;
pub mod lease;
pub mod link;
pub mod loader;
mod mirror;
pub mod outbound;
pub mod outlook;
mod pages;
mod rates;
pub mod replicas;
pub mod starts;
pub mod subscriptions;
mod tasks;
pub mod transport;

use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::call::{Call, Consumer, Counted, Notices, Passed, Terminal};
use crate::catalog::slice::Slice;
use crate::catalog::view::Route;
use crate::config::UpstreamConfig;
use crate::config::secret::Scrubber;
use crate::failure::{Delivery, Failure, Fault, Reason, Refusal};
use crate::guard::{Ask, Deadline, Guard, Hedge, Spent};
use crate::observe::metrics::Totals;
use crate::place::in_place;
use crate::protocol::address::Parsed;
use crate::protocol::message::Frame;
use crate::protocol::task::{TaskSupport, Tasks};

pub use rates::Rates;

use asking::Asking;
use condition::{Condition, State};
use connector::{Connector, Replica};
use errand::Errand;
use idempotency::Key;
use idle::Uses;
use inputs::Inputs;
use keeper::Note;
use lease::Leases;
use link::Link;
use outbound::Trace;
use outlook::Terms;
use pages::Pages;
use replicas::{Replicas, Trip};
use starts::{Cause, Starts};
use subscriptions::Subscriptions;
use transport::http::HttpCounters;
use transport::pipe::PipeCounters;
use transport::stdio::{Children, Family};

/// What all upstreams share of the machine.
#[derive(Clone)]
pub struct Site {
    /// The program that supervises children, normally this one.
    pub shim: PathBuf,
    /// Kept catalogs and working directories.
    pub state_dir: PathBuf,
    /// Installed packages.
    pub cache_dir: PathBuf,
    /// The running child processes.
    pub children: Arc<Children>,
    /// How many of them start at once.
    pub starts: Arc<Starts>,
    /// Which resources are watched, and who is told.
    pub subscriptions: Arc<Subscriptions>,
}

/// How long a call may take from reading the snapshot to being counted here.
const SETTLE_TIME: Duration = Duration::from_millis(50);

/// Notifications of changes that wait for the keeper; further ones say nothing new.
const NOTES_MAX: usize = 64;

static INCARNATIONS: AtomicU64 = AtomicU64::new(1);

/// One configured MCP server.
pub struct Upstream {
    /// Its name.
    pub name: Arc<str>,
    config: ArcSwap<UpstreamConfig>,
    guard: Guard,
    // Buckets of tool rules, by pattern; replaced as a whole on reload.
    tool_limiters: ArcSwap<rates::OfTools>,
    condition: watch::Receiver<Condition>,
    connector: Arc<Connector>,
    // Conversations besides the keeper's, of callers who can be asked.
    leases: Arc<Leases>,
    in_flight: Arc<AtomicU64>,
    stop: CancellationToken,
    // Its successor's word counts now, not its own.
    retiring: AtomicBool,
    stopped: Mutex<Option<tokio::task::JoinHandle<()>>>,
    born: tokio::time::Instant,
    // Milliseconds after `born`, rounded up; 0: not yet.
    lists_at: Arc<AtomicU64>,
    // Whether anybody uses it, where that counts.
    uses: Arc<Uses>,
    // Who waits to hear that a page was visited.
    pages: Pages,
    // What tasks want to know.
    inputs: Arc<Inputs>,
    // As the keeper fetched them last; a call that was refused for its headers waits here.
    lists: watch::Sender<Option<Arc<Slice>>>,
    // Where its calls go if there are several; then it has no conversation of its own.
    replicas: Option<Replicas>,
    // Whose replica it is, if it is one.
    whole: Weak<Upstream>,
    /// Rises with each upstream that this process makes.
    pub incarnation: u64,
    /// Starts after the first.
    pub restarts: Arc<AtomicU64>,
    /// What went wrong with messages on its pipe, if it has one.
    pub pipe: Arc<PipeCounters>,
    /// Bytes and strays of the HTTP wire.
    pub http: Arc<HttpCounters>,
}

// What is counted by the wires; shared by replicas.
#[derive(Clone, Default)]
struct Counters {
    restarts: Arc<AtomicU64>,
    pipe: Arc<PipeCounters>,
    http: Arc<HttpCounters>,
}

impl Counters {
    // What makes links, and what calls and conversations hear that is for all.
    fn connector(
        &self,
        config: &UpstreamConfig,
        site: &Site,
        scrubber: Scrubber,
        kept: Option<&Arc<Slice>>,
        replica: Option<Replica>,
    ) -> (Arc<Connector>, mpsc::Receiver<Note>) {
        let (notes, heard) = mpsc::channel(NOTES_MAX);
        let family = Arc::<Family>::default();
        family.ceiling.store(ceiling(config), Ordering::Relaxed);
        let connector = Connector {
            name: config.name.clone(),
            site: site.clone(),
            scrubber,
            ids: Arc::new(AtomicU64::new(1)),
            notes,
            family,
            pipe: self.pipe.clone(),
            http: self.http.clone(),
            in_line: AtomicBool::new(false),
            sse: AtomicBool::new(kept.is_some_and(|s| s.about.sse)),
            replica,
        };
        (Arc::new(connector), heard)
    }
}

/// How one call went, besides its terminal.
#[derive(Default)]
pub struct Sent {
    /// Time in queues and attempts made.
    pub spent: Spent,
    /// The tool said `isError`.
    pub tool_error: bool,
    /// Bytes of the answer that its caller has got already.
    pub passed: usize,
}

impl Upstream {
    /// Start keeping an upstream. `events` hears of every new slice.
    pub fn start(
        config: Arc<UpstreamConfig>,
        site: &Site,
        scrubber: Scrubber,
        events: keeper::Events,
        kept: Option<Arc<Slice>>,
        rates: Option<Rates>,
    ) -> Arc<Upstream> {
        let (condition_tx, condition) = watch::channel(Condition::starting());
        let counters = Counters::default();
        let (connector, notes) = counters.connector(&config, site, scrubber, kept.as_ref(), None);
        if !config.replicas().is_empty() {
            return Upstream::of_replicas(
                config,
                connector,
                condition,
                (condition_tx, events),
                kept,
                rates,
            );
        }
        let whole = Weak::new();
        let upstream = Upstream::new(config, &connector, &counters, condition, None, whole, rates);
        let upstream = Arc::new(upstream);
        upstream.keep(connector, notes, events, condition_tx, kept.as_ref());
        upstream
    }

    fn new(
        config: Arc<UpstreamConfig>,
        connector: &Arc<Connector>,
        counters: &Counters,
        condition: watch::Receiver<Condition>,
        replicas: Option<Replicas>,
        whole: Weak<Upstream>,
        rates: Option<Rates>,
    ) -> Upstream {
        let mut guard = Guard::new(config.name.clone(), &config.guard);
        guard.keep_up(config.upkeep.as_ref());
        let tools = rates.as_ref().map(|rates| &*rates.tools);
        let tool_limiters = ArcSwap::from_pointee(rates::of_tools(&config.tools, tools));
        if let Some(rates) = rates {
            guard.limit_by(rates.whole, config.guard.rate.as_ref());
        }
        Upstream {
            name: config.name.clone(),
            connector: connector.clone(),
            leases: Arc::default(),
            guard,
            tool_limiters,
            config: ArcSwap::new(config),
            condition,
            in_flight: Arc::default(),
            born: tokio::time::Instant::now(),
            lists_at: Arc::default(),
            uses: Arc::default(),
            lists: watch::Sender::new(None),
            pages: Pages::default(),
            inputs: Arc::default(),
            incarnation: INCARNATIONS.fetch_add(1, Ordering::Relaxed),
            stop: CancellationToken::new(),
            retiring: AtomicBool::new(false),
            stopped: Mutex::new(None),
            restarts: counters.restarts.clone(),
            pipe: counters.pipe.clone(),
            http: counters.http.clone(),
            replicas,
            whole,
        }
    }

    fn keep(
        self: &Arc<Self>,
        connector: Arc<Connector>,
        notes: mpsc::Receiver<Note>,
        events: keeper::Events,
        condition: watch::Sender<Condition>,
        kept: Option<&Arc<Slice>>,
    ) {
        let keeper = keeper::Keeper {
            config: Arc::downgrade(self),
            name: self.name.clone(),
            connector,
            notes,
            events,
            uses: self.uses.clone(),
            cause: Cause::Configured,
            condition,
            stop: self.stop.clone(),
            restarts: self.restarts.clone(),
            ready_at: None,
            saving: None,
            verdict: kept.map(|s| s.about.revision),
        };
        self.runs(tokio::spawn(keeper.run()));
    }

    // The task that ends with it.
    fn runs(&self, task: tokio::task::JoinHandle<()>) {
        *self.stopped.lock().expect("no panic while held") = Some(task);
    }

    /// The settings in force.
    pub fn config(&self) -> Arc<UpstreamConfig> {
        self.config.load_full()
    }

    fn lists_confirmed(&self, slice: &Arc<Slice>) {
        self.lists.send_replace(Some(slice.clone()));
        let ms = self.born.elapsed().as_millis() as u64 + 1;
        self.lists_at.store(ms, Ordering::Relaxed);
    }

    /// How it is.
    pub fn condition(&self) -> Condition {
        self.condition.borrow().clone()
    }

    /// Wait until it is something else than starting; for commands that show the state once.
    pub async fn settled(&self) -> Condition {
        let mut rx = self.condition.clone();
        loop {
            let now = rx.borrow_and_update().clone();
            if !matches!(now.state, State::Starting) || rx.changed().await.is_err() {
                return now;
            }
        }
    }

    /// Whether it serves now, if only after a start.
    pub fn is_ready(&self) -> bool {
        matches!(self.condition.borrow().state, State::Ready | State::Idle)
    }

    /// Whether its child waits until others have started.
    pub fn is_in_line(&self) -> bool {
        self.connector.in_line.load(Ordering::Relaxed)
    }

    /// The guard's counters and state.
    pub fn guard(&self) -> crate::guard::GuardSnapshot {
        self.guard.snapshot()
    }

    /// The time without calls that its operators set, if it is now.
    pub fn upkeep(&self) -> Option<crate::guard::Term> {
        self.guard.upkeep()
    }

    /// It asked for a pause outside any call. The credential that it counts by is the same for all
    /// replicas.
    fn throttled(&self, how_long: Duration) {
        match self.whole.upgrade() {
            Some(whole) => whole.guard.pause(how_long),
            None => self.guard.pause(how_long),
        }
    }

    /// What it counted since it was made.
    pub fn totals(&self) -> Totals {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let guard = self.guard.snapshot();
        let breaker = guard.breaker;
        Totals {
            restarts: load(&self.restarts),
            cpu_ms: self.connector.site.children.of(&self.connector.family).usage.cpu_ms,
            memory_restarts: load(&self.connector.family.over),
            stdout_noise: load(&self.pipe.noise_lines),
            stderr_dropped_bytes: load(&self.pipe.stderr_dropped_bytes),
            unmatched_answers: load(&self.pipe.unmatched_answers)
                + load(&self.pipe.duplicate_answers)
                + load(&self.pipe.late_answers)
                + load(&self.http.unmatched_answers),
            received_bytes: load(&self.pipe.bytes_in) + load(&self.http.received_bytes),
            sent_bytes: load(&self.pipe.bytes_out) + load(&self.http.sent_bytes),
            dropped: [
                load(&self.pipe.dropped_notices),
                load(&self.pipe.dropped_asides),
                load(&self.pipe.oversize),
                load(&self.http.dropped_messages),
                load(&self.http.garbled_messages),
            ],
            hedges: [guard.hedges_won, guard.hedges_lost],
            breaker_to: [breaker.closed, breaker.half_opened, breaker.opened],
        }
    }

    /// Time since its lists were last confirmed; `None`: never by this process.
    pub fn lists_age(&self) -> Option<Duration> {
        let at = self.lists_at.load(Ordering::Relaxed);
        (at > 0).then(|| self.born.elapsed().saturating_sub(Duration::from_millis(at)))
    }

    /// The roots of a session's client changed. Whatever conversations are the consumer's or the
    /// session's are told, if they were told that they would be (2025-11-25 client/roots).
    pub fn roots_changed(&self, consumer: &Consumer, session: &str) {
        self.leases.roots_changed(&consumer.name, session);
        for replica in self.replicas() {
            replica.leases.roots_changed(&consumer.name, session);
        }
    }

    // Each an upstream in itself, but for the guard.
    fn replicas(&self) -> &[Arc<Upstream>] {
        self.replicas.as_ref().map_or(&[], Replicas::all)
    }

    // Something that is for no call. What finds no room is told again by the next one.
    fn heard(&self, link: &Link, frame: Frame) {
        let _ = self.connector.notes.try_send(Note { frame, owner: link.owner.clone() });
    }

    /// Calls being carried.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// New settings for the same process or endpoint: limits, breaker, timeouts, filters. Link,
    /// breaker state and counters stay.
    pub fn reconfigure(&self, config: Arc<UpstreamConfig>) {
        self.guard.reconfigure(&config.guard);
        self.guard.keep_up(config.upkeep.as_ref());
        let old = self.tool_limiters.load_full();
        self.tool_limiters.store(Arc::new(rates::of_tools(&config.tools, Some(&old))));
        self.connector.family.ceiling.store(ceiling(&config), Ordering::Relaxed);
        if let Some(replicas) = &self.replicas {
            replicas.reconfigure(&config);
        }
        self.config.store(config);
        self.uses.wake();
    }

    /// From now on its keeper tells nothing: another upstream may have its name.
    pub fn silence(&self) {
        self.retiring.store(true, Ordering::Relaxed);
    }

    /// Finish: let calls in flight end (up to `patience`), then close the link and stop the child.
    pub async fn retire(&self, patience: Duration) {
        self.silence();
        let end = tokio::time::Instant::now() + patience;
        // A call that found this one in the snapshot before may be just about to count.
        tokio::time::sleep(SETTLE_TIME.min(patience)).await;
        // A poll, since this is rare and a notification on every call would cost each of them.
        while self.in_flight() > 0 && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if self.in_flight() > 0 {
            tracing::warn!(upstream = %self.name, in_flight = self.in_flight(),
                "calls did not finish in time and are cut off");
        }
        self.stop.cancel();
        self.leases.close().await;
        if let Some(replicas) = &self.replicas {
            // Boxed, since each of them ends in the same way.
            Box::pin(replicas.retire()).await;
        }
        let task = self.stopped.lock().expect("no panic while held").take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }

    /// The longest that a call of it can take.
    pub fn longest_call(&self) -> Duration {
        let config = self.config.load();
        let tools = config.tools.iter().filter_map(|rule| rule.call_timeout);
        tools.fold(config.max_call_timeout.max(config.call_timeout), Duration::max)
    }

    /// Carry one call. The only door to a link: it takes a [`Route`], which only a view makes.
    pub async fn send(
        &self,
        route: Route,
        parsed: &Parsed,
        call: &Call,
        trace: Trace<'_>,
        notices: &Notices,
    ) -> (Result<Terminal, Failure>, Sent) {
        let _count = Counted::new(&self.in_flight);
        let config = self.config.load_full();
        if config.child.idle_stop.is_some() {
            self.uses.add();
        }
        let Terms { rule, read_only, timeout, hedge_after } = Terms::of(&config, &route);
        let read_only = call.method.read_only || read_only;
        let limiter = rule
            // What is asked about a task is no call of the tool.
            .filter(|r| r.rate.is_some() && call.task.is_none())
            .and_then(|r| self.tool_limiters.load().get(&r.pattern).cloned());
        let deadline = Deadline::new(timeout, config.max_call_timeout.max(timeout));
        let place = rule.and_then(|r| r.idempotency.as_ref()).or(config.idempotency.as_ref());
        let key = place.and_then(|place| Key::of(place, &route, call));
        let hedge = hedge_after
            .filter(|_| read_only && errand::may_be_hedged(call, &route))
            .map(Hedge::new);
        let ask = Ask {
            repeatable: read_only,
            write: !read_only,
            keyed: key.as_ref().map(|key| &key.repeatable),
            tool: limiter.as_deref(),
            hedge: hedge.as_ref(),
        };
        // 2025-11-25 basic/utilities/tasks, "tool-level negotiation".
        if call.tasks == Tasks::Asked && route.task() == TaskSupport::Forbidden {
            let text = "the tool does not run as a task";
            let refusal = Refusal::new(Reason::UnknownMethod, text).at(&self.name);
            return (Err(refusal.into()), Sent::default());
        }
        let mirrored = match mirror::headers(route.params(), call, key.as_ref()) {
            Ok(headers) => headers,
            Err(unfit) => {
                let refusal = Refusal::new(Reason::InvalidParams, unfit.to_string());
                return (Err(refusal.into()), Sent::default());
            }
        };
        let errand = Errand {
            config: &config,
            route: &route,
            parsed,
            mirrored: &mirrored,
            key: key.as_ref(),
            trace,
            hedge: hedge.as_ref().map(|hedge| (hedge, 1)),
            asking: Asking {
                call,
                notices,
                pages: &self.pages,
                guard: &self.guard,
                deadline: &deadline,
                task: None,
            },
        };
        let attempts = AtomicU32::new(0);
        let trip = self.replicas.as_ref().map(|_| Trip::new(read_only));
        let (errand, trip) = (&errand, trip.as_ref());
        let carried = pin!(self.guard.run(&ask, &deadline, |number| {
            attempts.fetch_max(number, Ordering::Relaxed);
            // In one place on the heap: it is handed through the guard, which must not copy it.
            in_place(|| async move {
                if errand.hedge.is_some_and(|(hedge, _)| hedge.is_beside(number)) {
                    return Box::pin(self.attempt_beside(errand, number, trip)).await;
                }
                match (&self.replicas, trip) {
                    (Some(replicas), Some(trip)) => {
                        Box::pin(replicas.attempt(self, errand, trip)).await
                    }
                    _ => errand::attempt(self, errand).await,
                }
            })
        }));
        let (result, spent) = tokio::select! {
            biased;
            carried = carried => carried,
            // Whoever waited for calls to end waits no more: the caller learns that, and when.
            () = self.stop.cancelled() => {
                let text = "the gateway let go of the upstream before the answer came";
                let attempts = attempts.load(Ordering::Relaxed);
                let delivery = if attempts > 0 { Delivery::Unknown } else { Delivery::NotSent };
                let fault = Fault::new(Reason::Retired, delivery, text);
                let mut failure = Failure::from_fault(fault, &self.name, !read_only);
                failure.keyed = errand.key.is_some() && attempts > 1;
                (Err(failure), Spent { attempts, ..Spent::default() })
            }
        };
        match result {
            Ok((Terminal::Passed(Passed { bytes, broken: Some(fault) }), _)) => {
                let mut failure = Failure::from_fault(fault, &self.name, !read_only);
                failure.keyed = errand.key.is_some() && spent.attempts > 1;
                (Err(failure), Sent { spent, passed: bytes, ..Sent::default() })
            }
            // An error under the same key may be about the repetition only, such as that the first
            // is still being worked on.
            Ok((terminal, tool_error))
                if !read_only && spent.doubt.is_some() && (tool_error || terminal.is_error()) =>
            {
                let failure = doubtful(&self.name, spent.doubt, &terminal);
                (Err(failure), Sent { spent, ..Sent::default() })
            }
            Ok((terminal, tool_error)) => (Ok(terminal), Sent { spent, tool_error, passed: 0 }),
            Err(failure) => (Err(failure), Sent { spent, ..Sent::default() }),
        }
    }

    // The link of now. A starting upstream is waited for; one that is down is refused at once
    // with what is known about it.
    async fn link(&self, deadline: &Deadline) -> Result<Arc<Link>, Fault> {
        match self.link_now() {
            Some(link) => Ok(link),
            None => Box::pin(self.awaited_link(deadline)).await,
        }
    }

    fn link_now(&self) -> Option<Arc<Link>> {
        match &*self.condition.borrow() {
            Condition { state: State::Ready, link: Some(link), .. } if !link.is_lost() => {
                Some(link.clone())
            }
            _ => None,
        }
    }

    async fn awaited_link(&self, deadline: &Deadline) -> Result<Arc<Link>, Fault> {
        let mut rx = self.condition.clone();
        loop {
            let now = rx.borrow_and_update().clone();
            match (&now.state, now.link) {
                (State::Ready, Some(link)) if !link.is_lost() => return Ok(link),
                // A lost one is about to be renewed.
                (State::Starting | State::Ready, _) => {}
                (State::Idle, _) => self.uses.wake(),
                (state, _) => return Err(not_there(state, &now.why)),
            }
            match deadline.run(rx.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    return Err(not_there(&State::Retired, "taken out of the configuration"));
                }
                Err(_) => {
                    // Nobody was asked, so nobody was slow.
                    return Err(Fault::new(
                        Reason::UpstreamDown,
                        Delivery::NotSent,
                        "the upstream is still starting",
                    ));
                }
            }
        }
    }

    /// The refusal that stands for the state, before anything is tried: dormant and retired
    /// upstreams are no faults and must not move the breaker. What its operators say of it goes
    /// before what the gateway sees of it.
    pub fn refusal(&self, call: &Call) -> Option<Refusal> {
        if let Some(refusal) = self.guard.barred(|| goes_on(call)) {
            return Some(refusal);
        }
        self.absence()
    }

    // Why it cannot be called for its own state, if it cannot.
    fn absence(&self) -> Option<Refusal> {
        let now = self.condition.borrow();
        match now.state {
            State::Dormant => {
                Some(Refusal::new(Reason::Dormant, now.why.to_string()).at(&self.name))
            }
            State::Retired => {
                Some(Refusal::new(Reason::Retired, "taken out of the configuration").at(&self.name))
            }
            State::Down => {
                let refusal = Refusal::new(
                    Reason::UpstreamDown,
                    format!("the upstream is down since {}: {}", now.since_text(), now.why),
                )
                .at(&self.name);
                Some(match now.next_try_in() {
                    Some(after) => refusal.retry_after(after),
                    None => refusal,
                })
            }
            State::Starting | State::Ready | State::Idle => None,
        }
    }
}

/// How much of an upstream's error is told where it cannot be passed on as it is.
const ERROR_TOLD: usize = 500;

// A write was repeated under its key, and the repetition was answered with an error.
#[cold]
fn doubtful(upstream: &Arc<str>, earlier: Option<Reason>, terminal: &Terminal) -> Failure {
    let said = match terminal {
        Terminal::Answer(frame, _) => String::from_utf8_lossy(&frame.outcome()).into_owned(),
        _ => String::new(),
    };
    let said: String = said.chars().take(ERROR_TOLD).collect();
    let text = "an attempt got no answer, and its repetition was answered with an error";
    let fault = Fault::new(earlier.unwrap_or(Reason::ConnectionLost), Delivery::Unknown, text);
    let mut failure = Failure::from_fault(fault, upstream, true);
    // For the agent; what upstreams say of their customers is not for the log.
    failure.text = format!("{text}: {said}");
    failure.keyed = true;
    failure
}

fn ceiling(config: &UpstreamConfig) -> u64 {
    config.child.memory_max.map_or(0, |max| max as u64)
}

// Whether it is about what began before: a task, or a call whose caller comes back with an answer
// (2026-07-28 basic/patterns/mrtr).
fn goes_on(call: &Call) -> bool {
    call.task.is_some() || call.frame.part("requestState").is_some()
}

#[cold]
fn not_there(state: &State, why: &str) -> Fault {
    let reason = match state {
        State::Dormant => Reason::Dormant,
        State::Retired => Reason::Retired,
        _ => Reason::UpstreamDown,
    };
    Fault::new(reason, Delivery::NotSent, format!("the upstream is {}: {why}", state.as_str()))
}
