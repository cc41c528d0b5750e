//! Why a call did not end with the upstream's own answer.
//!
//! Two kinds, one closed set of reasons. A [`Refusal`]: *we* said no. A [`Fault`]: *they* failed
//! us. A JSON-RPC error that an upstream sends is neither: it is the upstream's answer and passes
//! on as it came.
//!
//! The [`Reason`] is the one word that stands in the agent's error, the log line, the metric
//! label and `/status`; a test holds that no two reasons share a word.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::protocol::error::{self, ErrorObject};
use crate::protocol::meta::key::OWN_PREFIX;

/// What a refusal says of its outcome when nothing was done upstream; also understood of other
/// gateways like this one.
pub const NO_EFFECT: &str = "no_effect";

/// Least pause that a caller is told. While an upstream is being restarted the next try is always
/// now, and a caller that repeats at once would only find the same.
const PAUSE_TOLD_MIN: Duration = Duration::from_millis(100);

/// One word for why. Closed: a new cause needs a new row, and the compiler asks for its texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No key, or one that is not ours.
    Unauthenticated,
    /// The consumer's own rate quota is used up.
    QuotaExceeded,
    /// No such tool, prompt or resource in what this consumer sees.
    UnknownName,
    /// No such method in this revision.
    UnknownMethod,
    /// The request's params are wrong.
    InvalidParams,
    /// The upstream has no credential yet.
    Dormant,
    /// The upstream is not there; it is being reconnected.
    UpstreamDown,
    /// The upstream was taken out of the configuration, or the gateway stopped, while the call was
    /// waiting.
    Retired,
    /// The breaker is open.
    BreakerOpen,
    /// As many calls wait as may.
    QueueFull,
    /// No tokens within `max_wait`.
    RateLimited,
    /// The upstream asked for a pause (429, 503, or a text that says so).
    Throttled,
    /// The deadline passed.
    DeadlineExceeded,
    /// The gateway is stopping.
    Draining,
    /// The upstream is to get no new calls: `state = "draining"`.
    UpstreamDraining,
    /// The upstream is to get no calls: `state = "maintenance"`.
    Maintenance,
    /// The gateway holds as much as it may.
    Overloaded,
    /// The connection could not be made.
    ConnectFailed,
    /// The connection or process ended during the call.
    ConnectionLost,
    /// The upstream's process was ended during the call because it used more memory than
    /// `memory_max`.
    MemoryExceeded,
    /// The upstream's answer is no valid message.
    Garbled,
    /// The upstream's message is larger than `max_message`.
    TooLarge,
    /// The upstream answered with an HTTP status that carries no MCP answer.
    UpstreamStatus,
    /// The upstream refuses our credential (401, 403).
    CredentialRefused,
    /// The client went away or cancelled.
    Cancelled,
    /// The client cannot be asked what the upstream wants to know.
    CapabilityMissing,
    /// The request's `Host` is none of ours.
    HostNotAllowed,
    /// The browser page that sends the request may not.
    OriginNotAllowed,
    /// Nothing is served at this path.
    UnknownPath,
    /// The HTTP method is not served at this path, or not now.
    MethodNotAllowed,
    /// The client accepts neither JSON nor events.
    NotAcceptable,
    /// The body is not declared to be JSON.
    NotJson,
    /// The body ended early.
    BrokenBody,
    /// The body did not arrive in time.
    SlowBody,
    /// The WebSocket handshake lacks something.
    InvalidUpgrade,
    /// The message is none that may come here and now.
    InvalidMessage,
    /// A request with this id is under way in the same session.
    DuplicateId,
    /// A session is needed and none is named.
    NoSession,
    /// The session named is not open, or somebody else's.
    UnknownSession,
    /// A header that mirrors the message is missing or differs from it.
    HeaderMismatch,
    /// The revision asked for is not served.
    UnsupportedVersion,
}

