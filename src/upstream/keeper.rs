//! The one task that owns an upstream's link: connect, agree, load the lists, wait, again.

mod rest;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::call::Form;
use crate::catalog::keep;
use crate::catalog::slice::Slice;
use crate::config::{EraChoice, TransportConfig, UpstreamConfig};
use crate::failure::{Delivery, Fault, Reason};
use crate::protocol::capability::Askable;
use crate::protocol::error::{ErrorObject, METHOD_NOT_FOUND};
use crate::protocol::message::{Frame, Kind, response};
use crate::protocol::meta::Members;
use crate::protocol::revision::{Era, Revision};
use crate::protocol::task;

use super::condition::{Condition, State};
use super::connector::Connector;
use super::idle::{self, Quiet, Uses};
use super::link::{Link, Wire};
use super::starts::Cause;
use super::subscriptions::{Subscriptions, TaskNews};
use super::transport::Unasked;
use super::{Upstream, events, loader};

/// What the keeper tells the one writer.
pub enum Event {
    /// The upstream answered with this; it is live.
    Fresh(Arc<Slice>),
    /// What was last seen is all there is, since now, for this reason.
    Stale(Arc<str>),
    /// The state changed.
    Changed,
}

/// What a keeper tells, and whose keeper it is: two upstreams can have one name for a while.
pub struct Told {
    /// The upstream's name.
    pub name: Arc<str>,
    /// Its incarnation.
    pub incarnation: u64,
    /// What it tells.
    pub event: Event,
    /// Dropped when the snapshot holds it.
    pub done: Option<oneshot::Sender<()>>,
}

/// Where the keeper's events go.
pub type Events = mpsc::Sender<Told>;

/// Changes of lists that come within this time are fetched as one. Servers send several at start.
const CHANGE_DEBOUNCE: Duration = Duration::from_millis(200);
/// Lists are not fetched again sooner than this after the last time, however often a change is
/// told: a flooding upstream costs one fetch per pause.
const RELOAD_PAUSE: Duration = Duration::from_secs(1);
/// A fetch of lists that ends sooner than this found a connection that was ending; one that ends
/// later has found that nobody is there.
const SOON: Duration = Duration::from_secs(1);
/// A child that ran this long before it died starts with the shortest pause again.
const STEADY_AFTER: Duration = Duration::from_secs(60);
/// So many early deaths in a row are called a crash loop.
const CRASH_LOOP_AFTER: u32 = 3;
/// Pause after an upstream refused our credential: some lock out who tries too often.
const CREDENTIAL_PAUSE: Duration = Duration::from_secs(30);
/// How long a wish to be left alone is obeyed when a connection is made; operators look sooner.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// How long our word to an upstream's unwanted request may take.
const ASIDE_TIME: Duration = Duration::from_secs(2);
/// Sessions are not renewed more often than this, whatever an upstream answers.
const RENEW_PAUSE: Duration = Duration::from_secs(1);
/// Pauses after lists that could not be fetched.
const LIST_BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));
/// Pauses of an upstream with a URL that cannot be reached, or whose connection was lost.
const HTTP_BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// See the module.
pub struct Keeper {
    pub(super) config: Weak<Upstream>,
    pub(super) name: Arc<str>,
    pub(super) connector: Arc<Connector>,
    // What calls and other conversations heard that is for all.
    pub(super) notes: mpsc::Receiver<Note>,
    pub(super) events: Events,
    pub(super) uses: Arc<Uses>,
    // Why it is started next.
    pub(super) cause: Cause,
    pub(super) condition: watch::Sender<Condition>,
    pub(super) stop: CancellationToken,
    pub(super) restarts: Arc<AtomicU64>,
    // Since when it has been ready without a break.
    pub(super) ready_at: Option<Instant>,
    // The write of the last catalog, which may still be under way.
    pub(super) saving: Option<tokio::task::JoinHandle<()>>,
    /// The revision last agreed on: a remembered verdict spares an old upstream the probe.
    pub(super) verdict: Option<Revision>,
}

