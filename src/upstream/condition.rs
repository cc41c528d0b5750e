//! How an upstream is, since when and why.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::link::Link;

/// The states of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has no credential yet; nothing was started.
    Dormant,
    /// Being connected for the first time, or again at once.
    Starting,
    /// Connected and agreed.
    Ready,
    /// Its process is stopped because nobody used it; the next call starts it.
    Idle,
    /// Could not be connected, or was lost; the next try is planned.
    Down,
    /// Taken out of the configuration.
    Retired,
}

impl State {
    /// A word for humans, labels and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Dormant => "dormant",
            State::Starting => "starting",
            State::Ready => "ready",
            State::Idle => "idle",
            State::Down => "down",
            State::Retired => "retired",
        }
    }
}

/// A state with its reasons.
#[derive(Clone)]
pub struct Condition {
    /// The state.
    pub state: State,
    /// When it began.
    pub since: SystemTime,
    /// Why, in a sentence; empty when there is nothing to explain. Holds no secret.
    pub why: Arc<str>,
    /// The same with what only operators may read: the system's words, paths, what the program
    /// said last. Empty when there is no more to say than `why`. Holds no secret.
    pub cause: Arc<str>,
    /// It keeps dying right after its start.
    pub crash_loop: bool,
    /// When the next try comes.
    pub next_try: Option<Instant>,
    /// The conversation, when ready.
    pub link: Option<Arc<Link>>,
}

impl Condition {
    /// Being connected for the first time.
    pub fn starting() -> Condition {
        Condition::new(State::Starting, "")
    }

    /// A state that begins now.
    pub fn new(state: State, why: impl Into<Arc<str>>) -> Condition {
        Condition {
            state,
            since: SystemTime::now(),
            why: why.into(),
            cause: "".into(),
            crash_loop: false,
            next_try: None,
            link: None,
        }
    }

    /// The beginning, for humans.
    pub fn since_text(&self) -> String {
        humantime::format_rfc3339_seconds(self.since).to_string()
    }

    /// How long until the next try.
    pub fn next_try_in(&self) -> Option<Duration> {
        self.next_try.map(|at| at.saturating_duration_since(Instant::now()))
    }
}
