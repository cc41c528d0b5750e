//! What is said about a consumer and a tool, as JSON has it.

use serde::{Deserialize, Serialize};

/// Whether a consumer can see and call a tool now, and if not, why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Whose view it is about.
    pub consumer: String,
    /// The tool's public name as it was asked for.
    pub tool: String,
    /// Whether the consumer's lists show it.
    pub visible: bool,
    /// Whether a call would be let through now.
    pub callable: bool,
    /// What refuses a call, if something does: the first of all that would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
    /// Whose tool it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// Its name there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native: Option<String>,
    /// Whether it counts as changing nothing, so that a failed call may be repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Time for a call, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_timeout_ms: Option<u64>,
    /// When a slow call gets a second attempt beside the first, in milliseconds; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge_after_ms: Option<u64>,
    /// What else a caller should know; none of it refuses the call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The limits on the way, and how near they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Limit>,
}

/// What refuses a call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// The reason code: the same word as in the error, the log line and the metric.
    pub reason: String,
    /// Which part of the gateway decided.
    pub layer: String,
    /// Since when it has been so, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Why, in a sentence.
    pub why: String,
    /// The same with what only operators may read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// When asking again may help, in milliseconds from now.
    #[serde(default, rename = "retryAfterMs", skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The same as a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opens_at: Option<String>,
    /// The key of the configuration that decides it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What would change it.
    pub remedy: String,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// The key of the configuration that sets it.
    pub key: String,
    /// How much of it is used.
    pub used: f64,
    /// How much may be.
    pub max: f64,
    /// The same in words.
    pub says: String,
}
