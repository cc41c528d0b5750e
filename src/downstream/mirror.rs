//! The headers in which a modern caller repeats some of its arguments over HTTP
//! (2026-07-28 basic/transports/streamable-http, "custom headers from tool parameters").
//!
//! What stands between the caller and us may have decided by a header; so header and body must
//! say the same before anything is done.

use hyper::header::HeaderName;

use crate::call::{Consumer, Strays};
use crate::protocol::header;
use crate::protocol::message::Frame;
use crate::protocol::param::{self, PREFIX, Param, Said};

use super::Edge;
use super::checks::{mismatch, single};
use super::headers::Headers;
use super::refused::Refused;

/// Most headers of one call that are handed on although its tool does not define them. A schema
/// that is newer than ours may define a few.
const STRAYS_MAX: usize = 16;
/// Most bytes of their names and values.
const STRAYS_BYTES_MAX: usize = 8 << 10;

/// Check the headers of a `tools/call` against its body, by the tool as this consumer sees it.
/// Returns those that the tool does not define. `name` is the tool that the body names.
///
/// A call that names no tool is left to what refuses it.
pub fn params(
    edge: &Edge,
    consumer: &Consumer,
    headers: &Headers,
    frame: &Frame,
    name: Option<&str>,
) -> Result<Strays, Refused> {
    if frame.method() != "tools/call" {
        return Ok(Strays::default());
    }
    let call = frame.params().unwrap_or_default();
    let view = edge.gateway.current.load().view(consumer);
    let Some(params) = name.and_then(|name| view.params(name)) else {
        return Ok(Strays::default());
    };
    check(params, headers, &call)?;
    Ok(strays(params, headers))
}

fn check(params: &[Param], headers: &Headers, call: &[u8]) -> Result<(), Refused> {
    if params.is_empty() {
        return Ok(());
    }
    // Arguments that cannot be mirrored are refused as what they are, later.
    let Ok(values) = param::values(params, call) else { return Ok(()) };
    for (param, said) in params.iter().zip(values) {
        if let Err(what) = agree(param, said.as_ref(), headers) {
            return Err(mismatch(format!("the header Mcp-Param-{} {what}", param.token)));
        }
    }
    Ok(())
}

fn agree(param: &Param, said: Option<&Said>, headers: &Headers) -> Result<(), &'static str> {
    let value = single(headers, &param.header).map_err(|_| "stands twice or is not text")?;
    match (value, said) {
        (None, None) => Ok(()),
        (None, Some(_)) => Err("is missing"),
        (Some(_), None) => Err("has nothing in params.arguments that it mirrors"),
        (Some(value), Some(said)) => match header::decode(value) {
            Some(value) if said.agrees(&value) => Ok(()),
            Some(_) => Err("differs from params.arguments"),
            None => Err("has a bad base64 value"),
        },
    }
}

// What is not handed on is dropped without a word: nobody has to know such headers.
fn strays(params: &[Param], headers: &Headers) -> Strays {
    let mut left = STRAYS_BYTES_MAX;
    let mut out = Vec::new();
    for name in headers.names(PREFIX) {
        let Ok(name) = HeaderName::try_from(name) else { continue };
        if params.iter().any(|param| param.header == name) {
            continue;
        }
        // One that stands twice could be read either way.
        let Ok(Some(value)) = single(headers, &name) else { continue };
        let Some(rest) = left.checked_sub(name.as_str().len() + value.len()) else { continue };
        left = rest;
        out.push((name.as_str().into(), value.into()));
        if out.len() == STRAYS_MAX {
            break;
        }
    }
    out.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tool() -> Vec<Param> {
        param::read(
            br#"{"properties":{"region":{"type":"string","x-mcp-header":"Region"},
                "n":{"type":"integer","x-mcp-header":"N"}}}"#,
        )
        .unwrap()
    }

    fn map(pairs: &[(&str, &[u8])]) -> Headers {
        pairs.iter().copied().collect()
    }

    fn told(call: &str, pairs: &[(&str, &[u8])]) -> String {
        match check(&tool(), &map(pairs), call.as_bytes()) {
            Ok(()) => "fine".into(),
            Err(refused) => {
                let answer: serde_json::Value =
                    serde_json::from_slice(&refused.message(b"1")).unwrap();
                format!("{} {}", refused.code(), answer["error"]["message"].as_str().unwrap())
            }
        }
    }

    #[test]
    fn headers_say_what_the_body_says() {
        let (region, n) = ("Mcp-Param-Region", "mcp-param-n");
        let call = r#"{"name":"t","arguments":{"region":"gr\u00fcn"}}"#;
        let encoded: &[u8] = b"=?base64?Z3LDvG4=?=";
        let lines = [
            told(call, &[(region, encoded)]),
            told(call, &[(region, b" =?base64?Z3LDvG4=?=\t")]),
            told(call, &[]),
            told(call, &[(region, b"blau")]),
            told(call, &[(region, b"=?base64?Z3LDvG4?=")]),
            told(call, &[(region, b"=?BASE64?Z3LDvG4=?=")]),
            told(call, &[(region, "grün".as_bytes())]),
            told(call, &[(region, encoded), (region, encoded)]),
            told(call, &[(region, encoded), (n, b"1")]),
            told(r#"{"arguments":{"n":42.0,"region":null}}"#, &[(n, b"42")]),
            told(r#"{"arguments":{"n":42.0,"region":null}}"#, &[(n, b"42.5")]),
            told(r#"{"arguments":{"n":9007199254740992}}"#, &[]),
        ];
        insta::assert_snapshot!(lines.join("\n"), @r"
        fine
        fine
        -32020 the header Mcp-Param-Region is missing
        -32020 the header Mcp-Param-Region differs from params.arguments
        -32020 the header Mcp-Param-Region has a bad base64 value
        -32020 the header Mcp-Param-Region differs from params.arguments
        -32020 the header Mcp-Param-Region stands twice or is not text
        -32020 the header Mcp-Param-Region stands twice or is not text
        -32020 the header Mcp-Param-N has nothing in params.arguments that it mirrors
        fine
        -32020 the header Mcp-Param-N differs from params.arguments
        fine
        ");
    }

    #[test]
    fn what_no_tool_defines_is_kept_within_bounds() {
        let names = |headers: &Headers| {
            let kept = strays(&tool(), headers);
            kept.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
        };
        let some = map(&[
            ("mcp-param-n", b"1"),
            ("Mcp-Param-Tenant", b" a b"),
            ("mcp-param-twice", b"1"),
            ("mcp-param-twice", b"1"),
            ("mcp-param-bytes", b"\xff"),
            ("mcp-name", b"t"),
        ]);
        assert_eq!(names(&some), "mcp-param-tenant=a b");
        let many: Vec<_> = (0..2 * STRAYS_MAX).map(|n| format!("mcp-param-x{n}")).collect();
        let many = many.iter().map(|name| (&**name, &b"1"[..])).collect();
        assert_eq!(strays(&[], &many).len(), STRAYS_MAX);
        let long = vec![b'x'; STRAYS_BYTES_MAX];
        assert_eq!(
            names(&map(&[("mcp-param-long", &long), ("mcp-param-s", b"1")])),
            "mcp-param-s=1"
        );
    }
}
