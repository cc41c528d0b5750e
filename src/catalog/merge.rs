//! All slices joined: names given, collisions found.
//!
//! The order is that of the configuration and, within an upstream, its own; so equal inputs give
//! equal lists, which is what clients' prompt caches live on.
//!
//! *Decided:* what a list is turned into depends on the list, the upstream's name and prefix, its
//! filter, where its calls carry keys, and whether it gets headers, on nothing else. So it is made once, shared by all catalogs in which these are the
//! same, and a change of one upstream costs that upstream's items and one pass over the names.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;

use super::freshness::Freshness;
use super::naming::{exposed_name, exposed_uri, native_uri, upstream_of_name};
use super::shelf::Shelf;
use super::slice::{BAD_MAX, BadItem, Item, List, Mark, Slice, mark};
use crate::config::{KeyPlace, KeyRules, Patterns, TransportConfig, UpstreamConfig, UrlTransport};
use crate::protocol::address::{UriHolder, uri_edits};
use crate::protocol::idempotency;
use crate::protocol::method::ListKind;
use crate::protocol::param::{self, Param};
use crate::protocol::revision::Era;
use crate::protocol::splice::Splice;

/// One upstream of a catalog in the making.
pub struct Part {
    /// Its configuration.
    pub config: Arc<UpstreamConfig>,
    /// What it offers, as far as that is known.
    pub slice: Option<Arc<Slice>>,
    /// How sure we are of that.
    pub freshness: Freshness,
}

/// An immutable index of everything that the upstreams offer.
pub struct Catalog {
    number: u64,
    parts: Vec<Merged>,
    by_upstream: HashMap<Arc<str>, usize>,
    // Public name or URI to (part, entry), one table for each kind of list.
    index: [HashMap<Arc<str>, Place>; ListKind::COUNT],
    drops: Vec<Drop>,
    // Shared with the catalogs before and after.
    shelf: Arc<Shelf>,
}

/// A part with its lists as they are shown.
pub(super) struct Merged {
    pub part: Part,
    lists: Option<[Arc<ExposedList>; ListKind::COUNT]>,
}

/// One list of one upstream as it is shown.
pub(super) struct ExposedList {
    // What it was made from: if these are the same, so is this.
    from: Arc<List>,
    prefixed: bool,
    filter: Patterns,
    upstream: Arc<str>,
    mirrors: bool,
    keys: KeyRules,
    pub entries: Vec<Entry>,
    // The first [`BAD_MAX`] tools whose annotations break the rules.
    misannotated: Vec<(Arc<str>, param::Invalid)>,
}

/// One thing in the catalog.
pub(super) struct Entry {
    /// Its public name or URI.
    pub exposed: Arc<str>,
    /// The item as clients see it.
    pub raw: Bytes,
    /// Of `raw`, to tell changes.
    pub digest: Mark,
    /// A tool's parameters that are mirrored in headers.
    pub params: Arc<[Param]>,
    /// The tool declares the argument that is to hold the key of a call.
    pub declares_key: bool,
    // Which item of the list it was made from.
    item: usize,
}

/// Which part, which entry of its list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub part: u32,
    pub entry: u32,
}

/// Something that an upstream offers and that nobody can see, although no filter says so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Drop {
    /// Whose it is.
    pub upstream: Arc<str>,
    /// Of which list.
    pub kind: ListKind,
    /// Its native name or URI, if it could be read.
    pub native: Option<Arc<str>>,
    /// Its public name or URI, if it got one.
    pub exposed: Option<Arc<str>>,
    /// Why.
    pub why: DropReason,
}

/// Why something was dropped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DropReason {
    /// Another thing has that public name, and stands before it.
    #[error("its public name is taken by \"{native}\" of {upstream}")]
    Taken {
        /// Whose thing has it.
        upstream: Arc<str>,
        /// Which thing has it.
        native: Arc<str>,
    },
    /// It stands without a prefix and would look like another upstream's.
    #[error("its public name belongs to the upstream {0}")]
    Foreign(Arc<str>),
    /// The item itself is wrong.
    #[error("it {0}")]
    Bad(BadItem),
    /// A tool that asks for headers against the rules.
    #[error("it {0}")]
    Header(param::Invalid),
}

impl Catalog {
    /// Join the parts, which stand in the order of the configuration. What did not change since
    /// `prev` is taken over from there.
    pub fn build(number: u64, parts: Vec<Part>, prev: Option<&Catalog>) -> Catalog {
        let mut catalog = Catalog {
            number,
            by_upstream: HashMap::with_capacity(parts.len()),
            parts: Vec::with_capacity(parts.len()),
            index: Default::default(),
            drops: Vec::new(),
            shelf: prev.map(|p| p.shelf.clone()).unwrap_or_default(),
        };
        for part in parts {
            let before =
                prev.and_then(|p| p.part(&part.config.name)).and_then(|m| m.lists.as_ref());
            let lists = part.slice.as_ref().map(|slice| {
                let mirrors = mirrors(slice, &part.config);
                ListKind::ALL.map(|kind| {
                    let list = slice.list(kind);
                    before
                        .map(|lists| &lists[kind as usize])
                        .filter(|old| old.is_made_from(kind, list, &part.config, mirrors))
                        .cloned()
                        .unwrap_or_else(|| {
                            Arc::new(ExposedList::new(kind, list, &part.config, mirrors))
                        })
                })
            });
            catalog.by_upstream.entry(part.config.name.clone()).or_insert(catalog.parts.len());
            catalog.parts.push(Merged { part, lists });
        }
        for kind in ListKind::ALL {
            catalog.index_kind(kind);
        }
        catalog
    }

