//! What agents would see change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::catalog::facts::Listed;
use crate::catalog::keep;
use crate::catalog::merge::Catalog;
use crate::catalog::view::View;
use crate::protocol::method::ListKind;

/// Bytes of a tool's JSON that a model's tokenizer makes about one token of. Of the usual ones it
/// is between 3.5 and 4.5; for comparing it need not be more exact.
const BYTES_PER_TOKEN: usize = 4;

/// Who sees what under one configuration.
pub struct Seen {
    /// By name; `None` sees everything.
    pub views: BTreeMap<Option<Arc<str>>, View>,
    /// Each consumer's view, in the order of the file; nobody: everybody sees everything.
    pub consumers: Vec<(Arc<str>, Option<Arc<str>>)>,
}

impl Seen {
    /// The catalog of all its views.
    pub fn catalog(&self) -> Option<&Catalog> {
        self.views.get(&None).map(|view| &**view.catalog())
    }

    fn view_of(&self, consumer: &str) -> Option<&Option<Arc<str>>> {
        self.consumers.iter().find(|(name, _)| &**name == consumer).map(|(_, view)| view)
    }
}

/// Who it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// Everybody, without a key.
    Everybody,
    /// A consumer.
    Consumer,
    /// A view.
    View,
}

/// What it means for one consumer, one view or, without consumers, everybody.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Audience {
    /// Who it is about.
    pub who: Who,
    /// The name of the consumer or view.
    pub name: String,
    /// A consumer's view before, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view_before: Option<String>,
    /// A consumer's view after, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view_after: Option<String>,
    /// How much it sees now; absent for one that is new.
    pub before: Option<Size>,
    /// How much it would see; absent for one that goes.
    pub after: Option<Size>,
    /// What differs.
    pub changes: Changes,
}

/// How much somebody sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Tools.
    pub tools: usize,
    /// Prompts, resources, templates and skills.
    pub others: usize,
    /// Bytes of all of them as clients get them.
    pub bytes: usize,
    /// About how many tokens the tools are for a model.
    pub tool_tokens: usize,
}

/// What differs between two views.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Tools that are new.
    pub appear: Vec<String>,
    /// Tools that are gone.
    pub vanish: Vec<String>,
    /// Tools that have another public name.
    pub renamed: Vec<Renamed>,
    /// Tools that say something else of themselves.
    pub changed: Vec<ChangedTool>,
    /// The same for prompts, resources, templates and skills, in numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Others>,
    /// Seen upstreams whose tools are not known before they start.
    pub unknown: Vec<String>,
}

/// A tool under another name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renamed {
    /// Its public name now.
    pub from: String,
    /// What that becomes.
    pub to: String,
}

/// A tool that says something else of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedTool {
    /// Its public name.
    pub name: String,
    /// Which of its members differ: `inputSchema`, `description`, …
    pub members: Vec<String>,
}

/// What differs in another list than the tools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Others {
    /// `prompts`, `resources`, `templates`, `skills`.
    pub kind: String,
    /// How many are new.
    pub appear: usize,
    /// How many are gone.
    pub vanish: usize,
    /// How many say something else.
    pub changed: usize,
}

impl Changes {
    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        *self == Changes::default()
    }
}

/// What it means for whom: each consumer, then each view; without consumers, everybody.
pub fn audiences(before: &Seen, after: &Seen, unknown: &BTreeSet<Arc<str>>) -> Vec<Audience> {
    let mut compared = HashMap::new();
    let mut out = Vec::new();
    let mut add = |who, name: &str, b: Option<&Option<Arc<str>>>, a: Option<&Option<Arc<str>>>| {
        let of = |seen: &Seen, key: Option<&Option<Arc<str>>>| {
            key.and_then(|key| seen.views.get(key)).map(size)
        };
        let changes = compared.entry((b.cloned(), a.cloned())).or_insert_with(|| {
            let (b, a) = (b.and_then(|b| before.views.get(b)), a.and_then(|a| after.views.get(a)));
            changes(b, a, unknown)
        });
        let named = |view: Option<&Option<Arc<str>>>| {
            view.filter(|_| who == Who::Consumer).cloned().flatten().map(|v| v.to_string())
        };
        out.push(Audience {
            who,
            name: name.to_owned(),
            view_before: named(b),
            view_after: named(a),
            before: of(before, b),
            after: of(after, a),
            changes: changes.clone(),
        });
    };
    let everybody = |seen: &Seen| seen.consumers.is_empty().then_some(&None);
    if before.consumers.is_empty() || after.consumers.is_empty() {
        add(Who::Everybody, "everybody", everybody(before), everybody(after));
    }
    let gone = before.consumers.iter().filter(|(name, _)| after.view_of(name).is_none());
    for (name, _) in after.consumers.iter().chain(gone) {
        add(Who::Consumer, name, before.view_of(name), after.view_of(name));
    }
    let names: BTreeSet<_> = before.views.keys().chain(after.views.keys()).flatten().collect();
    for name in names {
        let key = Some(name.clone());
        let there = |seen: &Seen| seen.views.contains_key(&key);
        add(
            Who::View,
            name,
            Some(&key).filter(|_| there(before)),
            Some(&key).filter(|_| there(after)),
        );
    }
    out
}

