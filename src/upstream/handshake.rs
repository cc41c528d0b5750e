//! Find out which era an upstream speaks, and agree with it.
//!
//! The first message decides an upstream's era for good (some lock the process to it), so the
//! newest revision is tried first and a legacy verdict is remembered. Never is one error code
//! taken for proof of an old peer: any answer that is not a modern one falls back to
//! `initialize` (2026-07-28 basic/transports/stdio and /streamable-http, "backward compatibility").

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderValue;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::config::EraChoice;
use crate::failure::{Delivery, Fault, Reason};
use crate::protocol::capability::Askable;
use crate::protocol::error::tells_modern;
use crate::protocol::message::{Frame, Kind, message};
use crate::protocol::meta::ObjectWriter;
use crate::protocol::revision::{Era, Revision};

use super::link::{
    Agreement, Answered, Unanswered, Wire, exchange, headers_for, notify, own_request,
};
use super::outbound::client_info;
use super::transport::Unasked;
use super::transport::pipe::Pipe;

/// How long a peer that is alive may leave the probe unanswered before it counts as old. Old
/// servers answer an unknown method at once; one that is still starting shows no output yet and
/// is given the whole connect timeout.
const PROBE_PATIENCE: Duration = Duration::from_secs(3);

/// What a handshake came to.
pub enum Agreed {
    /// The two sides agree.
    Yes(Agreement),
    /// The probe made the upstream exit or hang up: start again and go straight to the old
    /// handshake.
    RestartAsLegacy,
    /// The endpoint refused the handshake as one of HTTP+SSE does, which is then to be tried. If it
    /// is none, this is what went wrong.
    OldTransport(Fault),
}

/// Everything a handshake needs.
pub struct Handshake<'a> {
    /// The wire, freshly connected.
    pub wire: &'a Wire,
    /// The operator's choice, or the remembered verdict.
    pub era: EraChoice,
    /// The upstream's id counter.
    pub ids: &'a Arc<AtomicU64>,
    /// Where the wire puts what comes unasked.
    pub unasked: &'a mpsc::Sender<Unasked>,
    /// What an old upstream may ask.
    pub askable: Askable,
    /// The whole time there is.
    pub timeout: Duration,
}