impl Reason {
    /// All, for tests and metric registration.
    pub const ALL: [Reason; 41] = [
        Reason::Unauthenticated,
        Reason::QuotaExceeded,
        Reason::UnknownName,
        Reason::UnknownMethod,
        Reason::InvalidParams,
        Reason::Dormant,
        Reason::UpstreamDown,
        Reason::Retired,
        Reason::BreakerOpen,
        Reason::QueueFull,
        Reason::RateLimited,
        Reason::Throttled,
        Reason::DeadlineExceeded,
        Reason::Draining,
        Reason::UpstreamDraining,
        Reason::Maintenance,
        Reason::Overloaded,
        Reason::ConnectFailed,
        Reason::ConnectionLost,
        Reason::MemoryExceeded,
        Reason::Garbled,
        Reason::TooLarge,
        Reason::UpstreamStatus,
        Reason::CredentialRefused,
        Reason::Cancelled,
        Reason::CapabilityMissing,
        Reason::HostNotAllowed,
        Reason::OriginNotAllowed,
        Reason::UnknownPath,
        Reason::MethodNotAllowed,
        Reason::NotAcceptable,
        Reason::NotJson,
        Reason::BrokenBody,
        Reason::SlowBody,
        Reason::InvalidUpgrade,
        Reason::InvalidMessage,
        Reason::DuplicateId,
        Reason::NoSession,
        Reason::UnknownSession,
        Reason::HeaderMismatch,
        Reason::UnsupportedVersion,
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Unauthenticated => "unauthenticated",
            Reason::QuotaExceeded => "quota_exceeded",
            Reason::UnknownName => "unknown_name",
            Reason::UnknownMethod => "unknown_method",
            Reason::InvalidParams => "invalid_params",
            Reason::Dormant => "dormant",
            Reason::UpstreamDown => "upstream_down",
            Reason::Retired => "retired",
            Reason::BreakerOpen => "breaker_open",
            Reason::QueueFull => "queue_full",
            Reason::RateLimited => "rate_limited",
            Reason::Throttled => "throttled",
            Reason::DeadlineExceeded => "deadline_exceeded",
            Reason::Draining => "draining",
            Reason::UpstreamDraining => "upstream_draining",
            Reason::Maintenance => "maintenance",
            Reason::Overloaded => "overloaded",
            Reason::ConnectFailed => "connect_failed",
            Reason::ConnectionLost => "connection_lost",
            Reason::MemoryExceeded => "memory_exceeded",
            Reason::Garbled => "garbled",
            Reason::TooLarge => "too_large",
            Reason::UpstreamStatus => "upstream_status",
            Reason::CredentialRefused => "credential_refused",
            Reason::Cancelled => "cancelled",
            Reason::CapabilityMissing => "capability_missing",
            Reason::HostNotAllowed => "host_not_allowed",
            Reason::OriginNotAllowed => "origin_not_allowed",
            Reason::UnknownPath => "unknown_path",
            Reason::MethodNotAllowed => "method_not_allowed",
            Reason::NotAcceptable => "not_acceptable",
            Reason::NotJson => "not_json",
            Reason::BrokenBody => "broken_body",
            Reason::SlowBody => "slow_body",
            Reason::InvalidUpgrade => "invalid_upgrade",
            Reason::InvalidMessage => "invalid_message",
            Reason::DuplicateId => "duplicate_id",
            Reason::NoSession => "no_session",
            Reason::UnknownSession => "unknown_session",
            Reason::HeaderMismatch => "header_mismatch",
            Reason::UnsupportedVersion => "unsupported_version",
        }
    }

    /// The JSON-RPC code under which it is told, where it is told as an error.
    pub fn code(self) -> i32 {
        match self {
            Reason::UnknownName | Reason::InvalidParams => error::INVALID_PARAMS,
            Reason::UnknownMethod => error::METHOD_NOT_FOUND,
            Reason::CapabilityMissing => error::MISSING_CLIENT_CAPABILITY,
            Reason::HeaderMismatch => error::HEADER_MISMATCH,
            Reason::UnsupportedVersion => error::UNSUPPORTED_PROTOCOL_VERSION,
            Reason::HostNotAllowed
            | Reason::OriginNotAllowed
            | Reason::UnknownPath
            | Reason::MethodNotAllowed
            | Reason::NotAcceptable
            | Reason::NotJson
            | Reason::BrokenBody
            | Reason::SlowBody
            | Reason::InvalidUpgrade
            | Reason::InvalidMessage
            | Reason::DuplicateId
            | Reason::NoSession
            | Reason::UnknownSession
            | Reason::Unauthenticated => error::INVALID_REQUEST,
            _ => error::INTERNAL_ERROR,
        }
    }

    /// Whether it can pass by itself, so that the same request may succeed later.
    pub fn passes(self) -> bool {
        matches!(
            self,
            Reason::QuotaExceeded
                | Reason::UpstreamDown
                | Reason::BreakerOpen
                | Reason::QueueFull
                | Reason::RateLimited
                | Reason::Throttled
                | Reason::DeadlineExceeded
                | Reason::Draining
                | Reason::UpstreamDraining
                | Reason::Maintenance
                | Reason::Overloaded
                | Reason::ConnectFailed
                | Reason::ConnectionLost
                | Reason::MemoryExceeded
                | Reason::Retired
        )
    }

    /// Whether a `tools/call` that ends so is told as a tool result with `isError`, which the
    /// model reads, and not as a protocol error, which many hosts only show as a crash. Protocol
    /// errors stay errors (2026-07-28 server/tools, "error handling").
    pub fn as_tool_result(self) -> bool {
        !matches!(
            self,
            Reason::UnknownName
                | Reason::UnknownMethod
                | Reason::InvalidParams
                | Reason::Unauthenticated
                | Reason::CapabilityMissing
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// We said no. The upstream never saw the call.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Why, in one word.
    pub reason: Reason,
    /// Which upstream it is about.
    pub upstream: Option<Arc<str>>,
    /// Why, in a sentence for the agent; holds no secret and no internal address.
    pub text: String,
    /// When asking again may help.
    pub retry_after: Option<Duration>,
    /// The moment up to which it is refused, where somebody set one.
    pub until: Option<SystemTime>,
}

impl Refusal {
    /// A refusal that is about no upstream.
    #[cold]
    pub fn new(reason: Reason, text: impl Into<String>) -> Refusal {
        Refusal { reason, upstream: None, text: text.into(), retry_after: None, until: None }
    }

    /// The same, about an upstream.
    #[must_use]
    pub fn at(mut self, upstream: &Arc<str>) -> Refusal {
        self.upstream = Some(upstream.clone());
        self
    }

    /// The same, with the time after which asking again may help.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Refusal {
        self.retry_after = Some(after);
        self
    }

    /// The same up to a moment that somebody set.
    #[must_use]
    pub fn until(mut self, until: Option<SystemTime>) -> Refusal {
        self.until = until;
        self
    }
}

