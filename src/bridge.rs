//! A host that speaks stdin and stdout, and a gateway that is running elsewhere: `weir stdio
//! --connect`. The host does not notice when the gateway is started again.
//!
//! ```text
//!  stdin ─► Bridge::take ─┬─ modern ────────────► carry ─► POST, its stream the answer
//!                         ├─ old: in order ─► session ─► carry ─► POST, and the session's GET
//!                         └─ cancelled ─► the job ends; so does its stream
//!  stdout ◄─ answers with the host's ids, notices, questions with ids of ours
//! ```
//!
//! Messages are carried as bytes; only ids are exchanged. Towards the gateway a request has a
//! number of ours, a new one for each attempt: so an answer that is late belongs to nothing, and
//! the host gets its id back with its own text, whatever a server makes of it.

mod carry;
mod headers;
mod listen;
mod questions;
mod session;
mod unasked;
mod words;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::secret::Template;
use crate::config::{HttpConfig, UrlTransport};
use crate::downstream::canonical::meta_of;
use crate::downstream::jobs::{Jobs, Place};
use crate::downstream::modern::is_modern;
use crate::downstream::pipe::OUT_MAX;
use crate::downstream::refused::Refused;
use crate::downstream::stdio::{Line, read_line, write};
use crate::failure::{Fault, Reason};
use crate::protocol::message::{Frame, Kind, response};
use crate::protocol::meta::cancelled_id;
use crate::upstream::transport::http::HttpWire;

/// How long a message waits for a gateway that is away: a restart with all that a gateway loads,
/// and less than the minute after which common hosts give up.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Longest line of the host: what a gateway takes by default (`gateway.max_body`).
pub const LINE_MAX: usize = 4 << 20;
/// Largest message of the gateway: what it takes from its own upstreams by default.
pub const MESSAGE_MAX: usize = 16 << 20;
/// Messages of an old host that wait behind its handshake, which alone holds them up.
const IN_ORDER_MAX: usize = 1024;
/// Messages without an answer that are being posted at once; the next ones wait.
const POSTS_MAX: usize = 64;
/// How long calls under way may take once the host says no more.
const END_TIME: Duration = Duration::from_secs(20);
/// How long what is left then may take: above all last words that the host does not read.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long the last answers may take to be read.
const LAST_BYTES: Duration = Duration::from_secs(1);
/// How often the end of the last calls is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Less than the 5 s after which common servers close an idle connection.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// Time to connect.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the gateway is, and how the bridge behaves.
pub struct Options {
    /// Its endpoint, `http` or `https`.
    pub url: String,
    /// The consumer's key.
    pub token: Option<Template>,
    /// How long a message waits for a gateway that is away.
    pub patience: Duration,
}

/// Whether what is sent to this URL can be read on its way.
pub fn is_in_the_open(url: &str) -> bool {
    let Ok(uri) = url.parse::<hyper::Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    uri.scheme_str() == Some("http") && !is_here
}

/// The bridge between one host and one gateway.
struct Bridge {
    wire: HttpWire,
    out: mpsc::Sender<Bytes>,
    ids: AtomicU64,
    jobs: Jobs,
    questions: questions::Questions,
    tools: headers::Tools,
    home: session::Home,
    patience: Duration,
    // The last attempt failed, and the log says so.
    away: AtomicBool,
    // The host's line is full and messages to it are dropped; the log says so.
    deaf: AtomicBool,
    // The same of what waits behind the host's handshake.
    jammed: AtomicBool,
    // The host says no more: nothing waits for a gateway that is away.
    ending: CancellationToken,
    // The time for the last calls is over.
    cut: CancellationToken,
    tasks: TaskTracker,
    posts: Arc<Semaphore>,
}

// A message of an old host, whose order matters as far as the handshake goes.
enum Ordered {
    Request(Frame, Place),
    Notification(Frame),
    Response(Bytes),
}

