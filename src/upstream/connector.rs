//! From settings to a conversation: make the wire, find the era, agree.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::mpsc;

use crate::config::secret::Scrubber;
use crate::config::{EraChoice, HttpConfig, TransportConfig, UpstreamConfig, UrlTransport};
use crate::failure::{Delivery, Fault, Reason};
use crate::protocol::capability::Askable;

use super::Site;
use super::handshake::{Agreed, Handshake};
use super::keeper::Note;
use super::link::{Link, Wire};
use super::transport::http::{HttpCounters, HttpWire};
use super::transport::pipe::{Pipe, PipeCounters};
use super::transport::stdio::{Family, Launch, StdioWire};
use super::transport::websocket::{self, Dial};
use super::transport::{UNASKED_MAX, Unasked, sse};

/// Makes links to one upstream.
pub struct Connector {
    /// Its name.
    pub name: Arc<str>,
    /// Where it lives on this machine.
    pub site: Site,
    /// Takes its secrets out of what is logged.
    pub scrubber: Scrubber,
    /// The ids of all its requests: none is used twice.
    pub ids: Arc<AtomicU64>,
    /// Where notifications go that belong to no call, wherever they came.
    pub notes: mpsc::Sender<Note>,
    /// What its children use and may use.
    pub family: Arc<Family>,
    /// What went wrong with messages on a pipe.
    pub pipe: Arc<PipeCounters>,
    /// Bytes and strays of the HTTP wire.
    pub http: Arc<HttpCounters>,
    /// Its child waits until others have started.
    pub in_line: AtomicBool,
    /// Its URL was found to be one of HTTP+SSE.
    pub sse: AtomicBool,
    /// Which of several replicas it is.
    pub replica: Option<Replica>,
}

/// One of several that stand for one another.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Its place in the file, from 1: what people and metrics call it.
    pub number: usize,
    /// What the owner of its conversations begins with; the same wherever its URL is.
    pub tag: Arc<str>,
}

/// A wire, where it puts what comes unasked, and where that comes out.
type Wired = (Wire, mpsc::Sender<Unasked>, mpsc::Receiver<Unasked>);

impl Connector {
    /// A link that may be asked `askable`, and what the upstream says unasked on it.
    pub async fn connect(
        &self,
        config: &UpstreamConfig,
        mut era: EraChoice,
        askable: Askable,
    ) -> Result<(Link, mpsc::Receiver<Unasked>), Fault> {
        let mut restarted = false;
        let mut sse = self.speaks_sse(config);
        // Why the newer transport failed, while the older one is tried in its place.
        let mut refused: Option<Fault> = None;
        loop {
            let (wire, unasked_tx, unasked) = match self.wire(config, sse).await {
                Ok(wired) => wired,
                Err(fault) => return Err(self.neither(refused, fault)),
            };
            let agreed = Handshake {
                wire: &wire,
                era: if sse { EraChoice::Legacy } else { era },
                ids: &self.ids,
                unasked: &unasked_tx,
                askable,
                timeout: config.connect_timeout,
            }
            .run()
            .await;
            let pipe = match &wire {
                Wire::Pipe(pipe) => Some(pipe.clone()),
                Wire::Http(_) => None,
            };
            let failed = match agreed {
                Ok(Agreed::Yes(mut agreement)) => {
                    agreement.sse = sse;
                    if sse && refused.is_some() {
                        self.sse.store(true, Ordering::Relaxed);
                    }
                    let (name, ids) = (self.name.clone(), self.ids.clone());
                    // Whatever was declared: an older upstream has no word for the rest.
                    let askable = askable.within(agreement.revision);
                    let link = Link::new(name, wire, agreement, askable, ids, unasked_tx);
                    return Ok((link, unasked));
                }
                Ok(Agreed::RestartAsLegacy) if !restarted => {
                    restarted = true;
                    era = EraChoice::Legacy;
                    None
                }
                Ok(Agreed::RestartAsLegacy) => Some(Fault::new(
                    Reason::ConnectionLost,
                    Delivery::NotSent,
                    "the connection ended during the handshake",
                )),
                Ok(Agreed::OldTransport(fault)) if may_fall_back(config, askable) => {
                    refused = Some(fault);
                    sse = true;
                    None
                }
                Ok(Agreed::OldTransport(fault)) | Err(fault) => Some(fault),
            };
            if let Some(pipe) = pipe {
                pipe.close().await;
            }
            if let Some(fault) = failed {
                return Err(self.neither(refused, fault));
            }
        }
    }

