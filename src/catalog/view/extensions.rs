//! Extensions: what a view declares of them, and who of its upstreams serves their methods.

use serde_json::{Map, Value, json};

use super::View;
use crate::protocol::capability::{APPS, SKILLS};
use crate::protocol::method::Method;
use crate::protocol::revision::{Era, Revision};
use crate::protocol::task;

impl View {
    /// The `extensions` of the capabilities, by what the seen upstreams declared; `None` without
    /// any. Only extensions whose addresses we know how to carry.
    ///
    /// Apps are declared in the handshake too (MCP Apps 2026-01-26, "capability negotiation"),
    /// with the settings of the first upstream that has some. Skills are an extension of
    /// 2026-07-28.
    pub(super) fn extensions(&self, revision: Revision) -> Option<Value> {
        let mut said = Map::new();
        if let Some(settings) = self.settings(APPS).next() {
            said.insert(APPS.into(), settings);
        }
        let modern = revision.era() == Era::Modern;
        if modern && self.has_tasks(revision) {
            said.insert(task::EXTENSION.into(), json!({}));
        }
        if modern && self.settings(SKILLS).next().is_some() {
            let reads = self.settings(SKILLS).any(|s| s["directoryRead"] == true);
            let settings = if reads { json!({"directoryRead": true}) } else { json!({}) };
            said.insert(SKILLS.into(), settings);
        }
        (!said.is_empty()).then_some(Value::Object(said))
    }

    /// Whether the method is one that `upstream` serves, or without a name any seen upstream.
    /// Methods of the protocol itself are served by all.
    pub fn serves(&self, method: &Method, upstream: Option<&str>) -> bool {
        let needs_directories = match method.name {
            "skills/list" | "skills/get" => false,
            "resources/directory/read" => true,
            _ => return true,
        };
        self.parts()
            .filter(|m| upstream.is_none_or(|name| *m.part.config.name == *name))
            .filter_map(|m| m.part.slice.as_ref()?.about.extension(SKILLS))
            .any(|raw| {
                let settings: Value = serde_json::from_slice(&raw).unwrap_or_default();
                !needs_directories || settings["directoryRead"] == true
            })
    }

    fn settings(&self, extension: &str) -> impl Iterator<Item = Value> {
        let slices = self.parts().filter_map(|m| m.part.slice.as_ref());
        slices
            .filter_map(move |s| s.about.extension(extension))
            .filter_map(|raw| serde_json::from_slice(&raw).ok())
    }
}
