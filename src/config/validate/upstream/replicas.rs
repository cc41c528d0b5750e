//! `urls`: several endpoints that stand for one another, and when one of them is left out.

use crate::config::secret::Template;
use crate::config::section::Section;
use crate::config::{EjectionConfig, UrlTransport};

use super::{Resolver, check_url, non_zero};

/// Most replicas of one upstream: each has a conversation and a task of its own, and which of them
/// a call has tried is remembered in a few bits.
pub const REPLICAS_MAX: usize = 16;

/// The URLs, as far as they are valid.
pub fn urls(s: &Section<'_>, r: &mut Resolver<'_, '_>) -> Vec<Template> {
    let given = s.strings(
        "urls",
        "Endpoints of several replicas of it, in place of url; a call goes to one that is well.",
    );
    if s.has("urls") && given.is_empty() {
        s.wrong("urls", "names no endpoint", "write [\"https://a.example/mcp\", …], or url");
    }
    if given.len() > REPLICAS_MAX {
        let message = format!("names {} endpoints", given.len());
        s.wrong("urls", message, format!("name {REPLICAS_MAX} at most"));
    }
    let mut out: Vec<Template> = Vec::new();
    for url in given {
        let template = r.resolve("urls", &url);
        check_url(s, ("urls", &url.span), template.expose(), !r.absent.is_empty());
        let socket = UrlTransport::is_websocket(template.expose());
        if out.iter().any(|other| other.expose() == template.expose()) {
            let remedy = "name each once: a replica does not become two";
            s.wrong_at(&url.span, "urls", "names an endpoint twice", remedy);
        } else if out.iter().any(|o| UrlTransport::is_websocket(o.expose()) != socket) {
            let remedy = "name either http and https or ws and wss URLs";
            s.wrong_at(&url.span, "urls", "mixes HTTP and WebSocket", remedy);
        }
        out.push(template);
    }
    out
}

/// `[upstreams.NAME.ejection]`.
pub fn ejection(s: &Section<'_>) -> EjectionConfig {
    let means_something = s.has("urls") || !s.has("ejection");
    if !means_something {
        s.wrong("ejection", "means nothing without urls", "remove it, or name several urls");
    }
    let default = EjectionConfig::default();
    let s = s.table("ejection", "When a replica gets no calls for a while.");
    let ejection = EjectionConfig {
        consecutive: non_zero(
            &s,
            "consecutive",
            default.consecutive.get(),
            "So many failures in a row leave it out.",
        ),
        first: s.duration("first", default.first, "How long at first; doubles, with each time."),
        longest: s.duration("longest", default.longest, "How long at most."),
    };
    if ejection.longest < ejection.first {
        s.wrong("longest", "is shorter than first", "raise it, or lower first");
    }
    s.finish();
    ejection
}