/// Carry messages until `input` ends, nobody reads `output`, or `stop` resolves.
///
/// # Errors
/// When the URL or the token cannot be used at all; the sentence says why.
pub async fn run(
    options: Options,
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin + Send + 'static,
    stop: impl Future<Output = ()>,
) -> Result<(), String> {
    let config = HttpConfig {
        url: Template::literal(&options.url),
        replicas: Vec::new(),
        transport: UrlTransport::Http,
        headers: Vec::new(),
        bearer: options.token,
        pool_idle: POOL_IDLE,
        dial_timeout: DIAL_TIMEOUT,
    };
    let wire = HttpWire::new("gateway".into(), &config, MESSAGE_MAX, Arc::default());
    let wire = wire.map_err(|fault| match fault.text {
        text if text.contains("bearer") => "the token holds bytes that no header may".to_owned(),
        text if text.contains("url") => {
            "the URL must be one of http or https, such as http://127.0.0.1:8080/mcp, and hold no \
             user name"
                .to_owned()
        }
        _ => fault.cause,
    })?;
    let (out, rx) = mpsc::channel(OUT_MAX);
    let writer = tokio::spawn(write(output, rx));
    let bridge = Arc::new(Bridge {
        wire,
        out,
        ids: AtomicU64::new(1),
        jobs: Jobs::default(),
        questions: questions::Questions::default(),
        tools: headers::Tools::default(),
        home: session::Home::default(),
        patience: options.patience,
        away: AtomicBool::new(false),
        deaf: AtomicBool::new(false),
        jammed: AtomicBool::new(false),
        ending: CancellationToken::new(),
        cut: CancellationToken::new(),
        tasks: TaskTracker::new(),
        posts: Arc::new(Semaphore::new(POSTS_MAX)),
    });
    let (ordered, in_order) = mpsc::channel(IN_ORDER_MAX);
    bridge.spawn(bridge.clone().attend());
    let mut orderly = tokio::spawn(bridge.clone().orderly(in_order));
    tokio::select! {
        () = bridge.read(input, &ordered) => {}
        () = stop => {}
        // Nobody waits for an answer any more.
        () = bridge.out.closed() => bridge.cut.cancel(),
    }
    drop(ordered);
    bridge.finish().await;
    bridge.tasks.close();
    // Neither a host that does not read nor a gateway that does not answer keeps a program alive
    // that was told to end.
    let rest = async {
        let _ = (&mut orderly).await;
        bridge.tasks.wait().await;
    };
    if tokio::time::timeout(FAREWELL, rest).await.is_err() {
        tracing::warn!("the bridge ends before all is said: somebody does not read or answer");
        orderly.abort();
    }
    bridge.close().await;
    drop(bridge);
    let _ = tokio::time::timeout(LAST_BYTES, writer).await;
    Ok(())
}

