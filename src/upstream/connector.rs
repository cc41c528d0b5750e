//! From settings to a conversation: make the wire, find the era, agree.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::sync::mpsc;

use crate::config::secret::Scrubber;
use crate::config::{EraChoice, TransportConfig, UpstreamConfig};
use crate::failure::{Delivery, Fault, Reason};
use crate::protocol::capability::Askable;
use crate::protocol::message::Frame;

use super::Site;
use super::handshake::{Agreed, Handshake};
use super::link::{Link, Wire};
use super::transport::http::{HttpCounters, HttpWire};
use super::transport::stdio::{Launch, StdioCounters, StdioWire};
use super::transport::{UNASKED_MAX, Unasked};

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
    pub notes: mpsc::Sender<Frame>,
    /// What a child said that was no message.
    pub stdio: Arc<StdioCounters>,
    /// Bytes and strays of the HTTP wire.
    pub http: Arc<HttpCounters>,
}

impl Connector {
    /// A link that may be asked `askable`, and what the upstream says unasked on it.
    pub async fn connect(
        &self,
        config: &UpstreamConfig,
        mut era: EraChoice,
        askable: Askable,
    ) -> Result<(Link, mpsc::Receiver<Unasked>), Fault> {
        let mut restarted = false;
        loop {
            let (wire, unasked_tx, unasked) = self.wire(config).await?;
            let agreed = Handshake {
                wire: &wire,
                era,
                ids: &self.ids,
                unasked: &unasked_tx,
                askable,
                timeout: config.connect_timeout,
            }
            .run()
            .await;
            let child = match &wire {
                Wire::Stdio(w) => Some(w.clone()),
                Wire::Http(_) => None,
            };
            match agreed {
                Ok(Agreed::Yes(agreement)) => {
                    let (name, ids) = (self.name.clone(), self.ids.clone());
                    let link = Link::new(name, wire, agreement, askable, ids, unasked_tx);
                    return Ok((link, unasked));
                }
                Ok(Agreed::RestartAsLegacy) if !restarted => {
                    restarted = true;
                    era = EraChoice::Legacy;
                }
                Ok(Agreed::RestartAsLegacy) => {
                    return Err(Fault::new(
                        Reason::ConnectionLost,
                        Delivery::NotSent,
                        "the program ended during the handshake",
                    ));
                }
                Err(fault) => {
                    if let Some(child) = child {
                        child.close().await;
                    }
                    return Err(fault);
                }
            }
            if let Some(child) = child {
                child.close().await;
            }
        }
    }

    async fn wire(
        &self,
        config: &UpstreamConfig,
    ) -> Result<(Wire, mpsc::Sender<Unasked>, mpsc::Receiver<Unasked>), Fault> {
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
                    counters: self.stdio.clone(),
                })
                .await?;
                // A pipe puts what comes unasked into its own channel.
                let (tx, _) = mpsc::channel(1);
                Ok((Wire::Stdio(wire), tx, rx))
            }
            TransportConfig::Http(http) => {
                let (tx, rx) = mpsc::channel(UNASKED_MAX);
                let wire =
                    HttpWire::new(self.name.clone(), http, config.max_message, self.http.clone())?;
                Ok((Wire::Http(wire), tx, rx))
            }
        }
    }
}