/// Whether the upstream has got the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It provably never left: repeating cannot do anything twice.
    NotSent,
    /// It may have arrived and taken effect.
    Unknown,
    /// The upstream answered, and the answer says that nothing was done (429, 503, 401).
    Refused,
}

/// They failed us. Moves the breaker.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Why, in one word.
    pub reason: Reason,
    /// Whether the request arrived.
    pub delivery: Delivery,
    /// What happened, for the agent; holds no secret and no internal address.
    pub text: String,
    /// What happened, for the log; holds no secret.
    pub cause: String,
    /// The pause the upstream asked for.
    pub retry_after: Option<Duration>,
}

impl Fault {
    /// A fault whose public and internal texts are the same.
    #[cold]
    pub fn new(reason: Reason, delivery: Delivery, text: impl Into<String>) -> Fault {
        let text = text.into();
        Fault { reason, delivery, cause: text.clone(), text, retry_after: None }
    }

    /// The same, with what only the log may say.
    #[must_use]
    #[cold]
    pub fn because(mut self, cause: impl fmt::Display) -> Fault {
        self.cause = format!("{}: {cause}", self.text);
        self
    }

    /// The same, with the pause that the upstream asked for.
    #[must_use]
    pub fn retry_after(mut self, after: Option<Duration>) -> Fault {
        self.retry_after = after;
        self
    }
}