fn size(view: &View) -> Size {
    let mut out = Size::default();
    let mut tool_bytes = 0;
    for part in view.sizes() {
        out.bytes += part.bytes;
        if part.kind == ListKind::Tools {
            out.tools += part.items;
            tool_bytes += part.bytes;
        } else {
            out.others += part.items;
        }
    }
    out.tool_tokens = tool_bytes.div_ceil(BYTES_PER_TOKEN);
    out
}

fn listed(view: Option<&View>, kind: ListKind) -> HashMap<&str, Listed<'_>> {
    view.into_iter().flat_map(|v| v.listed_items(kind)).map(|l| (&**l.public, l)).collect()
}

fn changes(before: Option<&View>, after: Option<&View>, unknown: &BTreeSet<Arc<str>>) -> Changes {
    let mut out = Changes::default();
    for kind in ListKind::ALL {
        let (mut old, new) = (listed(before, kind), listed(after, kind));
        // Of what is not known it is not said that it vanishes either.
        old.retain(|_, item| !unknown.contains(item.upstream));
        let mut appear: Vec<&Listed<'_>> =
            new.values().filter(|n| !old.contains_key(&**n.public)).collect();
        let mut vanish: Vec<&Listed<'_>> =
            old.values().filter(|o| !new.contains_key(&**o.public)).collect();
        appear.sort_by_key(|l| l.public);
        vanish.sort_by_key(|l| l.public);
        let mut changed: Vec<ChangedTool> = new
            .values()
            .filter_map(|n| Some((old.get(&**n.public)?, n)))
            .filter(|(o, n)| o.raw != n.raw)
            .map(|(o, n)| ChangedTool {
                name: n.public.to_string(),
                members: members(o.raw, n.raw),
            })
            .collect();
        changed.sort_by(|a, b| a.name.cmp(&b.name));
        if kind != ListKind::Tools {
            let others = Others {
                kind: kind.as_str().to_owned(),
                appear: appear.len(),
                vanish: vanish.len(),
                changed: changed.len(),
            };
            if others.appear + others.vanish + others.changed > 0 {
                out.others.push(others);
            }
            continue;
        }
        out.renamed = renamed(&mut vanish, &mut appear, before, after);
        let names = |all: Vec<&Listed<'_>>| all.iter().map(|l| l.public.to_string()).collect();
        (out.appear, out.vanish, out.changed) = (names(appear), names(vanish), changed);
    }
    let seen = |name: &&Arc<str>| after.is_some_and(|view| view.sees(name));
    out.unknown = unknown.iter().filter(seen).map(ToString::to_string).collect();
    out
}

// The same native thing of the same upstream, or of one that leads to the same server, under
// another name. Taken out of what vanishes and appears.
fn renamed(
    vanish: &mut Vec<&Listed<'_>>,
    appear: &mut Vec<&Listed<'_>>,
    before: Option<&View>,
    after: Option<&View>,
) -> Vec<Renamed> {
    let servers = |view: Option<&View>| -> HashMap<Arc<str>, String> {
        let all = view.into_iter().flat_map(|v| v.catalog().upstreams());
        all.map(|p| (p.config.name.clone(), keep::identity(&p.config.transport))).collect()
    };
    let (old_servers, new_servers) = (servers(before), servers(after));
    let mut out = Vec::new();
    for by_server in [false, true] {
        vanish.retain(|o| {
            let to = appear.iter().position(|n| {
                let same = if by_server {
                    old_servers.get(o.upstream) == new_servers.get(n.upstream)
                } else {
                    o.upstream == n.upstream
                };
                same && o.native == n.native
            });
            let Some(to) = to else { return true };
            let to = appear.remove(to);
            out.push(Renamed { from: o.public.to_string(), to: to.public.to_string() });
            false
        });
    }
    out.sort_by(|a, b| a.from.cmp(&b.from));
    out
}

// Which members of a tool's object differ. The name does not when it is compared under one name.
fn members(old: &[u8], new: &[u8]) -> Vec<String> {
    let read = |raw: &[u8]| match serde_json::from_slice(raw) {
        Ok(Value::Object(object)) => object,
        _ => serde_json::Map::new(),
    };
    let (old, new) = (read(old), read(new));
    let all: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    all.into_iter().filter(|key| old.get(*key) != new.get(*key)).cloned().collect()
}