    fn index_kind(&mut self, kind: ListKind) {
        let total = self.parts.iter().filter_map(|m| m.list(kind)).map(|l| l.entries.len()).sum();
        let mut index: HashMap<Arc<str>, Place> = HashMap::with_capacity(total);
        for (part, merged) in self.parts.iter().enumerate() {
            let Some(list) = merged.list(kind) else { continue };
            let upstream = &merged.part.config.name;
            for bad in &list.from.bad {
                self.drops.push(Drop {
                    upstream: upstream.clone(),
                    kind,
                    native: bad.key.clone(),
                    exposed: None,
                    why: DropReason::Bad(bad.why),
                });
            }
            for (native, why) in &list.misannotated {
                self.drops.push(Drop {
                    upstream: upstream.clone(),
                    kind,
                    native: Some(native.clone()),
                    exposed: None,
                    why: DropReason::Header(*why),
                });
            }
            for (n, entry) in list.entries.iter().enumerate() {
                if let Some(owner) = self.owner_of(kind, part, &entry.exposed) {
                    self.drops.push(Drop {
                        upstream: upstream.clone(),
                        kind,
                        native: Some(list.item(n).key.clone()),
                        exposed: Some(entry.exposed.clone()),
                        why: DropReason::Foreign(owner),
                    });
                    continue;
                }
                let taken = index.get(&entry.exposed).copied();
                let Some(first) = taken else {
                    let place = Place { part: part as u32, entry: n as u32 };
                    index.insert(entry.exposed.clone(), place);
                    continue;
                };
                let by = &self.parts[first.part as usize];
                let native = by.list(kind).map(|l| l.item(first.entry as usize).key.clone());
                self.drops.push(Drop {
                    upstream: upstream.clone(),
                    kind,
                    native: Some(list.item(n).key.clone()),
                    exposed: Some(entry.exposed.clone()),
                    why: DropReason::Taken {
                        upstream: by.part.config.name.clone(),
                        native: native.unwrap_or_default(),
                    },
                });
            }
        }
        self.index[kind as usize] = index;
    }

    // Whose a name without a prefix would be by its form: of an upstream that is configured,
    // whether it has that name or not. Calls that are meant for one must not reach another.
    fn owner_of(&self, kind: ListKind, part: usize, exposed: &str) -> Option<Arc<str>> {
        if self.parts[part].part.config.prefixed {
            return None;
        }
        let owner = match kind {
            ListKind::Tools | ListKind::Prompts => upstream_of_name(exposed)?,
            ListKind::Resources | ListKind::Templates | ListKind::Skills => native_uri(exposed)?.0,
        };
        let config = &self.part(owner)?.part.config;
        config.prefixed.then(|| config.name.clone())
    }

    /// Which catalog it is; later ones have greater numbers.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What is offered but cannot be shown. Of each list the first [`super::slice::BAD_MAX`] bad
    /// items stand here; all collisions do.
    pub fn drops(&self) -> &[Drop] {
        &self.drops
    }

    /// The upstreams, in order, with how sure we are of each.
    pub fn upstreams(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().map(|m| &m.part)
    }

    pub(super) fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    pub(super) fn parts(&self) -> &[Merged] {
        &self.parts
    }

    pub(super) fn part(&self, upstream: &str) -> Option<&Merged> {
        self.part_number(upstream).map(|n| &self.parts[n])
    }

    pub(super) fn part_number(&self, upstream: &str) -> Option<usize> {
        self.by_upstream.get(upstream).copied()
    }

    pub(super) fn find(&self, kind: ListKind, exposed: &str) -> Option<Place> {
        self.index[kind as usize].get(exposed).copied()
    }

    /// The entries of a list that have their name, in order.
    pub(super) fn entries(&self, kind: ListKind) -> impl Iterator<Item = (Place, &Entry)> {
        let lists =
            self.parts.iter().enumerate().filter_map(move |(n, m)| Some((n, m.list(kind)?)));
        let all = lists.flat_map(|(part, list)| {
            let place = move |entry| Place { part: part as u32, entry: entry as u32 };
            list.entries.iter().enumerate().map(move |(n, entry)| (place(n), entry))
        });
        // Without a collision everything has its name, and nothing is looked up.
        let whole = !self.drops.iter().any(|d| d.kind == kind && d.exposed.is_some());
        all.filter(move |(at, entry)| whole || self.find(kind, &entry.exposed) == Some(*at))
    }
}