/// Either kind, ready to be told.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Why, in one word.
    pub reason: Reason,
    /// Which upstream it is about.
    pub upstream: Option<Arc<str>>,
    /// Why, in a sentence for the agent.
    pub text: String,
    /// Why, for the log.
    pub cause: String,
    /// When asking again may help.
    pub retry_after: Option<Duration>,
    /// The moment up to which it is refused, where somebody set one.
    pub until: Option<SystemTime>,
    /// The call may have taken effect although no answer came: it was a write and may have
    /// arrived. Told to the agent in plain words, so that it checks and does not just repeat.
    pub outcome_unknown: bool,
    /// It was tried more than once, each time under the same idempotency key.
    pub keyed: bool,
    /// It was a fault and not a refusal.
    pub fault: bool,
}

impl From<Refusal> for Failure {
    fn from(r: Refusal) -> Failure {
        Failure {
            reason: r.reason,
            upstream: r.upstream,
            cause: r.text.clone(),
            text: r.text,
            retry_after: r.retry_after,
            until: r.until,
            outcome_unknown: false,
            keyed: false,
            fault: false,
        }
    }
}

impl Failure {
    /// A fault of `upstream` during a call that was (`write`) or was not one that changes things.
    pub fn from_fault(fault: Fault, upstream: &Arc<str>, write: bool) -> Failure {
        Failure {
            reason: fault.reason,
            upstream: Some(upstream.clone()),
            text: fault.text,
            cause: fault.cause,
            retry_after: fault.retry_after,
            until: None,
            outcome_unknown: write && fault.delivery == Delivery::Unknown,
            keyed: false,
            fault: true,
        }
    }

    /// The details that go with it: `data` of an error, our `_meta` entry of a tool result.
    pub fn data(&self) -> serde_json::Value {
        let mut data = serde_json::Map::new();
        data.insert("reason".into(), self.reason.as_str().into());
        if let Some(upstream) = &self.upstream {
            data.insert("upstream".into(), (**upstream).into());
        }
        if let Some(after) = self.pause_told() {
            data.insert("retryAfterMs".into(), (after.as_millis() as u64).into());
        }
        if let Some(until) = self.until {
            data.insert("until".into(), told(until).into());
        }
        data.insert("outcome".into(), self.outcome().into());
        data.insert("retryable".into(), self.is_retryable().into());
        data.into()
    }

    /// Whether repeating the request does no harm and may help, now or after a while.
    pub fn is_retryable(&self) -> bool {
        !self.outcome_unknown && self.reason.passes()
    }

    fn pause_told(&self) -> Option<Duration> {
        self.retry_after.map(|after| after.max(PAUSE_TOLD_MIN))
    }

