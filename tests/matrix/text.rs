//! Messages as text. What is read of one is cut out of it, so that no number is rounded and no
//! order of members lost on the way to a comparison.

use std::collections::HashMap;

use serde_json::value::RawValue;

/// One JSON-RPC message as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message(pub String);

impl Message {
    /// The raw text of what stands at a path; the empty path is the message.
    pub fn raw(&self, path: &[&str]) -> Option<String> {
        raw(&self.0, path)
    }

    /// The string that stands at a path.
    pub fn text(&self, path: &[&str]) -> Option<String> {
        serde_json::from_str(&self.raw(path)?).ok()
    }

    /// The id's own text.
    pub fn id(&self) -> Option<String> {
        self.raw(&["id"])
    }

    /// The method; empty for a response.
    pub fn method(&self) -> String {
        self.text(&["method"]).unwrap_or_default()
    }

    pub fn is_response(&self) -> bool {
        self.raw(&["method"]).is_none()
    }

    pub fn is_request(&self) -> bool {
        !self.is_response() && self.id().is_some()
    }
}

/// The raw text at a path in an object.
pub fn raw(object: &str, path: &[&str]) -> Option<String> {
    let Some((first, rest)) = path.split_first() else { return Some(object.to_owned()) };
    let members: HashMap<String, &RawValue> = serde_json::from_str(object).ok()?;
    raw(members.get(*first)?.get(), rest)
}

/// The raw items of a list.
pub fn items(list: &str) -> Vec<String> {
    let all: Vec<&RawValue> = serde_json::from_str(list).unwrap_or_default();
    all.into_iter().map(|item| item.get().to_owned()).collect()
}

/// The raw members of an object, by name.
pub fn members(object: &str) -> HashMap<String, String> {
    let all: HashMap<String, &RawValue> = serde_json::from_str(object).unwrap_or_default();
    all.into_iter().map(|(name, value)| (name, value.get().to_owned())).collect()
}

/// A text as a JSON string.
pub fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

/// A response.
pub fn response(id: &str, kind: &str, body: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"{kind}":{body}}}"#)
}

/// A notification.
pub fn notification(method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params}}}"#)
}