enum Ended {
    Stopped,
    Lost(Fault),
    // Nobody used it; the conversation is to be closed.
    Idle(Arc<Link>),
}

impl Keeper {
    /// Run until stopped.
    pub async fn run(mut self) {
        if let Some(why) = self.settings().and_then(|c| c.dormant.clone()) {
            self.set(Condition::new(State::Dormant, why.as_str())).await;
            self.tell(Event::Stale(why.into())).await;
            self.stop.cancelled().await;
            self.set(Condition::new(State::Retired, "")).await;
            return;
        }
        let mut early_deaths = 0u32;
        let mut again = false;
        let stop = self.stop.clone();
        loop {
            let Some(config) = self.settings() else { return };
            if again {
                self.restarts.fetch_add(1, Ordering::Relaxed);
            }
            again = true;
            let began = Instant::now();
            let ended = tokio::select! {
                ended = self.live(&config) => ended,
                () = stop.cancelled() => Ended::Stopped,
            };
            let link = self.condition.borrow().link.clone();
            let fault = match ended {
                Ended::Stopped => {
                    self.set(Condition::new(State::Retired, "")).await;
                    if let Some(link) = link {
                        link.close().await;
                    }
                    return;
                }
                Ended::Idle(link) => {
                    if !self.rest(link).await {
                        self.set(Condition::new(State::Retired, "")).await;
                        return;
                    }
                    // Started again on purpose, and it had done well.
                    (again, early_deaths, self.ready_at) = (false, 0, None);
                    continue;
                }
                Ended::Lost(fault) => fault,
            };
            if let Some(link) = link.as_ref().filter(|l| l.is_lost()) {
                self.renew(link, began).await;
                // The program or endpoint is the same as before.
                again = false;
                continue;
            }
            let steady = self.ready_at.take().is_some_and(|at| at.elapsed() >= STEADY_AFTER);
            if steady && fault.reason == Reason::MemoryExceeded {
                // Our own doing, and long after its start: calls wait for the next one.
                early_deaths = 0;
                self.set(Condition::new(State::Starting, fault.text.as_str())).await;
                if let Some(link) = link {
                    tokio::spawn(async move { link.close().await });
                }
                continue;
            }
            early_deaths = if steady { 1 } else { early_deaths + 1 };
            let (least, most) = match &config.transport {
                TransportConfig::Stdio(s) => (s.restart_backoff, s.restart_backoff_max),
                TransportConfig::Http(_) => HTTP_BACKOFF,
            };
            let asked = match fault.reason {
                // As calls do: as long as it says, or as configured.
                Reason::Throttled => fault.retry_after.unwrap_or(config.guard.throttle.pause),
                // Nothing that time mends; an operator's reload starts it anew.
                Reason::CredentialRefused => CREDENTIAL_PAUSE,
                _ => fault.retry_after.unwrap_or_default(),
            };
            let asked = asked.min(RETRY_AFTER_MAX);
            let pause = backoff(early_deaths, least, most).max(asked);
            // What never ran did not crash.
            let crash_loop = early_deaths >= CRASH_LOOP_AFTER
                && matches!(config.transport, TransportConfig::Stdio(_))
                && fault.reason != Reason::ConnectFailed;
            let told = |text: &str| -> Arc<str> {
                let text = self.connector.scrubber.scrub(text);
                if crash_loop {
                    format!("crash loop, {early_deaths} early ends in a row: {text}").into()
                } else {
                    text.as_ref().into()
                }
            };
            let why = told(&fault.text);
            tracing::warn!(upstream = %self.name, replica = self.replica(), reason = %fault.reason, crash_loop,
                cause = %self.connector.scrubber.scrub(&fault.cause), retry_in_ms = pause.as_millis() as u64,
                "upstream is down");
            let mut condition = Condition::new(State::Down, why.clone());
            if fault.cause != fault.text {
                condition.cause = told(&fault.cause);
            }
            let since = self.down_since();
            if let (State::Down, Some(since)) = (condition.state, since) {
                condition.since = since;
            }
            condition.crash_loop = crash_loop;
            condition.next_try = Some(Instant::now() + pause);
            self.set(condition).await;
            self.tell(Event::Stale(why)).await;
            if let Some(link) = link {
                // Off the path: a child may take its time to die, and each has its own process.
                tokio::spawn(async move { link.close().await });
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => {
                    self.set(Condition::new(State::Retired, "")).await;
                    return;
                }
            }
        }
    }