    /// `no_effect` or `unknown`: what the caller may assume about effects upstream.
    pub fn outcome(&self) -> &'static str {
        if self.outcome_unknown { "unknown" } else { NO_EFFECT }
    }

    /// The sentence with what the caller needs to act on it.
    pub fn sentence(&self) -> String {
        use std::fmt::Write as _;
        let mut s = String::new();
        if let Some(upstream) = &self.upstream {
            s.push_str(upstream);
            s.push_str(": ");
        }
        s.push_str(&self.text);
        let _ = write!(s, " (reason: {}", self.reason);
        if let Some(until) = self.until {
            let _ = write!(s, ", until {}", told(until));
        } else if let Some(after) = self.pause_told() {
            // Rounded up: who comes a moment too early is refused again.
            let tenths = after.as_millis().div_ceil(100);
            let _ = write!(s, ", try again in {}.{} s", tenths / 10, tenths % 10);
        }
        s.push(')');
        if self.outcome_unknown {
            s.push_str(
                ". The outcome is unknown: the request may have taken effect. \
                 Check before you repeat it; ",
            );
            s.push_str(if self.keyed {
                "the gateway repeated it only under the same idempotency key."
            } else {
                "the gateway did not repeat it."
            });
        }
        s
    }

    /// As a JSON-RPC error.
    #[cold]
    pub fn to_error(&self) -> ErrorObject {
        ErrorObject::new(self.reason.code(), self.sentence()).with_data(self.data())
    }

    /// As the raw result of a `tools/call`, canonical form.
    #[cold]
    pub fn to_tool_result(&self) -> Vec<u8> {
        let result = serde_json::json!({
            "resultType": "complete",
            "content": [{"type": "text", "text": self.sentence()}],
            "isError": true,
            "_meta": {format!("{OWN_PREFIX}failure"): self.data()},
        });
        serde_json::to_vec(&result).expect("our own values serialise")
    }
}

fn told(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_reasons_share_a_word() {
        let words: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
    }

    #[test]
    fn only_a_write_that_may_have_arrived_has_an_unknown_outcome() {
        let up: Arc<str> = "stripe".into();
        for (delivery, write, unknown) in [
            (Delivery::Unknown, true, true),
            (Delivery::Unknown, false, false),
            (Delivery::NotSent, true, false),
            (Delivery::Refused, true, false),
        ] {
            let f = Failure::from_fault(
                Fault::new(Reason::ConnectionLost, delivery, "the connection ended"),
                &up,
                write,
            );
            assert_eq!(f.outcome_unknown, unknown);
            assert_eq!(f.sentence().contains("unknown"), unknown);
        }
    }

    #[test]
    fn who_may_repeat_is_told_so_and_until_when_it_is_in_vain() {
        let until = SystemTime::UNIX_EPOCH + Duration::from_secs(1_798_761_599);
        let refusal = Refusal::new(Reason::Maintenance, "the vendor moves its database")
            .retry_after(Duration::from_secs(7200))
            .until(Some(until));
        let failure = Failure::from(refusal);
        insta::assert_snapshot!(failure.sentence(), @"the vendor moves its database (reason: maintenance, until 2026-12-31T23:59:59Z)");
        insta::assert_snapshot!(failure.data(), @r#"{"reason":"maintenance","retryAfterMs":7200000,"until":"2026-12-31T23:59:59Z","outcome":"no_effect","retryable":true}"#);
        let up: Arc<str> = "bank".into();
        for (reason, write, retryable) in [
            (Reason::ConnectionLost, false, true),
            (Reason::ConnectionLost, true, false),
            (Reason::CredentialRefused, false, false),
        ] {
            let fault = Fault::new(reason, Delivery::Unknown, "it ended");
            assert_eq!(Failure::from_fault(fault, &up, write).data()["retryable"], retryable);
        }
    }

    #[test]
    fn nobody_is_told_to_come_again_at_once() {
        for (ms, told, words) in
            [(0, 100, "0.1 s"), (40, 100, "0.1 s"), (120, 120, "0.2 s"), (8200, 8200, "8.2 s")]
        {
            let refusal = Refusal::new(Reason::UpstreamDown, "it restarts")
                .retry_after(Duration::from_millis(ms));
            let failure = Failure::from(refusal);
            assert_eq!(failure.data()["retryAfterMs"], told);
            assert!(failure.sentence().contains(&format!("again in {words}")), "{ms}");
        }
        let never = Failure::from(Refusal::new(Reason::Dormant, "no key"));
        assert!(never.data().get("retryAfterMs").is_none());
    }
}
