//! What a view says of itself: capabilities, instructions, sizes.

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::View;
use crate::catalog::naming::{SEPARATOR, exposed_name, exposed_uri};
use crate::protocol::method::ListKind;
use crate::protocol::revision::{Era, Revision};

/// How much one upstream puts into one list of a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    /// Whose items.
    pub upstream: Arc<str>,
    /// Which list.
    pub kind: ListKind,
    /// How many.
    pub items: usize,
    /// How many bytes as clients see them.
    pub bytes: usize,
}

impl View {
    /// The raw `capabilities` object for a client of this revision.
    ///
    /// The union of what the seen upstreams were last known to have, down or not: a session of an
    /// old client reads it once and would never look again. For that reason an upstream that was
    /// never seen counts as one that has tools, prompts and resources.
    ///
    /// Of `experimental` and `extensions` only what is understood here: an extension's methods
    /// carry ids that have to be rewritten.
    pub fn capabilities(&self, revision: Revision) -> Bytes {
        let any = |name: &str, unknown: bool| {
            self.parts().any(|m| m.part.slice.as_ref().map_or(unknown, |s| s.about.can(name)))
        };
        let mut said = Map::new();
        for list in ["tools", "prompts", "resources"] {
            if any(list, true) {
                let mut can = json!({"listChanged": true});
                if list == "resources" && any("resources.subscribe", false) {
                    can["subscribe"] = json!(true);
                }
                said.insert(list.into(), can);
            }
        }
        for whole in ["completions", "logging"] {
            if any(whole, false) {
                said.insert(whole.into(), json!({}));
            }
        }
        if revision.era() == Era::Legacy && self.has_tasks(revision) {
            // `list` is missing: what was begun is known to those who began it, not to us.
            let requests = json!({"tools": {"call": {}}});
            said.insert("tasks".into(), json!({"cancel": {}, "requests": requests}));
        }
        if let Some(extensions) = self.extensions(revision) {
            said.insert("extensions".into(), extensions);
        }
        Bytes::from(Value::Object(said).to_string())
    }

    /// Whether a client of this revision can have tasks: one of 2025-11-25 those of its own
    /// revision only, since it is the client that asks for them, by what the tool says of itself.
    pub fn has_tasks(&self, revision: Revision) -> bool {
        let mut known = self.parts().filter_map(|m| m.part.slice.as_ref());
        match revision {
            Revision::R2025_11_25 => known.any(|s| s.about.has_old_tasks()),
            _ => revision.era() == Era::Modern && known.any(|s| s.about.has_tasks()),
        }
    }

    /// Whether this upstream tells of changes of single resources.
    pub fn can_subscribe(&self, upstream: &str) -> bool {
        self.parts()
            .filter(|m| *m.part.config.name == *upstream)
            .any(|m| m.part.slice.as_ref().is_some_and(|s| s.about.can("resources.subscribe")))
    }

    /// The instructions for the agent: how to read the names and, with a `cap`, each seen
    /// upstream's own text, at most `cap` bytes of it, unless its configuration says no.
    pub fn instructions(&self, cap: Option<usize>) -> String {
        let mut out = String::new();
        let prefixed: Vec<&str> = self
            .parts()
            .filter(|m| m.part.config.prefixed && m.part.config.dormant.is_none())
            .map(|m| &*m.part.config.name)
            .collect();
        if let Some(first) = prefixed.first() {
            let _ = writeln!(
                out,
                "Several MCP servers answer behind this one: {}. \
                 What belongs to a server carries its name: the tool or prompt `{}` is `search` \
                 of `{first}`, and URIs of its resources look like `{}`. \
                 Use names and URIs exactly as listed.",
                prefixed.join(", "),
                exposed_name(first, true, "search"),
                exposed_uri(first, true, "file:///a"),
            );
        }
        let Some(cap) = cap else { return out };
        for merged in self.parts().filter(|m| m.part.config.instructions) {
            let about = merged.part.slice.as_ref().map(|s| &s.about);
            let Some(text) = about.and_then(|a| a.instructions.as_deref()) else { continue };
            let text = text.trim();
            if text.is_empty() {
                continue;
            }
            let name = &merged.part.config.name;
            let text = demote_headings(text);
            let kept = cut(&text, cap);
            if !out.is_empty() {
                out.push('\n');
            }
            let title = if merged.part.config.prefixed {
                format!("## {name} ({name}{SEPARATOR}…)\n\n")
            } else {
                format!("## {name}\n\n")
            };
            out.push_str(&title);
            out.push_str(kept);
            out.push('\n');
            if kept.len() < text.len() {
                let _ = writeln!(out, "[cut after {} of {} bytes]", kept.len(), text.len());
            }
        }
        out
    }

    /// How much each seen upstream puts into each list; lists without items are left out.
    pub fn sizes(&self) -> Vec<Size> {
        let mut out: Vec<Size> = Vec::new();
        for kind in ListKind::ALL {
            for (place, entry) in self.entries(kind) {
                let name = &self.catalog.parts()[place.part as usize].part.config.name;
                match out.last_mut() {
                    Some(last) if last.kind == kind && last.upstream == *name => {
                        last.items += 1;
                        last.bytes += entry.raw.len();
                    }
                    _ => out.push(Size {
                        upstream: name.clone(),
                        kind,
                        items: 1,
                        bytes: entry.raw.len(),
                    }),
                }
            }
        }
        out
    }
}

// An upstream's headings go below the one that we give it, so that its text cannot pass as
// another upstream's.
fn demote_headings(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive(['\n', '\r']) {
        let indent = line.len() - line.trim_start().len();
        let (before, rest) = line.split_at(indent);
        out.push_str(before);
        if rest.starts_with('#') {
            out.push_str("##");
        }
        out.push_str(rest);
    }
    out
}

// The longest beginning of at most `max` bytes that ends with a character.
fn cut(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        for (max, want) in [(0, ""), (1, "a"), (2, "a"), (3, "aé"), (9, "aéb")] {
            assert_eq!(cut("aéb", max), want);
        }
    }

    #[test]
    fn headings_are_demoted() {
        assert_eq!(demote_headings("# A\nb # c\r\n  ## D"), "### A\nb # c\r\n  #### D");
    }
}
