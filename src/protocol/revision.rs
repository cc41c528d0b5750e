//! The five published revisions and the two eras they form.

use std::fmt;

/// A dated revision of the Model Context Protocol.
///
/// Ordered by date, so `revision >= Revision::R2025_06_18` reads as "that one or newer".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Revision {
    /// 2024-11-05: HTTP+SSE, no protocol header.
    R2024_11_05,
    /// 2025-03-26: streamable HTTP, batches.
    R2025_03_26,
    /// 2025-06-18: protocol header, structured output, elicitation.
    R2025_06_18,
    /// 2025-11-25: icons, URL elicitation; the newest with a handshake.
    R2025_11_25,
    /// 2026-07-28: stateless; each request carries its revision and capabilities.
    R2026_07_28,
}

/// How a peer talks: with a handshake and sessions, or with metadata on every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Era {
    /// `initialize`, then a session (all revisions before 2026-07-28).
    Legacy,
    /// Per-request metadata, `server/discover` (2026-07-28 and later).
    Modern,
}

impl Revision {
    /// All revisions, oldest first.
    pub const ALL: [Revision; 5] = [
        Revision::R2024_11_05,
        Revision::R2025_03_26,
        Revision::R2025_06_18,
        Revision::R2025_11_25,
        Revision::R2026_07_28,
    ];
    /// The newest revision with a handshake: what a client gets that asks for one we don't know
    /// (2025-11-25 basic/lifecycle: "another protocol version it supports … SHOULD be the latest").
    pub const LATEST_LEGACY: Revision = Revision::R2025_11_25;
    /// The newest revision.
    pub const LATEST: Revision = Revision::R2026_07_28;

    /// The revision with this date, if it is one that we know.
    pub fn parse(text: &str) -> Option<Revision> {
        Revision::ALL.into_iter().find(|r| r.as_str() == text)
    }

    /// The date, as it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Revision::R2024_11_05 => "2024-11-05",
            Revision::R2025_03_26 => "2025-03-26",
            Revision::R2025_06_18 => "2025-06-18",
            Revision::R2025_11_25 => "2025-11-25",
            Revision::R2026_07_28 => "2026-07-28",
        }
    }

    /// The era this revision belongs to.
    pub fn era(self) -> Era {
        if self >= Revision::R2026_07_28 { Era::Modern } else { Era::Legacy }
    }

    /// What the handshake answers to a client that asked for `asked`: the same revision if it is
    /// a legacy one, else the newest legacy one. A modern date is never negotiated in a handshake.
    pub fn negotiate(asked: &str) -> Revision {
        match Revision::parse(asked) {
            Some(r) if r.era() == Era::Legacy => r,
            _ => Revision::LATEST_LEGACY,
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_ordered_and_read_back() {
        for pair in Revision::ALL.windows(2) {
            assert!(pair[0] < pair[1]);
        }
        for r in Revision::ALL {
            assert_eq!(Revision::parse(r.as_str()), Some(r));
        }
        assert_eq!(Revision::parse("2026-07-29"), None);
    }

    #[test]
    fn a_handshake_never_negotiates_a_modern_date() {
        assert_eq!(Revision::negotiate("2024-11-05"), Revision::R2024_11_05);
        assert_eq!(Revision::negotiate("2026-07-28"), Revision::R2025_11_25);
        assert_eq!(Revision::negotiate("nonsense"), Revision::R2025_11_25);
    }
}
