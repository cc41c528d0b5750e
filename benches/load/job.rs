//! What the program tells its copies, as lines of JSON on their pipes.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Which family of revisions is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Era {
    /// 2025-11-25: a handshake and a session.
    Legacy,
    /// 2026-07-28: each request says everything itself.
    Modern,
}

impl Era {
    /// The revision that stands for it here.
    pub fn revision(self) -> &'static str {
        match self {
            Era::Legacy => "2025-11-25",
            Era::Modern => "2026-07-28",
        }
    }
}

/// One mock server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mock {
    /// The name that its answers carry.
    pub name: String,
    /// How many tools it has.
    pub tools: usize,
    /// What it speaks.
    pub era: Era,
}

/// One tool somewhere.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Route {
    /// Where the endpoint is.
    pub addr: SocketAddr,
    /// Its path.
    pub path: String,
    /// What the tool is called there.
    pub tool: String,
    /// The name of the mock that has it.
    pub upstream: String,
}

/// What is asked all the time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// `tools/call` with so many bytes in the answer.
    Call {
        /// Bytes of text.
        size: usize,
        /// Whether the mock answers as an event stream.
        sse: bool,
        /// How long it takes to answer.
        delay_ms: u64,
    },
    /// `tools/list`; each answer is the same, but for its id, as the first.
    List {
        /// How many tools of mock servers are to be in it.
        tools: usize,
    },
    /// A file that holds a list; each answer is the same as the first.
    File {
        /// How many tools of mock servers are to be in it.
        tools: usize,
    },
}

/// A cell's load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Where to.
    pub routes: Vec<Route>,
    /// Sent as bearer.
    pub key: Option<String>,
    /// What is spoken.
    pub era: Era,
    /// How many connections.
    pub connections: usize,
    /// What.
    pub ask: Ask,
    /// Calls a second; `None`: as many as come back.
    pub rate: Option<f64>,
}

/// A word to the load role.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Connect, shake hands, warm up.
    Prepare(Job),
    /// Run what is prepared for so many seconds.
    Go(f64),
    /// Open sessions and leave their streams open.
    Open {
        /// Where to.
        route: Route,
        /// Sent as bearer.
        key: Option<String>,
        /// How many.
        sessions: usize,
    },
    /// End the sessions that are open.
    End,
    /// Drive a child over its pipes for so many seconds, with so many calls in flight.
    Pipe {
        /// Its command line.
        command: Vec<String>,
        /// The name that its answers carry.
        upstream: String,
        /// Calls in flight.
        flight: usize,
        /// For how long.
        seconds: f64,
    },
    /// One large answer, read at so many bytes a second.
    Large {
        /// Where to.
        route: Route,
        /// Sent as bearer.
        key: Option<String>,
        /// Bytes of text.
        size: usize,
        /// Bytes a second.
        pace: usize,
    },
}

/// What the load role says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Answers that were right.
    pub calls: u64,
    /// Answers that were not.
    pub errors: u64,
    /// What was wrong with the first.
    pub first_error: Option<String>,
    /// How long it took.
    pub seconds: f64,
    /// Median of the latency in µs.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// The longest, in µs.
    pub longest: f64,
    /// Bytes of an answer's body.
    pub bytes: usize,
}

impl Report {
    /// Count something that was wrong.
    pub fn wrong(&mut self, what: impl FnOnce() -> String) {
        self.errors += 1;
        if self.first_error.is_none() {
            self.first_error = Some(what());
        }
    }
}
