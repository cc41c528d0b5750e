//! An upstream that gets no calls for a while, because its operators want it so.

use std::sync::Arc;
use std::time::SystemTime;

use crate::failure::Reason;

/// Most characters of a `message`: agents read it in each refusal, so it is a sentence or two.
pub const MESSAGE_MAX: usize = 500;

/// `state`, `message` and `until` of an upstream that is to get no calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upkeep {
    /// What becomes of calls.
    pub state: UpkeepState,
    /// Why, for agents and operators.
    pub message: Option<Arc<str>>,
    /// When it gets calls again by itself; `None`: when the file says so.
    pub until: Option<SystemTime>,
}

/// What becomes of the calls of an upstream that is to get none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UpkeepState {
    /// New ones are refused; those that were let in finish, also when they still wait in line.
    Draining,
    /// All that have not left yet are refused.
    Maintenance,
}

impl UpkeepState {
    /// Each of them.
    pub const ALL: [UpkeepState; 2] = [UpkeepState::Draining, UpkeepState::Maintenance];

    /// The word in the file and in `/status`.
    pub fn as_str(self) -> &'static str {
        match self {
            UpkeepState::Draining => "draining",
            UpkeepState::Maintenance => "maintenance",
        }
    }

    /// Why its calls are refused.
    pub fn reason(self) -> Reason {
        match self {
            UpkeepState::Draining => Reason::UpstreamDraining,
            UpkeepState::Maintenance => Reason::Maintenance,
        }
    }
}