    // The upstream forgot the session: calls wait for the next one, and lists stay as they are.
    async fn renew(&self, link: &Arc<Link>, began: Instant) {
        tracing::info!(upstream = %self.name, replica = self.replica(), "the session ended and is renewed");
        self.set(Condition::new(State::Starting, "the session ended and is renewed")).await;
        // It is gone there already; ending it could only hurt who is still served in it.
        if link.wire.is_pipe() {
            let old = link.clone();
            tokio::spawn(async move { old.close().await });
        }
        tokio::select! {
            () = tokio::time::sleep_until(began + RENEW_PAUSE) => {}
            () = self.stop.cancelled() => {}
        }
    }

    // From connecting to the end of the link.
    async fn live(&mut self, config: &Arc<UpstreamConfig>) -> Ended {
        let (link, mut unasked) = match self.connect(config).await {
            Ok(connected) => connected,
            Err(fault) => return Ended::Lost(fault),
        };
        let link = Arc::new(link);
        let (reload_tx, mut reload) = mpsc::channel::<()>(1);
        // Requests of an upstream are answered and changes noticed while its lists are loaded:
        // some servers ask before they answer.
        let listener = {
            let link = link.clone();
            let ear = self.ear(&reload_tx);
            AbortOnDrop(tokio::spawn(async move {
                while let Some(message) = unasked.recv().await {
                    heard(&link, message, &ear).await;
                }
            }))
        };
        let ear = self.ear(&reload_tx);
        match self.load(&link, config, &ear).await {
            Ok(slice) => {
                let mut ready = Condition::new(State::Ready, "");
                ready.link = Some(link.clone());
                tracing::info!(upstream = %self.name, replica = self.replica(), revision = %link.agreed.revision,
                    tools = slice.list(crate::protocol::method::ListKind::Tools).items.len(), "upstream is ready");
                self.verdict = Some(link.agreed.revision);
                self.publish(config, slice).await;
                self.ready_at = Some(Instant::now());
                self.set(ready).await;
                // What changed while there was no conversation was told nobody.
                ear.subscriptions.tell_all(&self.name, ear.replica);
            }
            Err(fault) => {
                link.close().await;
                return Ended::Lost(fault);
            }
        }
        let events = events::follow(link.clone(), ear.clone());
        let _events = AbortOnDrop(tokio::spawn(events));
        let ended = self.watch(&link, &mut reload, &ear).await;
        drop(listener);
        ended
    }

