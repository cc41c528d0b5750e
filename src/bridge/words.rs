//! What the host is told of messages that did not get through, and what the log says to do.

use crate::failure::{Delivery, Failure, Fault, Reason};

/// A fault towards the gateway, as the host is told it. `repeatable`: the request changes nothing.
pub fn failure(fault: Fault, status: Option<u16>, repeatable: bool) -> Failure {
    let http = |text: &str| format!("{text} (HTTP {})", status.unwrap_or(0));
    let text = match (fault.reason, status) {
        (Reason::ConnectFailed, _) => {
            "the gateway cannot be reached: is it running, and is the URL right?".to_owned()
        }
        (Reason::CredentialRefused, Some(401)) => http(
            "the gateway refuses the key: give the bridge a valid one, in WEIR_TOKEN, with \
             --token-file or with --token",
        ),
        (Reason::CredentialRefused, _) => {
            http("the gateway lets this caller not in: its key, or the host that the URL names")
        }
        (Reason::Throttled, _) => http("the gateway has no room now"),
        (Reason::UpstreamStatus, Some(404 | 405)) => http(
            "nothing speaks MCP at this URL: a gateway does at http(s)://HOST/mcp, and --connect \
             takes that",
        ),
        (Reason::UpstreamStatus, Some(300..400)) => {
            http("the URL leads elsewhere: give --connect the address itself")
        }
        (Reason::UpstreamStatus, _) => http("the gateway, or a proxy before it, failed"),
        (Reason::TooLarge, _) => "the answer is larger than the bridge takes".to_owned(),
        (Reason::Garbled, _) => "the gateway's answer is no valid message".to_owned(),
        _ => "the connection to the gateway ended before the answer".to_owned(),
    };
    Failure {
        reason: fault.reason,
        upstream: None,
        text,
        cause: fault.cause,
        retry_after: fault.retry_after,
        until: None,
        outcome_unknown: !repeatable && fault.delivery == Delivery::Unknown,
        keyed: false,
        fault: true,
    }
}

/// The session is gone and cannot be made again.
pub fn no_session() -> Failure {
    let text = "the gateway no longer knows the session and begins no new one";
    let fault = Fault::new(Reason::UnknownSession, Delivery::Refused, text);
    Failure { text: text.to_owned(), ..failure(fault, None, true) }
}

/// The gateway took a handshake and did not answer it in time.
pub fn silent() -> Failure {
    let text = "the gateway does not answer the handshake";
    let fault = Fault::new(Reason::DeadlineExceeded, Delivery::Unknown, text);
    Failure { text: text.to_owned(), ..failure(fault, None, true) }
}

/// The bridge ends while the request is under way.
pub fn cut(repeatable: bool) -> Failure {
    let text = "the bridge ended before the answer";
    let fault = Fault::new(Reason::Draining, Delivery::Unknown, text);
    Failure { text: text.to_owned(), ..failure(fault, None, repeatable) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_says_what_happened_and_what_may_have() {
        let told = |reason, delivery, status, repeatable| {
            let failure = failure(Fault::new(reason, delivery, "x"), status, repeatable);
            format!("{} / {}", failure.sentence(), failure.outcome())
        };
        use Delivery::{NotSent, Refused, Unknown};
        let lines = [
            told(Reason::ConnectFailed, NotSent, None, false),
            told(Reason::ConnectionLost, Unknown, None, false),
            told(Reason::ConnectionLost, Unknown, Some(200), true),
            told(Reason::CredentialRefused, Refused, Some(401), false),
            told(Reason::UpstreamStatus, Refused, Some(404), true),
            told(Reason::UpstreamStatus, Unknown, Some(502), false),
            no_session().sentence(),
            cut(false).sentence(),
        ];
        insta::assert_snapshot!(lines.join("\n"), @r"
        the gateway cannot be reached: is it running, and is the URL right? (reason: connect_failed) / no_effect
        the connection to the gateway ended before the answer (reason: connection_lost). The outcome is unknown: the request may have taken effect. Check before you repeat it; the gateway did not repeat it. / unknown
        the connection to the gateway ended before the answer (reason: connection_lost) / no_effect
        the gateway refuses the key: give the bridge a valid one, in WEIR_TOKEN, with --token-file or with --token (HTTP 401) (reason: credential_refused) / no_effect
        nothing speaks MCP at this URL: a gateway does at http(s)://HOST/mcp, and --connect takes that (HTTP 404) (reason: upstream_status) / no_effect
        the gateway, or a proxy before it, failed (HTTP 502) (reason: upstream_status). The outcome is unknown: the request may have taken effect. Check before you repeat it; the gateway did not repeat it. / unknown
        the gateway no longer knows the session and begins no new one (reason: unknown_session)
        the bridge ended before the answer (reason: draining). The outcome is unknown: the request may have taken effect. Check before you repeat it; the gateway did not repeat it.
        ");
    }
}
