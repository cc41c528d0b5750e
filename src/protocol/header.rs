//! The HTTP headers of MCP, and the form of their values.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderName;
use std::borrow::Cow;

/// The revision of a request (2025-06-18 and later).
pub const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
/// The session of an old client or upstream (2025-03-26 to 2025-11-25).
pub const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
/// The event behind which a stream goes on (2025-03-26 to 2025-11-25).
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Mirrors `method` (2026-07-28).
pub const METHOD: HeaderName = HeaderName::from_static("mcp-method");
/// Mirrors `params.name` or `params.uri` (2026-07-28).
pub const NAME: HeaderName = HeaderName::from_static("mcp-name");

/// A consumer's key, besides `Authorization`.
pub const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// The span of who calls (W3C Trace Context).
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What goes with it.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

const OPEN: &str = "=?base64?";
const CLOSE: &str = "?=";

/// A value as it stands in a header: as it is when it is plain visible ASCII, else wrapped in the
/// base64 sentinel (2026-07-28 basic/transports/streamable-http, "value encoding").
pub fn encode(value: &str) -> Cow<'_, str> {
    let plain = value.bytes().all(|b| matches!(b, 0x20..=0x7e | b'\t'))
        && !value.starts_with([' ', '\t'])
        && !value.ends_with([' ', '\t'])
        && !value.is_empty();
    let like_ours = value.starts_with(OPEN) && value.ends_with(CLOSE);
    if plain && !like_ours {
        return Cow::Borrowed(value);
    }
    Cow::Owned(format!("{OPEN}{}{CLOSE}", STANDARD.encode(value)))
}

/// The value that a header means; `None` if the sentinel is well formed and its content is not.
pub fn decode(header: &str) -> Option<Cow<'_, str>> {
    let header = header.trim_matches([' ', '\t']);
    match header.strip_prefix(OPEN).and_then(|h| h.strip_suffix(CLOSE)) {
        None => Some(Cow::Borrowed(header)),
        Some(body) => {
            let bytes = STANDARD.decode(body).ok()?;
            String::from_utf8(bytes).ok().map(Cow::Owned)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_text_stays_and_the_rest_is_wrapped() {
        assert_eq!(encode("crm__find"), "crm__find");
        assert_eq!(encode("ä"), "=?base64?w6Q=?=");
        assert_eq!(decode("=?BASE64?w6Q=?=").unwrap(), "=?BASE64?w6Q=?=");
        assert_eq!(decode("=?base64?!?="), None);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(value in any::<String>()) {
            let text = encode(&value);
            prop_assert!(hyper::header::HeaderValue::from_str(&text).is_ok());
            let back = decode(&text);
            prop_assert_eq!(back.as_deref(), Some(value.as_str()));
        }
    }
}