    // Until the link is lost: fetch the lists again when told so, when calls cast a doubt on the
    // endpoint, and now and then anyway.
    async fn watch(
        &mut self,
        link: &Arc<Link>,
        reload: &mut mpsc::Receiver<()>,
        ear: &Ear,
    ) -> Ended {
        let mut last = Instant::now();
        let mut sooner: Option<Instant> = None;
        let mut failures = 0u32;
        let mut quiet = Quiet::new(&self.uses);
        // Not moved by whatever else happens meanwhile.
        let mut look = Instant::now();
        loop {
            let Some(config) = self.settings() else { return Ended::Stopped };
            let due = sooner.map_or(last + config.refresh, |at| at.min(last + config.refresh));
            let idle_stop = config.child.idle_stop;
            tokio::select! {
                fault = ended(link) => return Ended::Lost(fault),
                Some(note) = self.notes.recv() => {
                    ear.note(&note.frame, note.owner.as_deref());
                    continue;
                }
                told = reload.recv() => {
                    if told.is_none() {
                        return Ended::Stopped;
                    }
                    let wait = CHANGE_DEBOUNCE.max(RELOAD_PAUSE.saturating_sub(last.elapsed()));
                    sooner.get_or_insert_with(|| Instant::now() + wait);
                    continue;
                }
                () = self.uses.woken() => continue,
                () = tokio::time::sleep_until(
                    look + idle_stop.map_or(config.refresh, idle::pause)
                ) => {
                    look = Instant::now();
                    match idle_stop {
                        Some(limit) if self.begins_to_rest(&mut quiet, limit).await => {
                            return Ended::Idle(link.clone());
                        }
                        _ => continue,
                    }
                }
                () = link.doubted() => {
                    sooner = Some(last + RELOAD_PAUSE);
                    continue;
                }
                () = tokio::time::sleep_until(due) => {}
            }
            sooner = None;
            let begun = Instant::now();
            let mut loaded = self.load(link, &config, ear).await;
            // Over HTTP that may be one connection of several. Lists change nothing, so what ends
            // soon is asked for again before all calls are turned away.
            if let Err(fault) = &loaded
                && is_gone(fault)
                && !link.wire.is_pipe()
                && !link.is_lost()
                && begun.elapsed() < SOON
            {
                tracing::debug!(upstream = %self.name, replica = self.replica(), reason = %fault.reason,
                    cause = %self.connector.scrubber.scrub(&fault.cause), "lists are asked for once more");
                loaded = self.load(link, &config, ear).await;
            }
            last = Instant::now();
            match loaded {
                Ok(slice) => {
                    failures = 0;
                    self.publish(&config, slice).await;
                }
                Err(fault) => {
                    tracing::warn!(upstream = %self.name, replica = self.replica(), reason = %fault.reason,
                        cause = %self.connector.scrubber.scrub(&fault.cause), "lists could not be fetched again");
                    if is_gone(&fault) {
                        return Ended::Lost(fault);
                    }
                    failures += 1;
                    let (least, most) = LIST_BACKOFF;
                    let pause = backoff(failures, least, most);
                    sooner = Some(last + fault.retry_after.unwrap_or(pause).max(pause));
                    self.tell(Event::Stale(
                        self.connector.scrubber.scrub(&fault.text).as_ref().into(),
                    ))
                    .await;
                }
            }
        }
    }

    // Fetch the lists. Meanwhile changes of resources are told as ever, and the end is noticed.
    async fn load(
        &mut self,
        link: &Arc<Link>,
        config: &UpstreamConfig,
        ear: &Ear,
    ) -> Result<Slice, Fault> {
        let load = loader::load(link, config);
        tokio::pin!(load);
        loop {
            tokio::select! {
                loaded = &mut load => {
                    if let Err(fault) = &loaded {
                        ear.throttled(fault);
                    }
                    return loaded;
                }
                fault = ended(link) => return Err(fault),
                Some(note) = self.notes.recv() => ear.note(&note.frame, note.owner.as_deref()),
            }
        }
    }

    async fn connect(
        &mut self,
        config: &Arc<UpstreamConfig>,
    ) -> Result<(Link, mpsc::Receiver<Unasked>), Fault> {
        let era = match (config.era, self.verdict.map(Revision::era)) {
            (EraChoice::Auto, Some(Era::Legacy)) => EraChoice::Legacy,
            (chosen, _) => chosen,
        };
        let _place = self.place(config).await;
        let mut connected = self.connector.connect(config, era, Askable::default()).await;
        if let Ok((link, _)) = &mut connected {
            link.owner = self.connector.replica.as_ref().map(|replica| replica.tag.clone());
        } else {
            // A remembered verdict can be out of date: forget it and probe next time.
            self.verdict = None;
            self.connector.forget();
        }
        connected
    }

    fn ear(&self, reload: &mpsc::Sender<()>) -> Ear {
        Ear {
            upstream: self.name.clone(),
            reload: reload.clone(),
            subscriptions: self.connector.site.subscriptions.clone(),
            owner: self.config.clone(),
            replica: self.connector.replica.is_some(),
        }
    }

    fn settings(&self) -> Option<Arc<UpstreamConfig>> {
        self.config.upgrade().map(|u| u.config())
    }

