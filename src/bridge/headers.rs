//! What stands beside a modern message over HTTP (2026-07-28 basic/transports/streamable-http,
//! "standard headers", "custom headers from tool parameters").

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::protocol::header;
use crate::protocol::message::{Frame, message};
use crate::protocol::meta::{Members, ObjectWriter, RequestMeta, key};
use crate::protocol::param::{self, ANNOTATION, Param};

/// One header of a message.
pub type Header = (HeaderName, HeaderValue);

/// Most tools with mirrored parameters that are remembered; no list comes near it. Further ones
/// are looked up when a call of them is refused.
const TOOLS_MAX: usize = 10_000;

/// Mirrored parameters of the tools that have passed by in lists.
#[derive(Default)]
pub struct Tools(Mutex<HashMap<Box<str>, Arc<[Param]>>>);

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow, default)]
    tools: Vec<&'a RawValue>,
    #[serde(borrow, default, rename = "nextCursor")]
    next: Option<&'a RawValue>,
}

impl Tools {
    /// Remember what one page of `tools/list` says. Returns the raw cursor of the next.
    pub fn learn(&self, result: &[u8]) -> Option<Bytes> {
        let page: Page<'_> = serde_json::from_slice(result).ok()?;
        let mut known = self.0.lock().expect("no panic while held");
        // Most lists have none, and nothing is to be forgotten.
        if !known.is_empty() || memchr::memmem::find(result, ANNOTATION.as_bytes()).is_some() {
            for tool in page.tools {
                let Ok(tool) = Members::read(tool.get().as_bytes()) else { continue };
                let Some(name) = tool.get_str("name") else { continue };
                let schema = tool.get("inputSchema").map_or("{}", RawValue::get);
                let params = param::read(schema.as_bytes()).unwrap_or_default();
                if params.is_empty() {
                    known.remove(&*name);
                } else if known.len() < TOOLS_MAX || known.contains_key(&*name) {
                    known.insert(name.into(), params.into());
                }
            }
        }
        page.next.map(|raw| Bytes::copy_from_slice(raw.get().as_bytes())).filter(|c| c != "null")
    }

    /// The headers of a modern message.
    pub fn headers(&self, frame: &Frame, meta: &RequestMeta) -> Vec<Header> {
        let mut out = Vec::with_capacity(4);
        let mut add = |name, value: &str| {
            // What no header may hold the gateway refuses as missing.
            if let Ok(value) = HeaderValue::from_str(value) {
                out.push((name, value));
            }
        };
        if let Some(version) = &meta.protocol_version {
            add(header::PROTOCOL_VERSION, version);
        }
        add(header::METHOD, frame.method());
        let raw = frame.params().unwrap_or_default();
        let params = Members::read(&raw).unwrap_or_default();
        let name = match frame.method() {
            "tools/call" | "prompts/get" => params.get_str("name"),
            "resources/read" => params.get_str("uri"),
            "tasks/get" | "tasks/update" | "tasks/cancel" => params.get_str("taskId"),
            _ => None,
        };
        if let Some(name) = name {
            add(header::NAME, &header::encode(&name));
            if frame.method() == "tools/call" {
                let known = self.0.lock().expect("no panic while held").get(&*name).cloned();
                // Arguments that cannot be mirrored are for the gateway to refuse.
                let mirrored = known.and_then(|tool| param::headers(&tool, &raw).ok());
                out.extend(mirrored.unwrap_or_default());
            }
        }
        out
    }
}

/// A `tools/list` of our own, in the words of a request of the host.
pub fn list_like(frame: &Frame, id: &[u8], cursor: Option<&Bytes>) -> Frame {
    let raw = frame.params().unwrap_or_default();
    let params = Members::read(&raw).unwrap_or_default();
    let mut meta = ObjectWriter::new();
    if let Some(theirs) = params.get("_meta") {
        let members = Members::read(theirs.get().as_bytes()).unwrap_or_default();
        // The token belongs to the host's request.
        for (k, v) in members.0.iter().filter(|(k, _)| k != key::PROGRESS_TOKEN) {
            meta.raw(k, v.get().as_bytes());
        }
    }
    let mut own = ObjectWriter::new();
    if let Some(cursor) = cursor {
        own.raw("cursor", cursor);
    }
    own.raw("_meta", &meta.finish());
    let text = message(Some(id), "tools/list", Some(&own.finish()));
    Frame::scan(text).expect("a message of our own")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::downstream::canonical::meta_of;

    fn shown(tools: &Tools, text: &str) -> String {
        let frame = Frame::scan(Bytes::copy_from_slice(text.as_bytes())).unwrap();
        let meta = meta_of(&frame).unwrap().unwrap_or_default();
        let headers = tools.headers(&frame, &meta);
        let lines: Vec<_> =
            headers.iter().map(|(k, v)| format!("{k}: {}", v.to_str().unwrap())).collect();
        lines.join("\n")
    }

    const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"grün",
        "arguments":{"region":"eu","n":7.0},
        "_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","progressToken":3}}}"#;

    #[test]
    fn a_call_is_mirrored_as_its_tool_was_last_listed() {
        let tools = Tools::default();
        insta::assert_snapshot!(shown(&tools, CALL), @r"
        mcp-protocol-version: 2026-07-28
        mcp-method: tools/call
        mcp-name: =?base64?Z3LDvG4=?=
        ");
        let page = |token: &str| {
            format!(
                r#"{{"tools":[{{"name":"grün","inputSchema":{{"type":"object","properties":
                {{"region":{{"type":"string"{token}}}}}}}}}],"nextCursor":"c2"}}"#
            )
        };
        let next = tools.learn(page(r#","x-mcp-header":"Region""#).as_bytes());
        assert_eq!(next.unwrap(), "\"c2\"");
        assert!(shown(&tools, CALL).ends_with("mcp-param-region: eu"));
        tools.learn(page("").as_bytes());
        assert!(!shown(&tools, CALL).contains("mcp-param"), "it is forgotten again");
    }

    #[test]
    fn our_list_speaks_as_the_host_does_and_takes_no_token() {
        let frame = Frame::scan(CALL.into()).unwrap();
        let list = list_like(&frame, b"9", Some(&"\"c2\"".into()));
        insta::assert_snapshot!(String::from_utf8_lossy(list.bytes()), @r#"{"jsonrpc":"2.0","id":9,"method":"tools/list","params":{"cursor":"c2","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#);
    }
}
