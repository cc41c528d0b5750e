//! The composition root: a configuration in, a running gateway out.

mod asked;
mod boot;
pub mod findings;
pub mod handed;
pub mod limits;
pub mod plan;
pub mod report;
pub mod why;

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::bridge;
use crate::call::{Call, Consumer, Form, Notices, Terminal};
use crate::config::secret::{Scrubber, Template};
use crate::config::{Config, LogFormat};
use crate::control::good::Place;
use crate::control::{self, Control, Order, watch};
use crate::downstream::{Edge, UNREAD_TIME, listener, stdio};
use crate::gateway::Gateway;
use crate::gateway::memory::LOOK_EVERY;
use crate::identity::OPERATOR;
use crate::observe::Observe;
use crate::observe::log::LogHandle;
use crate::observe::record::Record;
use crate::observe::trace::Tracer;
use crate::protocol::capability::Askable;
use crate::protocol::message::{Frame, message};
use crate::protocol::meta::{ObjectWriter, RequestMeta};
use crate::protocol::method::{self, ListKind};
use crate::protocol::revision::Revision;
use crate::protocol::task::Tasks;
use crate::seal::Sealer;
use crate::upstream::Site;
use crate::upstream::starts::Starts;

use findings::Findings;
use handed::Handed;
use report::{CallReport, CatalogReport, ConsumerReport, ListReport, UpstreamReport};

/// Orders that wait for the writer.
const ORDERS_MAX: usize = 16;
/// How often idle sessions are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How often memory that is free is given back to the system.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(1);
/// A block of its own, and not a part of one for many.
const BLOCK: usize = 1 << 20;
/// How long answers that came at the end of the drain time may take to leave.
const LAST_BYTES: Duration = Duration::from_secs(1);
/// How often it is looked at whether anybody is still connected when the gateway is leaving.
const LEAVE_LOOK: Duration = Duration::from_millis(50);
/// How long the last spans and log lines may take to leave.
const FLUSH_WAIT: Duration = Duration::from_secs(2);

/// What the command line can say besides the file.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Path of the configuration.
    pub config: PathBuf,
    /// Instead of `gateway.listen`.
    pub listen: Option<SocketAddr>,
    /// Instead of `log.format`.
    pub log_format: Option<LogFormat>,
    /// With a broken configuration serve the last good one. It is looked for in this folder of
    /// state; an empty path is the one that the configuration names, as far as it can be read.
    pub last_good: Option<PathBuf>,
}

/// Why the gateway could not start or go on. The text is for the operator.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The configuration is wrong; all problems, a line each.
    #[error("{0}")]
    Config(String),
    /// The machine said no.
    #[error("{0}")]
    Start(String),
    /// No such consumer or name.
    #[error("{0}")]
    Unknown(String),
}

/// A running gateway.
pub struct Running {
    /// Its edges.
    pub edge: Arc<Edge>,
    /// The way to the one writer.
    pub orders: mpsc::Sender<Order>,
    site: Site,
    // Whether another gateway accepts at the same socket.
    shares: bool,
}

// What the file itself says about what the command line can say too.
type FileSays = (SocketAddr, LogFormat);

fn read(options: &ServeOptions) -> Result<(Config, FileSays), AppError> {
    let mut config = crate::config::load(&options.config, &|name| std::env::var(name).ok())
        .map_err(|problems| {
            let n = problems.all.len();
            let s = if n == 1 { "" } else { "s" };
            AppError::Config(format!("{problems}\n{n} problem{s}"))
        })?;
    let says = adjust(options, &mut config).map_err(AppError::Config)?;
    Ok((config, says))
}

// What the command line says goes before what the file says, at each reload too.
fn adjust(options: &ServeOptions, config: &mut Config) -> Result<FileSays, String> {
    let says = (config.gateway.listen, config.log.format);
    if let Some(listen) = options.listen {
        config.gateway.listen = listen;
        if config.consumers.is_empty() && !listen.ip().is_loopback() {
            return Err(format!(
                "--listen {listen}: without consumers the gateway serves loopback only; add one \
                 with `weir key new NAME`, or listen on 127.0.0.1"
            ));
        }
    }
    if let Some(format) = options.log_format {
        config.log.format = format;
    }
    Ok(says)
}