    fn down_since(&self) -> Option<SystemTime> {
        let now = self.condition.borrow();
        // Between two tries it is still the same trouble.
        matches!(now.state, State::Down).then_some(now.since)
    }

    async fn publish(&mut self, config: &Arc<UpstreamConfig>, slice: Slice) {
        let slice = Arc::new(slice);
        if let Some(upstream) = self.config.upgrade() {
            upstream.lists_confirmed(&slice);
        }
        // Whoever finds the upstream ready finds its lists, too.
        let (done, shown) = oneshot::channel();
        self.tell_and(Event::Fresh(slice.clone()), Some(done)).await;
        let _ = shown.await;
        // What replicas offer is kept as one catalog, by whoever knows them all.
        if self.connector.replica.is_none() {
            let dir = &self.connector.site.state_dir;
            save(&mut self.saving, dir, config, slice).await;
        }
    }

    // Which one, of several; for the log.
    fn replica(&self) -> Option<usize> {
        self.connector.replica.as_ref().map(|replica| replica.number)
    }

    async fn set(&self, condition: Condition) {
        self.condition.send_replace(condition);
        self.tell(Event::Changed).await;
    }

    async fn tell(&self, event: Event) {
        self.tell_and(event, None).await;
    }

    async fn tell_and(&self, event: Event, done: Option<oneshot::Sender<()>>) {
        let Some(upstream) = self.config.upgrade() else { return };
        if upstream.retiring.load(Ordering::Relaxed) {
            return;
        }
        let incarnation = upstream.incarnation;
        drop(upstream);
        let _ = self.events.send(Told { name: self.name.clone(), incarnation, event, done }).await;
    }
}

/// Keep a slice on disk. `saving` is the write before it, and then this one.
pub(super) async fn save(
    saving: &mut Option<tokio::task::JoinHandle<()>>,
    dir: &Path,
    config: &UpstreamConfig,
    slice: Arc<Slice>,
) {
    // Disk is slow at times and nobody waits for it, but the next one does; a lost write costs
    // a probe at the next start.
    if let Some(before) = saving.take() {
        let _ = before.await;
    }
    let (dir, name) = (dir.to_owned(), config.name.clone());
    let identity = keep::identity(&config.transport);
    *saving = Some(tokio::task::spawn_blocking(move || {
        if let Err(error) = keep::save(&dir, &name, &identity, &slice, SystemTime::now()) {
            tracing::warn!(upstream = %name, %error, "the catalog could not be kept on disk");
        }
    }));
}

// Nobody is there, or was until the end.
fn is_gone(fault: &Fault) -> bool {
    matches!(fault.reason, Reason::ConnectFailed | Reason::ConnectionLost)
}

fn backoff(early_deaths: u32, least: Duration, most: Duration) -> Duration {
    let grown = least.saturating_mul(1 << early_deaths.saturating_sub(1).min(16)).min(most);
    // Half fixed, half random: many upstreams that died together do not come back together.
    let mut byte = [0u8; 1];
    getrandom::fill(&mut byte).expect("the operating system gives random bytes");
    grown / 2 + (grown / 2).mul_f64(f64::from(byte[0]) / 255.0)
}

pub(super) async fn ended(link: &Link) -> Fault {
    let lost = async {
        link.when_lost().await;
        Fault::new(Reason::ConnectionLost, Delivery::NotSent, "the session ended")
    };
    match &link.wire {
        Wire::Pipe(pipe) => tokio::select! {
            biased;
            fault = pipe.doomed() => fault,
            fault = pipe.ended() => fault,
            fault = lost => fault,
        },
        Wire::Http(_) => lost.await,
    }
}

/// What an upstream told of outside the keeper's own conversation.
pub struct Note {
    /// The notification.
    pub frame: Frame,
    /// Whose conversation that was, if it is not everybody's.
    pub owner: Option<Arc<str>>,
}