    /// A verdict may be out of date: find out anew.
    pub fn forget(&self) {
        self.sse.store(false, Ordering::Relaxed);
    }

    fn speaks_sse(&self, config: &UpstreamConfig) -> bool {
        match transport_of(config) {
            Some(UrlTransport::Sse) => true,
            Some(UrlTransport::Auto) => self.sse.load(Ordering::Relaxed),
            _ => false,
        }
    }

    // What the newer transport said counts, since most endpoints are of that.
    fn neither(&self, refused: Option<Fault>, fault: Fault) -> Fault {
        match refused {
            None => fault,
            Some(refused) => {
                let cause = self.scrubber.scrub(&fault.cause);
                refused.because(format_args!("and over HTTP+SSE: {}: {cause}", fault.text))
            }
        }
    }

    async fn wire(&self, config: &UpstreamConfig, sse: bool) -> Result<Wired, Fault> {
        match &config.transport {
            TransportConfig::Stdio(stdio) => {
                let (wire, rx) = StdioWire::start(Launch {
                    upstream: self.name.clone(),
                    config: Arc::new(stdio.clone()),
                    shim: self.site.shim.clone(),
                    state_dir: self.site.state_dir.clone(),
                    cache_dir: self.site.cache_dir.clone(),
                    scrubber: self.scrubber.clone(),
                    max_message: config.max_message,
                    counters: self.pipe.clone(),
                    children: self.site.children.clone(),
                    family: self.family.clone(),
                })
                .await?;
                Ok(piped(wire.pipe().clone(), rx))
            }
            TransportConfig::Http(http) if http.transport == UrlTransport::WebSocket => {
                let (pipe, rx) = websocket::connect(Dial {
                    upstream: self.name.clone(),
                    config: http,
                    max_message: config.max_message,
                    timeout: config.connect_timeout,
                    scrubber: self.scrubber.clone(),
                    counters: self.pipe.clone(),
                })
                .await?;
                Ok(piped(pipe, rx))
            }
            TransportConfig::Http(http) => {
                let wire = self.http(http, config.max_message)?;
                if sse {
                    let (scrubber, counters) = (self.scrubber.clone(), self.pipe.clone());
                    let connect = sse::connect(wire, scrubber, counters);
                    let connected = tokio::time::timeout(config.connect_timeout, connect).await;
                    let (pipe, rx) = connected.unwrap_or_else(|_| {
                        let text = format!("no endpoint event within {:?}", config.connect_timeout);
                        Err(Fault::new(Reason::DeadlineExceeded, Delivery::NotSent, text))
                    })?;
                    return Ok(piped(pipe, rx));
                }
                let (tx, rx) = mpsc::channel(UNASKED_MAX);
                Ok((Wire::Http(wire), tx, rx))
            }
        }
    }

    fn http(&self, http: &HttpConfig, max_message: usize) -> Result<HttpWire, Fault> {
        HttpWire::new(self.name.clone(), http, max_message, self.http.clone())
    }
}

// A pipe puts what comes unasked into its own channel.
fn piped(pipe: Pipe, unasked: mpsc::Receiver<Unasked>) -> Wired {
    let (tx, _) = mpsc::channel(1);
    (Wire::Pipe(pipe), tx, unasked)
}

fn transport_of(config: &UpstreamConfig) -> Option<UrlTransport> {
    match &config.transport {
        TransportConfig::Http(http) => Some(http.transport),
        TransportConfig::Stdio(_) => None,
    }
}

// The conversation that all share decides for the others, which follow it.
fn may_fall_back(config: &UpstreamConfig, askable: Askable) -> bool {
    transport_of(config) == Some(UrlTransport::Auto)
        && config.era != EraChoice::Modern
        && askable.is_nothing()
}