// A change of the file that the command line hides would otherwise be told as none.
fn tell_hidden(options: &ServeOptions, before: FileSays, now: FileSays) {
    if let Some(listen) = options.listen.filter(|_| now.0 != before.0) {
        tracing::warn!(file = %now.0, %listen,
            "gateway.listen of the file changed and has no effect: it is overridden by --listen");
    }
    if options.log_format.is_some() && now.1 != before.1 {
        tracing::warn!(
            "log.format of the file changed and has no effect: it is overridden by --log-format"
        );
    }
}

// How a configuration came, and where it comes from again.
struct Origin {
    options: ServeOptions,
    says: FileSays,
    seen: watch::Seen,
    // What is wrong with the file, if the last good one took its place.
    broken: Option<String>,
}

/// Start everything but the listeners.
fn start(
    config: Config,
    origin: Option<Origin>,
    log: Option<LogHandle>,
    shim: PathBuf,
) -> Result<Running, AppError> {
    let config = Arc::new(config);
    let site = Site {
        shim,
        state_dir: config.gateway.state_dir.clone(),
        cache_dir: config.gateway.cache_dir.clone(),
        children: Arc::default(),
        starts: Arc::new(Starts::new(config.gateway.max_starting)),
        subscriptions: Arc::default(),
    };
    let tracer = Tracer::new(&config.trace).map_err(|e| AppError::Start(e.to_string()))?;
    if let Some(log) = &log {
        log.scrub(Scrubber::new(config.secrets()));
    }
    let observe = Arc::new(Observe::new(tracer, log));
    let (mut control, events) = Control::new(site.clone(), observe.clone());
    if let Some(origin) = &origin {
        control.keep_good(Place::of(&site.state_dir, &origin.options.config));
        if let Some(problems) = &origin.broken {
            control.on_last_good(problems);
        }
    }
    let gateway =
        Arc::new(Gateway::new(control.first(config.clone()), observe, site.subscriptions.clone()));
    let (orders, orders_rx) = mpsc::channel(ORDERS_MAX);
    let load: control::Load = match origin {
        Some(Origin { options, says, seen, .. }) => {
            let loaded = watch::Loaded::new(seen);
            tokio::spawn(watch::file(options.config.clone(), loaded.clone(), orders.clone()));
            tokio::spawn(watch::hangup(orders.clone()));
            let said = Mutex::new(says);
            control::load_from(options.config.clone(), loaded, move |c| {
                let now = adjust(&options, c)?;
                let mut said = said.lock().expect("no panic while held");
                tell_hidden(&options, std::mem::replace(&mut said, now), now);
                Ok(())
            })
        }
        None => Box::new(|| Err("this command does not reload".to_owned())),
    };
    let writes = control.run(gateway.clone(), events, orders_rx, load);
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new()
        .name("weir-control".into())
        .spawn(move || runtime.block_on(writes))
        .map_err(|e| AppError::Start(format!("a thread cannot be started: {e}")))?;
    let edge = Edge::new(gateway, sealer(&config));
    let (swept, watched) = (edge.clone(), edge.gateway.clone());
    tokio::spawn(every(SWEEP_EVERY, edge.stop.clone(), move || sweep(&swept)));
    tokio::spawn(every(GIVE_BACK_EVERY, edge.stop.clone(), give_back));
    tokio::spawn(every(LOOK_EVERY, edge.stop.clone(), move || watched.memory.look_again()));
    Ok(Running { edge, orders, site, shares: false })
}

fn sealer(config: &Config) -> Sealer {
    if let Some(key) = &config.gateway.sealing_key {
        return Sealer::new(key.expose().as_bytes());
    }
    Sealer::kept(&config.gateway.state_dir).unwrap_or_else(|error| {
        let place = config.gateway.state_dir.display();
        tracing::warn!(%error, "no sealing key in {place}: sessions end with this process");
        Sealer::random()
    })
}