impl Handshake<'_> {
    /// Agree with the upstream.
    pub async fn run(&self) -> Result<Agreed, Fault> {
        tokio::time::timeout(self.timeout, self.agree()).await.unwrap_or_else(|_| {
            Err(Fault::new(
                Reason::DeadlineExceeded,
                Delivery::Unknown,
                format!("no answer to the handshake within {:?}", self.timeout),
            ))
        })
    }

    async fn agree(&self) -> Result<Agreed, Fault> {
        if self.era == EraChoice::Legacy {
            return self.old_way().await;
        }
        let mut probe = std::pin::pin!(self.probe());
        let found = match self.wire {
            // An endpoint that does not know the method may well leave it hanging.
            Wire::Http(_) => {
                let patience = self.timeout / 3;
                let found = tokio::time::timeout(patience, probe.as_mut()).await;
                Some(found.unwrap_or(Ok(None)))
            }
            // A peer that swallows what it does not know is not waited for for ever.
            Wire::Pipe(pipe) => tokio::select! {
                found = &mut probe => Some(found),
                () = self.impatient(pipe) => None,
            },
        };
        let modern_only = || {
            Err(Fault::new(
                Reason::Garbled,
                Delivery::Refused,
                "the upstream does not speak 2026-07-28, and `era = \"modern\"` allows nothing else",
            ))
        };
        match found {
            Some(Ok(Some(agreement))) => Ok(Agreed::Yes(agreement)),
            Some(Ok(None)) | None if self.era == EraChoice::Modern => modern_only(),
            Some(Ok(None)) => self.old_way().await,
            // Whoever did not answer at all has not said what it speaks.
            Some(Err(unanswered)) if self.era == EraChoice::Modern => Err(unanswered.fault),
            Some(Err(Unanswered { fault, .. })) if fault.reason == Reason::ConnectionLost => {
                if self.wire.is_pipe() { Ok(Agreed::RestartAsLegacy) } else { Err(fault) }
            }
            Some(Err(unanswered)) => Err(unanswered.fault),
            // A late answer still counts: a modern child that was slow to start answers the probe
            // and then refuses `initialize`, since its mind is made up.
            None => {
                let mut initialize = std::pin::pin!(self.initialize());
                let first = tokio::select! {
                    found = &mut probe => match found {
                        Ok(Some(agreement)) => return Ok(Agreed::Yes(agreement)),
                        _ => initialize.await,
                    },
                    agreed = &mut initialize => match agreed {
                        Ok(agreement) => Ok(agreement),
                        Err(refused) => match probe.await {
                            Ok(Some(agreement)) => Ok(agreement),
                            _ => Err(refused),
                        },
                    },
                };
                first.map(Agreed::Yes).map_err(|refused| refused.fault)
            }
        }
    }

    // 2025-11-25 basic/transports, "backwards compatibility": an endpoint of HTTP+SSE takes no POST.
    // Which of these it says depends on its framework.
    async fn old_way(&self) -> Result<Agreed, Fault> {
        match self.initialize().await {
            Ok(agreement) => Ok(Agreed::Yes(agreement)),
            Err(Unanswered { fault, status: Some(400 | 404 | 405) }) if !self.wire.is_pipe() => {
                Ok(Agreed::OldTransport(fault))
            }
            Err(Unanswered { fault, .. }) => Err(fault),
        }
    }

    // Resolves when an unanswered probe is taken for an old server's silence. A server that is
    // still starting looks the same until it says anything at all.
    async fn impatient(&self, pipe: &Pipe) {
        let began = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(PROBE_PATIENCE).await;
            if pipe.saw_output() || began.elapsed() >= self.timeout / 2 {
                return;
            }
        }
    }

    /// `server/discover`. `None`: not a modern peer.
    async fn probe(&self) -> Result<Option<Agreement>, Unanswered> {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let wish = Agreement {
            revision: Revision::LATEST,
            capabilities: "{}".into(),
            server_info: None,
            instructions: None,
            session: None,
            sse: false,
        };
        let headers = headers_for(&wish, "server/discover", None);
        let message = own_request(Era::Modern, id, "server/discover", &[]);
        let answered =
            exchange(self.wire, &headers, id, message, true, &|_| {}, self.unasked).await;
        match answered {
            Ok(Answered { frame, .. }) if frame.kind() == Kind::Result => {
                Ok(discovered(&frame.outcome()))
            }
            Ok(Answered { frame, status, .. }) => {
                let code = frame.error_code().unwrap_or(0);
                // It knows the new way of saying no, and names an old revision: the handshake.
                if names_legacy(&frame.outcome()) {
                    return Ok(None);
                }
                if tells_modern(code) {
                    // A modern peer that does not have our revision: nothing to fall back to.
                    return Err(Fault::new(
                        Reason::Garbled,
                        Delivery::Refused,
                        "the upstream speaks only revisions that the gateway does not know",
                    )
                    .because(format_args!("discover was refused with {code}"))
                    .into());
                }
                if (status > 501 && status < 600) || status == 429 {
                    return Err(status_fault(status).into());
                }
                Ok(None)
            }
            // Answers that carry no MCP at all: an old server says so in many ways.
            Err(Unanswered { status: Some(status), .. })
                if matches!(status, 200..300 | 500 | 501)
                    || (400..500).contains(&status) && !matches!(status, 401 | 403 | 408 | 429) =>
            {
                Ok(None)
            }
            Err(unanswered) => Err(unanswered),
        }
    }

    /// The old handshake (2025-11-25 basic/lifecycle).
    async fn initialize(&self) -> Result<Agreement, Unanswered> {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let params = ObjectWriter::new()
            .value("protocolVersion", &Revision::LATEST_LEGACY.as_str())
            // On a shared link nothing: it must not be asked what only one caller could answer.
            .raw("capabilities", &self.askable.or_pages().write(Revision::LATEST_LEGACY))
            .raw("clientInfo", &client_info())
            .finish();
        let request = message(Some(id.to_string().as_bytes()), "initialize", Some(&params));
        let answered = exchange(self.wire, &[], id, request, false, &|_| {}, self.unasked).await?;
        let status = Some(answered.status);
        let agreement = initialized(&answered.frame, answered.session)
            .map_err(|fault| Unanswered { fault, status })?;
        let done = message(None, "notifications/initialized", None);
        notify(self.wire, &agreement, done).await?;
        Ok(agreement)
    }
}

