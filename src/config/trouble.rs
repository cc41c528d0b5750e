//! Why what runs is not what the file says.

use std::fmt;

/// One word for why. Closed: the same word stands in the log line, in `/status`, in the label of
/// the metric and in what `weir plan` prints. None of them is a reason of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trouble {
    /// The file has problems: nothing of it is in force.
    Invalid,
    /// The file changes what cannot change while running: nothing of it is in force.
    NeedsRestart,
    /// A changed upstream did not become ready in its new form: its old form serves, and the rest
    /// of the file is in force.
    RolledBack,
    /// The file was broken at the start: the last good one is in force.
    LastGood,
}

impl Trouble {
    /// All, for metrics and tests.
    pub const ALL: [Trouble; 4] =
        [Trouble::Invalid, Trouble::NeedsRestart, Trouble::RolledBack, Trouble::LastGood];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Trouble::Invalid => "config_invalid",
            Trouble::NeedsRestart => "needs_restart",
            Trouble::RolledBack => "rolled_back",
            Trouble::LastGood => "last_good",
        }
    }

    /// What would change it, for the operator.
    pub fn remedy(self) -> &'static str {
        match self {
            Trouble::Invalid => "mend the file and save it; `weir check` names every problem",
            Trouble::NeedsRestart => "restart the gateway, or set these keys back",
            Trouble::RolledBack => {
                "mend the section and save the file; each reload (SIGHUP too) tries it again"
            }
            Trouble::LastGood => "mend the file and save it: it is applied at once",
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