impl Bridge {
    // Something that ends with the bridge.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let cut = self.cut.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = work => {}
                () = cut.cancelled() => {}
            }
        });
    }

    async fn read(
        self: &Arc<Self>,
        input: impl AsyncRead + Unpin,
        ordered: &mpsc::Sender<Ordered>,
    ) {
        let mut input = BufReader::new(input);
        let mut line = Vec::new();
        loop {
            line.clear();
            match read_line(&mut input, &mut line, LINE_MAX).await {
                Line::End => return,
                Line::TooLong => {
                    let text = format!("the message is longer than {LINE_MAX} bytes");
                    self.say(Refused::too_large(text).message(b"")).await;
                }
                Line::Whole if line.iter().all(u8::is_ascii_whitespace) => {}
                Line::Whole => match Frame::scan(Bytes::copy_from_slice(&line)) {
                    Ok(frame) => self.take(frame, ordered).await,
                    Err(e) => self.say(Refused::from(e).message(b"")).await,
                },
            }
        }
    }

    async fn take(self: &Arc<Self>, frame: Frame, ordered: &mpsc::Sender<Ordered>) {
        let meta = meta_of(&frame);
        let modern = is_modern(&frame, meta.as_ref().ok().and_then(Option::as_ref));
        let message = match frame.kind() {
            Kind::Request => match self.jobs.register(&frame.id().unwrap_or_default()) {
                Ok(place) if modern => {
                    if frame.method() == "subscriptions/listen" {
                        place.endless();
                    }
                    // Metadata that cannot be read is for the gateway to refuse.
                    let meta = Some(meta.ok().flatten().unwrap_or_default());
                    self.tasks.spawn(self.clone().request(frame, meta, place));
                    return;
                }
                Ok(place) => Ordered::Request(frame, place),
                Err(refused) => {
                    return self.say(refused.message(&frame.id().unwrap_or_default())).await;
                }
            },
            // On a pipe both eras cancel so; what has ended is not cancelled.
            Kind::Notification if frame.method() == "notifications/cancelled" => {
                if let Some(id) = cancelled_id(&frame) {
                    self.jobs.cancel(&id);
                }
                return;
            }
            // Modern hosts have no other.
            Kind::Notification if modern => return,
            Kind::Notification => Ordered::Notification(frame),
            Kind::Result | Kind::Error => {
                let asked = frame.id().and_then(|id| self.questions.answered(&id));
                let Some(raw) = asked else { return };
                Ordered::Response(frame.with_id(&raw))
            }
        };
        // Waiting here would hold up the host's cancellations too.
        match ordered.try_send(message) {
            Err(TrySendError::Full(Ordered::Request(_, place))) => {
                let text = "too many messages wait for the gateway";
                self.say(Refused::new(Reason::Overloaded, text).message(&place.id)).await;
            }
            Err(TrySendError::Full(_)) => {
                if !self.jammed.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "too many messages wait for the gateway: the host's answers and \
                         notifications are dropped"
                    );
                }
            }
            Err(TrySendError::Closed(_)) => {}
            Ok(()) => self.jammed.store(false, Ordering::Relaxed),
        }
    }

    async fn orderly(self: Arc<Self>, mut messages: mpsc::Receiver<Ordered>) {
        while let Some(message) = messages.recv().await {
            match message {
                Ordered::Request(frame, place) if frame.method() == "initialize" => {
                    self.open(frame, place).await;
                }
                Ordered::Request(frame, place) if self.home.live().is_some() => {
                    self.tasks.spawn(self.clone().request(frame, None, place));
                }
                Ordered::Request(frame, place) if frame.method() == "ping" => {
                    self.say(response(&place.id, Kind::Result, b"{}")).await;
                }
                Ordered::Request(_, place) => {
                    let refused = Refused::new(Reason::NoSession, "send `initialize` first");
                    self.say(refused.message(&place.id)).await;
                }
                Ordered::Notification(frame) if frame.method() == "notifications/initialized" => {
                    self.initialized(frame.bytes().clone()).await;
                }
                Ordered::Notification(frame) => self.post_soon(frame.bytes().clone(), true).await,
                Ordered::Response(message) => self.post_soon(message, false).await,
            }
        }
    }

    async fn post_soon(self: &Arc<Self>, message: Bytes, again: bool) {
        let turn = self.posts.clone().acquire_owned().await;
        let bridge = self.clone();
        self.spawn(async move {
            bridge.post(message, again).await;
            drop(turn);
        });
    }

    // The host says no more. Calls under way are still answered, and what never ends is ended.
    async fn finish(&self) {
        self.ending.cancel();
        self.jobs.cancel_endless();
        let end = Instant::now() + END_TIME;
        while !self.jobs.is_empty() && Instant::now() < end && !self.out.is_closed() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.cut.cancel();
    }

    fn mint(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    async fn say(&self, message: Bytes) {
        let _ = self.out.send(message).await;
    }

    // A message that may be lost to a host that does not read.
    fn tell(&self, message: Bytes) {
        match self.out.try_send(message) {
            Err(TrySendError::Full(_)) => {
                // Once for each time that it stops reading: there may be thousands.
                if !self.deaf.swap(true, Ordering::Relaxed) {
                    tracing::warn!("the host does not read: notifications to it are dropped");
                }
            }
            Err(TrySendError::Closed(_)) => {}
            Ok(()) => self.deaf.store(false, Ordering::Relaxed),
        }
    }

    // The gateway is away, or does not let us in: said once, with what to do.
    fn fell(&self, fault: &Fault, status: Option<u16>) {
        if !self.away.swap(true, Ordering::Relaxed) {
            let what = words::failure(fault.clone(), status, true).text;
            tracing::warn!(cause = %fault.cause, "no way to the gateway: {what}");
        }
    }

    fn rose(&self) {
        if self.away.swap(false, Ordering::Relaxed) {
            tracing::info!("the gateway is back");
        }
    }
}