/// Where changes go that an upstream tells of.
#[derive(Clone)]
pub(super) struct Ear {
    pub upstream: Arc<str>,
    // Room for one: the lists are fetched as they are then.
    pub reload: mpsc::Sender<()>,
    pub subscriptions: Arc<Subscriptions>,
    pub owner: Weak<Upstream>,
    // Others tell of the same.
    pub replica: bool,
}

/// What says that somebody is done with a page (2025-11-25 client/elicitation).
pub(super) const PAGE_VISITED: &str = "notifications/elicitation/complete";

/// What says how a task is: as 2025-11-25 does, and as the extension.
const OLD_TASK_NEWS: &str = "notifications/tasks/status";
const TASK_NEWS: &str = "notifications/tasks";

/// Whether a notification belongs to no call: it concerns all who use the upstream, or says itself
/// whom.
pub(super) fn is_change(method: &str) -> bool {
    matches!(
        method,
        "notifications/tools/list_changed"
            | "notifications/prompts/list_changed"
            | "notifications/resources/list_changed"
            | "notifications/resources/updated"
            | PAGE_VISITED
            | OLD_TASK_NEWS
            | TASK_NEWS
    )
}

impl Ear {
    /// Changes may have gone untold for a while: the lists are fetched again, and all that is
    /// watched may have changed.
    pub fn missed(&self) {
        let _ = self.reload.try_send(());
        self.subscriptions.tell_all(&self.upstream, self.replica);
    }

    /// The upstream asked for a pause where no call was: calls keep it too.
    pub fn throttled(&self, fault: &Fault) {
        // Only what says how long: this was no call, and calls may well be welcome.
        if let (Reason::Throttled, Some(pause), Some(owner)) =
            (fault.reason, fault.retry_after, self.owner.upgrade())
        {
            owner.throttled(pause);
        }
    }

    /// `owner`: whose conversation it was heard in, if that is not everybody's.
    pub fn note(&self, frame: &Frame, owner: Option<&str>) {
        if !is_change(frame.method()) {
            return;
        }
        if frame.method() == PAGE_VISITED {
            if let Some(upstream) = self.owner.upgrade() {
                upstream.pages.visited(frame, owner);
            }
            return;
        }
        if matches!(frame.method(), OLD_TASK_NEWS | TASK_NEWS) {
            let form = if frame.method() == TASK_NEWS { Form::Canonical } else { Form::Plain };
            let Some(said) = frame.params() else { return };
            let Some(task) = task::id_of(&said).map(Into::into) else { return };
            let upstream = self.upstream.clone();
            let owner = owner.map(Into::into);
            return self.subscriptions.tell_task(TaskNews { upstream, owner, task, said, form });
        }
        if frame.method() != "notifications/resources/updated" {
            let _ = self.reload.try_send(());
            return;
        }
        let Some(params) = frame.params() else { return };
        let Ok(members) = Members::read(&params) else { return };
        if let Some(uri) = members.get_str("uri") {
            self.subscriptions.changed(&self.upstream, &uri, self.replica);
        }
    }
}

// What an upstream says unasked. On a shared link nobody can be asked anything (2025-11-25
// client/*: undeclared capabilities are refused with -32601).
pub(super) async fn heard(link: &Link, message: Unasked, ear: &Ear) {
    match message {
        Unasked::Request(frame) => {
            tracing::debug!(upstream = %link.upstream, method = frame.method(), "the upstream asks");
            refuse(link, &frame).await;
        }
        Unasked::Notification(frame) => ear.note(&frame, link.owner.as_deref()),
    }
}

/// Answer a request that is put to nobody: `ping` with a yes, all else with a no.
pub(super) async fn refuse(link: &Link, frame: &Frame) {
    let Some(id) = frame.id() else { return };
    let answer = if frame.method() == "ping" {
        response(&id, Kind::Result, b"{}")
    } else {
        let error = ErrorObject::new(METHOD_NOT_FOUND, "the client did not declare this");
        response(&id, Kind::Error, error.to_raw().get().as_bytes())
    };
    let _ = tokio::time::timeout(ASIDE_TIME, link.notify(answer)).await;
}

pub(super) struct AbortOnDrop(pub(super) tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