fn status_fault(status: u16) -> Fault {
    Fault::new(
        Reason::UpstreamStatus,
        Delivery::Refused,
        format!("the upstream answers with HTTP status {status}"),
    )
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Discovered<'a> {
    supported_versions: Vec<String>,
    #[serde(borrow)]
    capabilities: &'a RawValue,
    #[serde(default)]
    instructions: Option<String>,
    #[serde(borrow, default, rename = "_meta")]
    meta: Option<ServerMeta<'a>>,
}

#[derive(Deserialize)]
struct ServerMeta<'a> {
    #[serde(borrow, default, rename = "io.modelcontextprotocol/serverInfo")]
    server_info: Option<&'a RawValue>,
}

/// Whether an error lists a revision of the old era among those that the peer supports
/// (2026-07-28 basic/versioning, `UnsupportedProtocolVersionError`).
fn names_legacy(error: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Refused {
        data: Supported,
    }
    #[derive(Deserialize)]
    struct Supported {
        supported: Vec<String>,
    }
    serde_json::from_slice::<Refused>(error).is_ok_and(|e| {
        let mut revisions = e.data.supported.iter().filter_map(|v| Revision::parse(v));
        revisions.any(|r| r.era() == Era::Legacy)
    })
}

fn discovered(result: &Bytes) -> Option<Agreement> {
    let d: Discovered<'_> = serde_json::from_slice(result).ok()?;
    let revision = d
        .supported_versions
        .iter()
        .filter_map(|v| Revision::parse(v))
        .filter(|r| r.era() == Era::Modern)
        .max()?;
    Some(Agreement {
        revision,
        capabilities: d.capabilities.get().into(),
        server_info: d.meta.and_then(|m| m.server_info).map(|r| r.get().into()),
        instructions: d.instructions,
        session: None,
        sse: false,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Initialized<'a> {
    protocol_version: String,
    #[serde(borrow)]
    capabilities: &'a RawValue,
    #[serde(borrow, default)]
    server_info: Option<&'a RawValue>,
    #[serde(default)]
    instructions: Option<String>,
}

fn initialized(frame: &Frame, session: Option<HeaderValue>) -> Result<Agreement, Fault> {
    let garbled = |text: String| Fault::new(Reason::Garbled, Delivery::Refused, text);
    if frame.kind() == Kind::Error {
        let code = frame.error_code().unwrap_or(0);
        return Err(garbled(format!("the upstream refuses the handshake (code {code})")));
    }
    let outcome = frame.outcome();
    let i: Initialized<'_> = serde_json::from_slice(&outcome)
        .map_err(|e| garbled("the upstream's handshake answer is not valid".into()).because(e))?;
    let revision =
        Revision::parse(&i.protocol_version).filter(|r| r.era() == Era::Legacy).ok_or_else(
            || garbled(format!("the upstream wants protocol version {:?}", i.protocol_version)),
        )?;
    Ok(Agreement {
        revision,
        capabilities: i.capabilities.get().into(),
        server_info: i.server_info.map(|r| r.get().into()),
        instructions: i.instructions,
        session,
        sse: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discovery_is_modern_only_with_a_revision_we_know() {
        let yes = Bytes::from_static(
            br#"{"resultType":"complete","supportedVersions":["2025-11-25","2026-07-28"],"capabilities":{"tools":{}},"ttlMs":0,"cacheScope":"private"}"#,
        );
        let agreed = discovered(&yes).unwrap();
        assert_eq!(agreed.revision, Revision::LATEST);
        assert!(agreed.offers("tools") && !agreed.offers("prompts"));
        let no = Bytes::from_static(br#"{"supportedVersions":["2031-01-01"],"capabilities":{}}"#);
        assert!(discovered(&no).is_none());
        assert!(discovered(&Bytes::from_static(b"{}")).is_none());
    }

    #[test]
    fn a_handshake_takes_any_old_revision_and_no_other() {
        let answer = |v: &str| {
            let text = format!(
                "{{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{{\"protocolVersion\":\"{v}\",\"capabilities\":{{\"tools\":{{\"listChanged\":true}}}}}}}}"
            );
            initialized(&Frame::scan(text.into()).unwrap(), None)
        };
        assert!(answer("2024-11-05").unwrap().offers("tools.listChanged"));
        assert!(answer("2026-07-28").is_err());
        assert!(answer("x").is_err());
    }
}
