//! What holds for some of an upstream's tools, and where calls carry a key.

use std::time::Duration;

use hyper::header::HeaderName;

use crate::config::section::{At, Section};
use crate::config::{GuardConfig, KeyPlace, ToolRule, TransportConfig, UrlTransport};

use super::{is_owned, rate};

/// Longest name of an argument; longer ones no tool has.
const ARGUMENT_MAX: usize = 128;

/// `[upstreams.NAME.tools."PATTERN"]`, in the order of the file.
pub fn all(
    s: &Section<'_>,
    transport: &TransportConfig,
    call_timeout: Duration,
    guard: &GuardConfig,
) -> Vec<ToolRule> {
    let mut out = Vec::new();
    for (pattern, t) in s.tables(
        "tools",
        "What holds for some of its tools: [upstreams.NAME.tools.\"PATTERN\"], first match counts.",
    ) {
        if pattern.is_empty() {
            t.wrong_at(
                &t.span,
                "",
                "is an empty pattern",
                "write a tool's own name, with * for anything",
            );
        }
        let own_timeout = t.maybe_duration("call_timeout", None, "Time for a call of it.");
        let read_only = t.maybe_flag(
            "read_only",
            None,
            "Whether it changes nothing and may be repeated, whatever it says of itself.",
        );
        let after = hedge_after(&t, own_timeout.unwrap_or(call_timeout), guard);
        if after.is_some() && read_only == Some(false) {
            let remedy = "remove one of the two: only what changes nothing is sent twice";
            t.wrong("hedge_after", "means nothing with read_only = false", remedy);
        }
        let rule = ToolRule {
            pattern,
            call_timeout: own_timeout,
            hedge_after: after,
            read_only,
            rate: rate(&t, "A rate limit of its own, besides the upstream's."),
            idempotency: idempotency(&t, transport),
        };
        t.finish();
        out.push(rule);
    }
    out
}

/// `hedge_after`, of calls that have so much time.
pub fn hedge_after(
    s: &Section<'_>,
    call_timeout: Duration,
    guard: &GuardConfig,
) -> Option<Duration> {
    let after = s.maybe_duration(
        "hedge_after",
        None,
        "A read that has no answer after so long is sent a second time, and the first answer counts. Absent: never.",
    )?;
    if after >= call_timeout {
        let remedy = "lower it: the call is given up then, and a second attempt needs time too";
        s.wrong("hedge_after", "is not shorter than call_timeout", remedy);
    }
    if guard.retry.budget <= 0.0 {
        let remedy = "raise the budget, from which second attempts are made too, or remove one";
        s.wrong("hedge_after", "means nothing with retry.budget = 0", remedy);
    }
    Some(after)
}

/// `idempotency = { argument = "…" }` or `{ header = "…" }`.
pub fn idempotency(s: &Section<'_>, transport: &TransportConfig) -> Option<KeyPlace> {
    let there = s.has("idempotency");
    let s = s.table(
        "idempotency",
        "Where a call carries a key by which the upstream knows it again; such a call may be repeated.",
    );
    let argument = s.text(
        "argument",
        "Argument that holds the key; filled where the tool's schema declares it and the agent did not.",
    );
    let header = s.text("header", "Header that holds the key, with url over streamable HTTP.");
    s.finish();
    match (argument, header) {
        (Some(_), Some(_)) => {
            s.wrong("header", "and argument are both given", "keep one of the two");
            None
        }
        (Some(argument), None) => named(&s, argument),
        (None, Some(header)) => headed(&s, &header, transport),
        (None, None) => {
            if there && !s.has("argument") && !s.has("header") {
                let text = "says not where the key stands";
                s.wrong_at(
                    &s.span,
                    "",
                    text,
                    "write { argument = \"NAME\" } or { header = \"NAME\" }",
                );
            }
            None
        }
    }
}

fn named(s: &Section<'_>, argument: At<String>) -> Option<KeyPlace> {
    if argument.value.trim().is_empty() || argument.value.len() > ARGUMENT_MAX {
        let remedy = "write the name of the tool's argument, such as \"idempotency_key\"";
        s.wrong("argument", "is no name of an argument", remedy);
        return None;
    }
    Some(KeyPlace::Argument(argument.value.into()))
}

fn headed(s: &Section<'_>, header: &At<String>, transport: &TransportConfig) -> Option<KeyPlace> {
    let carried = match transport {
        TransportConfig::Http(http) => match http.transport {
            UrlTransport::Auto | UrlTransport::Http => Ok(http),
            UrlTransport::Sse => {
                Err("transport = \"sse\": no message has headers of its own there")
            }
            UrlTransport::WebSocket => Err("a ws or wss URL: only its first request has headers"),
        },
        TransportConfig::Stdio(_) => Err("command or package: pipes have no headers"),
    };
    let http = match carried {
        Ok(http) => http,
        Err(why) => {
            let message = format!("means nothing with {why}");
            s.wrong("header", message, "name an argument instead: { argument = \"NAME\" }");
            return None;
        }
    };
    let lower = header.value.to_ascii_lowercase();
    let Ok(name) = lower.parse::<HeaderName>() else {
        s.wrong("header", "is no header name", "use letters, digits and -");
        return None;
    };
    if is_owned(&lower) || lower == "authorization" {
        s.wrong("header", "is set by the gateway itself", "name the one that the upstream reads");
        return None;
    }
    if http.headers.iter().any(|(configured, _)| configured.eq_ignore_ascii_case(&lower)) {
        s.wrong("header", "is among `headers` too", "keep one: each call has a key of its own");
        return None;
    }
    Some(KeyPlace::Header(name))
}