impl Merged {
    pub(super) fn list(&self, kind: ListKind) -> Option<&Arc<ExposedList>> {
        self.lists.as_ref().map(|lists| &lists[kind as usize])
    }
}

// Whether parameters are mirrored on the way to this upstream: HTTP of the newest revision. For all
// others the annotation is taken out of what is published, or we, who serve it over HTTP, would
// have to insist on headers that help nobody.
fn mirrors(slice: &Slice, config: &UpstreamConfig) -> bool {
    matches!(&config.transport, TransportConfig::Http(http) if http.transport != UrlTransport::WebSocket)
        && slice.about.revision.era() == Era::Modern
}

fn keys_of(kind: ListKind, config: &UpstreamConfig) -> KeyRules {
    if kind == ListKind::Tools { config.key_rules() } else { KeyRules::default() }
}

fn declares_key(keys: &KeyRules, item: &Item) -> bool {
    match (keys.place(&item.key), &item.schema) {
        (Some(KeyPlace::Argument(argument)), Some(schema)) => {
            idempotency::declares(&item.raw[schema.clone()], argument)
        }
        _ => false,
    }
}

impl ExposedList {
    fn new(
        kind: ListKind,
        list: &Arc<List>,
        config: &UpstreamConfig,
        mirrors: bool,
    ) -> ExposedList {
        let mut out = ExposedList {
            from: list.clone(),
            prefixed: config.prefixed,
            filter: config.filter.clone(),
            upstream: config.name.clone(),
            mirrors,
            keys: keys_of(kind, config),
            entries: Vec::with_capacity(list.items.len()),
            misannotated: Vec::new(),
        };
        let nothing: Arc<[Param]> = Arc::default();
        for (n, item) in list.items.iter().enumerate() {
            if !config.filter.admits(&item.key) {
                continue;
            }
            let read = match &item.schema {
                Some(at) if mirrors => param::read(&item.raw[at.clone()]),
                _ => Ok(Vec::new()),
            };
            match read {
                Ok(params) => {
                    let params = if params.is_empty() { nothing.clone() } else { params.into() };
                    let mut entry = Entry::new(kind, n, item, config, mirrors, params);
                    entry.declares_key = declares_key(&out.keys, item);
                    out.entries.push(entry);
                }
                Err(why) if out.misannotated.len() < BAD_MAX => {
                    out.misannotated.push((item.key.clone(), why));
                }
                Err(_) => {}
            }
        }
        out
    }

    fn is_made_from(
        &self,
        kind: ListKind,
        list: &Arc<List>,
        config: &UpstreamConfig,
        mirrors: bool,
    ) -> bool {
        Arc::ptr_eq(&self.from, list)
            && self.mirrors == mirrors
            && self.prefixed == config.prefixed
            && self.upstream == config.name
            && self.filter == config.filter
            && self.keys == keys_of(kind, config)
    }

    /// The native item behind an entry.
    pub(super) fn item(&self, entry: usize) -> &Item {
        &self.from.items[self.entries[entry].item]
    }
}

impl Entry {
    fn new(
        kind: ListKind,
        number: usize,
        item: &Item,
        config: &UpstreamConfig,
        mirrors: bool,
        params: Arc<[Param]>,
    ) -> Entry {
        let (upstream, prefixed) = (&*config.name, config.prefixed);
        let exposed: Arc<str> = match kind {
            ListKind::Tools | ListKind::Prompts => exposed_name(upstream, prefixed, &item.key),
            ListKind::Resources | ListKind::Templates | ListKind::Skills => {
                exposed_uri(upstream, prefixed, &item.key)
            }
        }
        .into();
        let mut splice = Splice::new();
        if exposed != item.key {
            let text = serde_json::to_vec(&*exposed).expect("a string serialises");
            splice.replace(item.key_span.clone(), text);
        }
        let renamed = splice.len();
        let holder = match kind {
            ListKind::Tools => Some(UriHolder::Tool),
            ListKind::Skills => Some(UriHolder::SkillFiles),
            ListKind::Prompts | ListKind::Resources | ListKind::Templates => None,
        };
        if let Some(holder) = holder.filter(|_| prefixed) {
            let map = |uri: &str| Some(exposed_uri(upstream, true, uri));
            for (range, with) in uri_edits(holder, &item.raw, &map) {
                splice.replace(range, with);
            }
        }
        if let Some(schema) = item.schema.clone().filter(|_| !mirrors) {
            for cut in param::strip(&item.raw[schema.clone()]) {
                splice.replace(cut.start + schema.start..cut.end + schema.start, b"".as_slice());
            }
        }
        let only_renamed = splice.len() == renamed;
        let raw = splice.apply(&item.raw);
        // What only has another name need not be read again.
        let digest =
            if only_renamed { mark(&[&item.digest, exposed.as_bytes()]) } else { mark(&[&raw]) };
        Entry { exposed, raw, digest, params, declares_key: false, item: number }
    }
}

#[cfg(test)]
mod tests;
