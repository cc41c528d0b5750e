//! What operators want to know of a catalog.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::protocol::method::ListKind;

use super::freshness::{Freshness, rfc3339};
use super::merge::Catalog;
use super::view::View;

impl Catalog {
    /// How many entries an upstream has in a list, and their size in bytes as clients see them.
    pub fn facts(&self, upstream: &str, kind: ListKind) -> (usize, usize) {
        let Some(list) = self.part(upstream).and_then(|m| m.list(kind)) else { return (0, 0) };
        (list.entries.len(), list.entries.iter().map(|e| e.raw.len()).sum())
    }

    /// The public names or URIs of an upstream in a list.
    pub fn exposed_names(&self, upstream: &str, kind: ListKind) -> Vec<Arc<str>> {
        let list = self.part(upstream).and_then(|m| m.list(kind));
        list.map(|l| l.entries.iter().map(|e| e.exposed.clone()).collect()).unwrap_or_default()
    }

    /// How sure we are of an upstream's lists.
    pub fn freshness(&self, upstream: &str) -> Option<&Freshness> {
        self.part(upstream).map(|m| &m.part.freshness)
    }
}

/// One thing in a list, and whose it is.
pub struct Listed<'a> {
    /// Its public name or URI.
    pub public: &'a Arc<str>,
    /// Whose it is.
    pub upstream: &'a Arc<str>,
    /// Its name or URI there.
    pub native: &'a Arc<str>,
    /// The item as clients see it.
    pub raw: &'a [u8],
}

impl View {
    /// What a list shows, in order, with whose it is.
    pub fn listed_items(&self, kind: ListKind) -> impl Iterator<Item = Listed<'_>> {
        self.entries(kind).filter_map(move |(place, entry)| {
            let merged = &self.catalog().parts()[place.part as usize];
            let native = &merged.list(kind)?.item(place.entry as usize).key;
            let upstream = &merged.part.config.name;
            Some(Listed { public: &entry.exposed, upstream, native, raw: &entry.raw })
        })
    }

    /// What a list shows, in order: public name or URI, and the item as clients see it.
    pub fn items(&self, kind: ListKind) -> impl Iterator<Item = (&Arc<str>, &[u8])> {
        self.entries(kind).map(|(_, entry)| (&entry.exposed, &entry.raw[..]))
    }
}

impl Freshness {
    /// As operators read it.
    pub fn to_json(&self) -> Value {
        match self {
            Freshness::Live => json!({"state": "live"}),
            Freshness::Stale { since, why } => {
                json!({"state": "stale", "since": rfc3339(*since), "why": why})
            }
            Freshness::Missing { since, why } => {
                json!({"state": "missing", "since": rfc3339(*since), "why": why})
            }
        }
    }
}
