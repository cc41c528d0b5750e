//! The two axes of the matrix, and which of their points and which features cannot exist.

use std::fmt;

use weirkeeper::protocol::revision::{Era, Revision};

/// What carries the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    Stdio,
    Http,
    Sse,
    WebSocket,
}

impl Carrier {
    pub const ALL: [Carrier; 4] = [Carrier::Stdio, Carrier::Http, Carrier::Sse, Carrier::WebSocket];

    /// As in names.
    pub fn word(self) -> &'static str {
        match self {
            Carrier::Stdio => "stdio",
            Carrier::Http => "http",
            Carrier::Sse => "sse",
            Carrier::WebSocket => "ws",
        }
    }

    /// As in the table.
    pub fn title(self) -> &'static str {
        match self {
            Carrier::Stdio => "stdio",
            Carrier::Http => "HTTP",
            Carrier::Sse => "SSE",
            Carrier::WebSocket => "WS",
        }
    }
}

/// One end: a revision over a carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub revision: Revision,
    pub carrier: Carrier,
}

impl Endpoint {
    /// Every combination, those that cannot exist too.
    pub fn grid() -> Vec<Endpoint> {
        let of = |revision| Carrier::ALL.map(|carrier| Endpoint { revision, carrier });
        Revision::ALL.into_iter().flat_map(of).collect()
    }

    /// Those that exist.
    pub fn all() -> Vec<Endpoint> {
        Endpoint::grid().into_iter().filter(|e| e.forbidden().is_none()).collect()
    }

    /// The number of the rule that forbids it.
    pub fn forbidden(self) -> Option<Rule> {
        match (self.revision, self.carrier) {
            (Revision::R2024_11_05, Carrier::Http) => Some(Rule::NoStreamableHttpYet),
            (Revision::R2026_07_28, Carrier::Sse) => Some(Rule::NoSseAnyMore),
            _ => None,
        }
    }

    pub fn is_modern(self) -> bool {
        self.revision.era() == Era::Modern
    }

    /// Of the newest revision over HTTP, where a request is a response stream and nothing more.
    pub fn is_stateless(self) -> bool {
        self.is_modern() && self.carrier == Carrier::Http
    }

    /// Short enough for the name of an upstream.
    pub fn name(self) -> String {
        let month = &self.revision.as_str()[2..7];
        format!("r{month}-{}", self.carrier.word())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.revision, self.carrier.title())
    }
}

/// Why something cannot exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    NoStreamableHttpYet,
    NoSseAnyMore,
    NoElicitationYet,
    NoUrlModeYet,
    NobodysLog,
}

impl Rule {
    pub const ALL: [Rule; 5] = [
        Rule::NoStreamableHttpYet,
        Rule::NoSseAnyMore,
        Rule::NoElicitationYet,
        Rule::NoUrlModeYet,
        Rule::NobodysLog,
    ];

    /// The footnote's sign.
    pub fn sign(self) -> &'static str {
        match self {
            Rule::NoStreamableHttpYet => "a",
            Rule::NoSseAnyMore => "b",
            Rule::NoElicitationYet => "c",
            Rule::NoUrlModeYet => "d",
            Rule::NobodysLog => "e",
        }
    }

    /// The rule, and the page of the specification where it stands.
    pub fn text(self) -> &'static str {
        match self {
            Rule::NoStreamableHttpYet => {
                "2024-11-05 defines stdio and HTTP+SSE; streamable HTTP came with 2025-03-26 \
                 (2024-11-05 basic/transports; 2025-03-26 changelog)"
            }
            Rule::NoSseAnyMore => {
                "HTTP+SSE carries a session that begins with `initialize`, which 2026-07-28 does \
                 not have (2026-07-28 basic/transports, basic/versioning)"
            }
            Rule::NoElicitationYet => {
                "no elicitation before 2025-06-18, whichever side is the older (2025-06-18 \
                 changelog, client/elicitation)"
            }
            Rule::NoUrlModeYet => {
                "no URL mode before 2025-11-25, whichever side is the older (2025-11-25 \
                 changelog, client/elicitation)"
            }
            Rule::NobodysLog => {
                "a log message of 2026-07-28 belongs to the stream of its request and does not \
                 name it; on a connection that all callers share it could be anybody's, so nobody \
                 gets it (2026-07-28 server/utilities/logging)"
            }
        }
    }
}

/// What is exercised in a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    List,
    Call,
    Error,
    Paging,
    Progress,
    Log,
    Cancel,
    Form,
    Url,
    Sampling,
    Roots,
    Subscription,
    ListChanged,
    Exact,
}

impl Feature {
    pub const ALL: [Feature; 14] = [
        Feature::List,
        Feature::Call,
        Feature::Error,
        Feature::Paging,
        Feature::Progress,
        Feature::Log,
        Feature::Cancel,
        Feature::Form,
        Feature::Url,
        Feature::Sampling,
        Feature::Roots,
        Feature::Subscription,
        Feature::ListChanged,
        Feature::Exact,
    ];

    /// As in the table.
    pub fn title(self) -> &'static str {
        match self {
            Feature::List => "list",
            Feature::Call => "call",
            Feature::Error => "error",
            Feature::Paging => "paging",
            Feature::Progress => "progress",
            Feature::Log => "log",
            Feature::Cancel => "cancel",
            Feature::Form => "form",
            Feature::Url => "URL",
            Feature::Sampling => "sampling",
            Feature::Roots => "roots",
            Feature::Subscription => "subscription",
            Feature::ListChanged => "list changed",
            Feature::Exact => "bytes",
        }
    }

    /// The rule that keeps it from existing between two ends.
    pub fn forbidden(self, down: Endpoint, up: Endpoint) -> Option<Rule> {
        let older = down.revision.min(up.revision);
        match self {
            Feature::Log if up.is_modern() && !up.is_stateless() => Some(Rule::NobodysLog),
            Feature::Form | Feature::Url if older < Revision::R2025_06_18 => {
                Some(Rule::NoElicitationYet)
            }
            Feature::Url if older < Revision::R2025_11_25 => Some(Rule::NoUrlModeYet),
            _ => None,
        }
    }
}