// Do it now and then, until the gateway has stopped.
async fn every(time: Duration, stop: CancellationToken, mut what: impl FnMut()) {
    let mut tick = tokio::time::interval(time);
    // What was missed while the machine was busy need not be made up for.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => what(),
            () = stop.cancelled() => return,
        }
    }
}

fn sweep(edge: &Edge) {
    edge.parks.expire();
    edge.gateway.observe.metrics.unread_dropped(edge.unread.take_back(UNREAD_TIME));
    edge.sessions.expire(edge.gateway.current.load().config.gateway.session_idle);
}

// The allocator keeps what is freed for a moment, since it may be asked for again, and looks at the
// clock only when a block comes or goes. After a rush there may be nobody who does that.
fn give_back() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(BLOCK)));
}

impl Running {
    /// Ask clients to go elsewhere, and give them time for it: not ready, and each answer says that
    /// its connection ends. Over when nobody is connected any more, or `hurry` resolves.
    pub async fn leave(&self, hurry: impl Future<Output = ()>) {
        let notice = self.edge.gateway.current.load().config.gateway.drain_notice;
        if notice.is_zero() {
            // Nothing is announced that is not already so.
            return;
        }
        self.edge.leave();
        let nobody = async {
            tokio::time::sleep(notice.min(LEAVE_LOOK)).await;
            while self.edge.connections.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(LEAVE_LOOK).await;
            }
        };
        tokio::select! {
            () = tokio::time::sleep(notice) => {}
            // Who does not share its socket may still be found by clients who know no better.
            () = nobody, if self.shares => {}
            () = hurry => {}
        }
    }

    /// Finish: no new calls, calls in flight end, children stop.
    pub async fn stop(self) {
        let patience = self.edge.gateway.current.load().config.gateway.drain_timeout;
        // Refused first, announced then: who reads that it is not ready is not served.
        self.edge.gateway.drain();
        self.edge.leave();
        let end = tokio::time::Instant::now() + patience;
        while self.edge.gateway.in_flight() > 0 && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let cut = self.edge.gateway.in_flight();
        if cut > 0 {
            tracing::warn!(calls = cut, "calls did not finish within gateway.drain_timeout");
        }
        self.edge.stop.cancel();
        self.edge.tasks.close();
        self.edge.served.close();
        // Calls that did not finish are told so, and answers that are on their way to clients who
        // read slowly get there.
        let now = tokio::time::Instant::now();
        let (done, stopped) = oneshot::channel();
        let order = Order::Stop(end.saturating_duration_since(now), done);
        let upstreams = async {
            if self.orders.send(order).await.is_ok() {
                let _ = stopped.await;
            }
        };
        let clients = tokio::time::timeout_at(end.max(now + LAST_BYTES), self.edge.served.wait());
        let ((), clients) = tokio::join!(upstreams, clients);
        if clients.is_err() {
            tracing::warn!(
                connections = self.edge.served.len(),
                "clients did not read their answers within gateway.drain_timeout"
            );
        }
        self.edge.gateway.observe.flush(FLUSH_WAIT).await;
        tracing::debug!(state_dir = %self.site.state_dir.display(), "stopped");
    }

    /// Wait until each upstream has settled, for commands that show things once.
    pub async fn settled(&self) {
        let snapshot = self.edge.gateway.current.load();
        for upstream in snapshot.upstreams.values() {
            let config = upstream.config();
            let patience = config.connect_timeout + config.list_timeout * 2;
            let _ = tokio::time::timeout(patience, upstream.settled()).await;
        }
        // The slice was sent before the state; give the writer its turn.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// This program, for supervising children, even when its file was replaced meanwhile.
pub fn own_program() -> PathBuf {
    let named = std::env::current_exe().unwrap_or_else(|_| "weir".into());
    if !cfg!(target_os = "linux") {
        return named;
    }
    let link = PathBuf::from("/proc/self/exe");
    // Under valgrind the link leads to valgrind and only its name to us. A file that was replaced
    // has no name any more, so one that is there and another is just that.
    let file = |path: &Path| std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    match (file(&named), file(&link)) {
        (Some(ours), Some(theirs)) if ours != theirs => named,
        _ => link,
    }
}

async fn bind(what: &str, address: SocketAddr) -> Result<TcpListener, AppError> {
    TcpListener::bind(address).await.map_err(|e| {
        AppError::Start(format!(
            "{what} {address} cannot be listened on: {e}; is another gateway running? \
             Choose another address in the configuration"
        ))
    })
}

fn init_log(level: &str, format: LogFormat) -> Result<LogHandle, AppError> {
    crate::observe::log::init(level, format).map_err(|e| AppError::Start(e.to_string()))
}

/// `weir serve`: run until SIGTERM or SIGINT. `ready` gets the lines that say what is served.
pub async fn serve(
    options: ServeOptions,
    handed: Handed,
    ready: impl FnOnce(&str),
) -> Result<(), AppError> {
    let mut signals = Signals::listen();
    let (config, origin) = boot::read(&options)?;
    let log = init_log(&config.log.level, config.log.format)?;
    limits::raise();
    boot::tell_last_good(&config, &origin);
    if let Some(open) = findings::open_admin(&config) {
        tracing::warn!("admin.listen {open}");
    }
    // Both sockets before anything else starts: a second gateway must not start children first.
    let given = handed.socket(&config)?;
    let shares = given.is_some();
    let socket = match given {
        Some(socket) => socket,
        None => bind("gateway.listen", config.gateway.listen).await?,
    };
    let admin_socket = match config.admin.listen {
        Some(address) => Some(bind("admin.listen", address).await?),
        None => None,
    };
    let local = socket.local_addr().map_err(|e| AppError::Start(e.to_string()))?;
    let admin_local = admin_socket.as_ref().and_then(|s| s.local_addr().ok());
    let mut running = start(config, Some(origin), Some(log), own_program())?;
    running.shares = shares;
    if let Some(admin_socket) = admin_socket {
        let planner = plan::planner(options);
        tokio::spawn(admin::run(running.edge.clone(), admin_socket, planner));
    }
    let serving = tokio::spawn(listener::run(running.edge.clone(), socket, shares));
    let snapshot = running.edge.gateway.current.load();
    ready(&match snapshot.config.log.format {
        LogFormat::Text => report::banner(&snapshot, local, admin_local),
        LogFormat::Json => report::banner_line(&snapshot, local, admin_local),
    });
    drop(snapshot);
    // Who types Ctrl-C waits for it, and who asks twice is in a hurry.
    let patient = signals.any().await;
    tracing::info!("stopping");
    if patient {
        running
            .leave(async {
                signals.any().await;
            })
            .await;
    }
    running.stop().await;
    let _ = serving.await;
    Ok(())
}

/// SIGTERM and SIGINT. Listened to before anything is announced: a signal that comes while its
/// handler is being installed reaches nobody.
struct Signals(Option<[tokio::signal::unix::Signal; 2]>);

impl Signals {
    fn listen() -> Signals {
        use tokio::signal::unix::{SignalKind, signal};
        let both =
            signal(SignalKind::terminate()).and_then(|t| Ok([t, signal(SignalKind::interrupt())?]));
        Signals(both.ok())
    }

    /// Wait for either; whether it is SIGTERM.
    async fn any(&mut self) -> bool {
        let Some([term, int]) = &mut self.0 else { return std::future::pending().await };
        tokio::select! {
            _ = term.recv() => true,
            _ = int.recv() => false,
        }
    }
}

/// `weir stdio`: the same gateway over stdin and stdout.
pub async fn serve_stdio(options: ServeOptions, consumer: Option<String>) -> Result<(), AppError> {
    let mut signals = Signals::listen();
    let (config, origin) = boot::read(&options)?;
    let log = init_log(&config.log.level, config.log.format)?;
    limits::raise();
    let running = start(config, Some(origin), Some(log), own_program())?;
    let consumer = match whose(&running, consumer.as_deref()) {
        Ok(consumer) => consumer,
        Err(e) => {
            running.stop().await;
            return Err(e);
        }
    };
    let pipe =
        stdio::serve(running.edge.clone(), consumer, tokio::io::stdin(), tokio::io::stdout());
    tokio::pin!(pipe);
    let ended = tokio::select! {
        () = &mut pipe => true,
        _ = signals.any() => false,
    };
    // Who could answer a question is gone, or is about to be.
    running.edge.parks.clear();
    if ended {
        running.stop().await;
    } else {
        // The pipe is served meanwhile: what is under way is still answered on it.
        tokio::join!(running.stop(), pipe);
    }
    Ok(())
}

/// `weir stdio --connect`: carry stdin and stdout to a gateway that runs elsewhere.
pub async fn connect(options: bridge::Options, format: LogFormat) -> Result<(), AppError> {
    let mut signals = Signals::listen();
    let log = init_log("info", format)?;
    let token = options.token.as_ref();
    log.scrub(Scrubber::new(token.map(Template::secrets).unwrap_or_default()));
    if token.is_some() && bridge::is_in_the_open(&options.url) {
        tracing::warn!("the key goes to another machine unencrypted: use https");
    }
    let (input, output) = (tokio::io::stdin(), tokio::io::stdout());
    let bridged = bridge::run(options, input, output, async move {
        signals.any().await;
    });
    bridged.await.map_err(|fault| AppError::Config(format!("weir stdio --connect: {fault}")))
}

// Who a local command acts as: the named consumer, or the operator, who sees everything.
fn whose(running: &Running, name: Option<&str>) -> Result<Arc<Consumer>, AppError> {
    let snapshot = running.edge.gateway.current.load();
    match name {
        None => Ok(Arc::new(Consumer { name: OPERATOR.into(), view: None })),
        Some(name) => snapshot.identity.named(name).map(|m| m.consumer.clone()).ok_or_else(|| {
            let known: Vec<_> =
                snapshot.identity.members().map(|m| m.consumer.name.to_string()).collect();
            AppError::Unknown(format!(
                "no consumer {name:?} in the configuration; there are: {}",
                known.join(", ")
            ))
        }),
    }
}

fn quiet(options: &ServeOptions) -> Result<Running, AppError> {
    let (config, _) = read(options)?;
    quiet_with(config)
}

fn quiet_with(config: Config) -> Result<Running, AppError> {
    let log = init_log("warn", LogFormat::Text)?;
    limits::raise();
    start(config, None, Some(log), own_program())
}

/// `weir check`: the configuration as `weir serve` would take it, and what was found beside it.
pub fn check(options: &ServeOptions) -> Result<(Config, Findings), AppError> {
    let (config, _) = read(options)?;
    let findings = Findings::of(&config, &options.config);
    Ok((config, findings))
}

/// `weir check --connect`: try each upstream too.
pub async fn probe(options: ServeOptions) -> Result<(Vec<UpstreamReport>, Findings), AppError> {
    let running = quiet(&options)?;
    running.settled().await;
    let snapshot = running.edge.gateway.current.load();
    let mut findings = Findings::of(&snapshot.config, &options.config);
    findings.add_idle_patterns(&snapshot);
    let out = upstream_reports(&running);
    running.stop().await;
    Ok((out, findings))
}

fn upstream_reports(running: &Running) -> Vec<UpstreamReport> {
    let snapshot = running.edge.gateway.current.load();
    snapshot
        .config
        .upstreams
        .iter()
        .map(|c| match snapshot.upstreams.get(&c.name) {
            None => UpstreamReport {
                name: c.name.to_string(),
                state: "disabled".into(),
                revision: None,
                why: None,
                cause: None,
                lists: vec![],
            },
            Some(upstream) => {
                let condition = upstream.condition();
                UpstreamReport {
                    name: c.name.to_string(),
                    state: condition.state.as_str().into(),
                    revision: condition.link.as_ref().map(|l| l.agreed.revision.to_string()),
                    why: (!condition.why.is_empty()).then(|| condition.why.to_string()),
                    cause: (!condition.cause.is_empty()).then(|| condition.cause.to_string()),
                    lists: ListKind::ALL
                        .map(|kind| {
                            let (entries, bytes) = snapshot.catalog.facts(&c.name, kind);
                            ListReport { kind: kind.as_str().into(), entries, bytes }
                        })
                        .to_vec(),
                }
            }
        })
        .collect()
}

/// `weir catalog`: what each consumer would see.
pub async fn catalog(
    options: ServeOptions,
    consumer: Option<String>,
) -> Result<CatalogReport, AppError> {
    let running = quiet(&options)?;
    let out = catalog_of(&running, consumer.as_deref()).await;
    running.stop().await;
    out
}

async fn catalog_of(running: &Running, only: Option<&str>) -> Result<CatalogReport, AppError> {
    if only.is_some() {
        whose(running, only)?;
    }
    running.settled().await;
    let snapshot = running.edge.gateway.current.load();
    let mut consumers = Vec::new();
    for member in snapshot.identity.members() {
        if only.is_some_and(|n| n != &*member.consumer.name) {
            continue;
        }
        let view = snapshot.view(&member.consumer);
        let names = |kind| view.items(kind).map(|(name, _)| name.to_string()).collect();
        consumers.push(ConsumerReport {
            name: member.consumer.name.to_string(),
            view: member.consumer.view.as_ref().map(ToString::to_string),
            tools: names(ListKind::Tools),
            prompts: names(ListKind::Prompts),
            resources: names(ListKind::Resources),
            templates: names(ListKind::Templates),
            skills: names(ListKind::Skills),
        });
    }
    Ok(CatalogReport { consumers, upstreams: upstream_reports(running) })
}

/// `weir call`: one tool call through the same walk.
pub async fn call(
    options: ServeOptions,
    consumer: Option<String>,
    name: String,
    arguments: String,
) -> Result<CallReport, AppError> {
    let arguments: &serde_json::value::RawValue = serde_json::from_str(&arguments)
        .map_err(|e| AppError::Unknown(format!("the arguments are no valid JSON: {e}")))?;
    if !arguments.get().starts_with('{') {
        return Err(AppError::Unknown("the arguments must be a JSON object".into()));
    }
    let running = quiet(&options)?;
    let out = call_on(&running, consumer.as_deref(), &name, arguments.get()).await;
    running.stop().await;
    out
}

async fn call_on(
    running: &Running,
    consumer: Option<&str>,
    name: &str,
    arguments: &str,
) -> Result<CallReport, AppError> {
    let consumer = whose(running, consumer)?;
    running.settled().await;
    let params =
        ObjectWriter::new().value("name", &name).raw("arguments", arguments.as_bytes()).finish();
    let frame = Frame::scan(message(Some(b"1"), "tools/call", Some(&params)))
        .map_err(|e| AppError::Unknown(e.to_string()))?;
    let method = method::find("tools/call", Revision::LATEST).expect("a row of the table");
    let call = Call {
        consumer: consumer.clone(),
        method,
        frame,
        meta: RequestMeta::default(),
        form: Form::Canonical,
        askable: Askable::default(),
        tasks: Tasks::None,
        task: None,
        owner: std::sync::OnceLock::new(),
        earlier: None,
        key: std::sync::OnceLock::new(),
        asides: None,
        strays: crate::call::Strays::default(),
        session: None,
        revision: Revision::LATEST,
    };
    let gateway = &running.edge.gateway;
    let record = Record::open(
        &gateway.observe,
        &consumer.name,
        method.name,
        "cli",
        Revision::LATEST.as_str(),
        None,
    );
    let terminal = gateway.handle(&call, record, &Notices::none()).await;
    let (body, failed) = match &terminal {
        Terminal::Own(result, _) => (result.clone(), is_tool_error(result)),
        Terminal::Prepared(prepared) => (prepared.result(), false),
        Terminal::Answer(frame, _) => {
            (frame.outcome(), terminal.is_error() || is_tool_error(&frame.outcome()))
        }
        Terminal::Error(error) => (error.to_raw().get().as_bytes().to_vec().into(), true),
        Terminal::Passed(_) => unreachable!("nobody took it in pieces"),
    };
    Ok(CallReport { body: String::from_utf8_lossy(&body).into_owned(), failed })
}

fn is_tool_error(result: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Shallow {
        #[serde(default, rename = "isError")]
        is_error: bool,
    }
    serde_json::from_slice::<Shallow>(result).is_ok_and(|s| s.is_error)
}
