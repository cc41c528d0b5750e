//! JSON-RPC error codes of all revisions, and error bodies.

use serde::Serialize;
use serde_json::value::RawValue;

/// Malformed JSON.
pub const PARSE_ERROR: i32 = -32700;
/// Not a JSON-RPC message.
pub const INVALID_REQUEST: i32 = -32600;
/// Unknown method, or one of a capability that is not offered.
pub const METHOD_NOT_FOUND: i32 = -32601;
/// Wrong params; also: unknown tool, prompt, cursor, and (2026-07-28) resource.
pub const INVALID_PARAMS: i32 = -32602;
/// Our own failure or an upstream's.
pub const INTERNAL_ERROR: i32 = -32603;
/// Resource not found, in revisions before 2026-07-28 only.
pub const LEGACY_RESOURCE_NOT_FOUND: i32 = -32002;
/// URL elicitation required, in 2025-11-25 only.
pub const LEGACY_URL_ELICITATION: i32 = -32042;
/// A mirrored header is missing or differs from the body (2026-07-28 basic/transports/streamable-http).
pub const HEADER_MISMATCH: i32 = -32020;
/// The client did not declare a capability that the request needs (2026-07-28 basic/index).
pub const MISSING_CLIENT_CAPABILITY: i32 = -32021;
/// The revision asked for is not served (2026-07-28 basic/versioning).
pub const UNSUPPORTED_PROTOCOL_VERSION: i32 = -32022;

/// Codes that the specification keeps for itself; an upstream's use of one that we don't know is
/// not passed on as it is (2026-07-28 basic/index, "error codes").
pub fn is_reserved_unknown(code: i64) -> bool {
    (-32099..=-32023).contains(&code)
}

/// Codes that tell a probe that the peer is modern, whatever else it says
/// (2026-07-28 basic/versioning).
pub fn tells_modern(code: i64) -> bool {
    matches!(
        i32::try_from(code),
        Ok(HEADER_MISMATCH | MISSING_CLIENT_CAPABILITY | UNSUPPORTED_PROTOCOL_VERSION)
    )
}

/// The `error` member of a response.
#[derive(Debug, Clone, Serialize)]
pub struct ErrorObject {
    /// JSON-RPC code.
    pub code: i32,
    /// One sentence for a human or a model.
    pub message: String,
    /// Details, among them our `reason`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
}

impl ErrorObject {
    /// An error without details.
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        ErrorObject { code, message: message.into(), data: None }
    }

    /// The same with details.
    #[must_use]
    pub fn with_data(mut self, data: serde_json::Value) -> Self {
        self.data = Some(data);
        self
    }

    /// The object as raw JSON.
    pub fn to_raw(&self) -> Box<RawValue> {
        serde_json::value::to_raw_value(self).expect("an error object serialises")
    }
}
