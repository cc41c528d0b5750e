//! What one consumer may see of a catalog, and therefore call.
//!
//! Lists and routes ask the same question ([`View::sees`] the upstream, the patterns admit the
//! public name), so the two cannot disagree. A name that is unknown and one that is not for this
//! consumer get the same answer: whether something exists is itself not for everyone.
//!
//! A view belongs to one catalog and lasts as long; what it prepares it prepares once.

mod extensions;
mod hidden;
mod page;
mod route;
mod words;

use std::sync::Arc;

pub use hidden::{Hidden, HiddenBy};
use page::Shown;
pub use page::{BadCursor, LIST_TTL_MS};
pub use route::Route;
pub use words::Size;

use super::freshness::Freshness;
use super::merge::{Catalog, Entry, Merged, Place};
use super::naming::{native_uri, upstream_of_name};
use crate::config::{Patterns, ViewRule};
use crate::protocol::method::ListKind;
use crate::protocol::param::Param;
use crate::protocol::task::TaskSupport;

/// A consumer's part of a catalog.
pub struct View {
    catalog: Arc<Catalog>,
    // For each part of the catalog, whether its upstream is seen.
    seen: Box<[bool]>,
    patterns: Patterns,
    shown: [Shown; ListKind::COUNT],
    // The raw `_meta` that tells what is not live; it tells of seen upstreams only.
    degraded: Option<String>,
}

impl View {
    /// The part of `catalog` that `rule` lets through; without a rule, all of it.
    pub fn new(catalog: &Arc<Catalog>, rule: Option<&ViewRule>) -> View {
        let admitted = |name: &Arc<str>| {
            rule.and_then(|r| r.upstreams.as_ref()).is_none_or(|names| names.contains(name))
        };
        let seen: Box<[bool]> =
            catalog.upstreams().map(|part| admitted(&part.config.name)).collect();
        let mut view = View {
            catalog: catalog.clone(),
            seen,
            patterns: rule.map(|r| r.patterns.clone()).unwrap_or_default(),
            shown: Default::default(),
            degraded: None,
        };
        let states = view.parts().map(|m| (&m.part.config.name, &m.part.freshness));
        view.degraded = super::freshness::degraded_meta(states);
        view
    }

    /// The catalog it is a view of.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Whether this upstream is seen.
    pub fn sees(&self, upstream: &str) -> bool {
        self.catalog.part_number(upstream).is_some_and(|n| self.seen[n])
    }

    /// The seen upstreams in the order of the configuration, with how sure we are of each.
    pub fn upstreams(&self) -> impl Iterator<Item = (&Arc<str>, &Freshness)> {
        self.parts().map(|m| (&m.part.config.name, &m.part.freshness))
    }

    /// Whether something seen is stale or missing.
    pub fn is_degraded(&self) -> bool {
        self.degraded.is_some()
    }

    /// The way to what has this public name or URI. The only source of a [`Route`].
    ///
    /// A URI need not stand in a list: it may come from a template or a link. It belongs to the
    /// upstream whose prefix it carries, else to the unprefixed upstream, if there is one.
    pub fn resolve(&self, kind: ListKind, public: &str) -> Option<Route> {
        match kind {
            ListKind::Tools | ListKind::Prompts => self.listed(kind, kind, public),
            // Completion names a template or, with nothing to fill in, a resource.
            ListKind::Templates => self
                .listed(kind, kind, public)
                .or_else(|| self.listed(kind, ListKind::Resources, public))
                .or_else(|| self.unlisted(kind, public)),
            // A skill's main file is a resource, listed as one or not.
            ListKind::Resources | ListKind::Skills => self
                .listed(kind, ListKind::Resources, public)
                .or_else(|| self.listed(kind, ListKind::Skills, public))
                .or_else(|| self.unlisted(kind, public)),
        }
    }

    /// For a tool or prompt that [`View::resolve`] does not know: the seen upstream whose it would
    /// be by its form, if nothing was ever known of that upstream. Then «not there now» is truer
    /// than «unknown».
    pub fn unseen_owner(&self, public: &str) -> Option<&Arc<str>> {
        let part = self.seen_part(upstream_of_name(public)?)?;
        (part.part.slice.is_none() && part.part.config.prefixed && self.patterns.admits(public))
            .then_some(&part.part.config.name)
    }

    /// The parameters of a tool that are mirrored in headers, if [`View::resolve`] knows it.
    pub fn params(&self, tool: &str) -> Option<&[Param]> {
        let place = self.seen_place(ListKind::Tools, tool)?;
        let list = self.catalog.parts()[place.part as usize].list(ListKind::Tools)?;
        Some(&list.entries[place.entry as usize].params)
    }

    fn seen_place(&self, list: ListKind, public: &str) -> Option<Place> {
        let place = self.catalog.find(list, public)?;
        (self.seen[place.part as usize] && self.patterns.admits(public)).then_some(place)
    }

    fn listed(&self, kind: ListKind, list: ListKind, public: &str) -> Option<Route> {
        let place = self.seen_place(list, public)?;
        let merged = &self.catalog.parts()[place.part as usize];
        let exposed = merged.list(list)?;
        let number = place.entry as usize;
        let entry = &exposed.entries[number];
        let (public, params) = (entry.exposed.clone(), (entry.params.clone(), entry.declares_key));
        let route = Route::listed(kind, public, exposed.item(number), params, &merged.part.config);
        if route.task() == TaskSupport::Forbidden {
            return Some(route);
        }
        // The tool's word counts where its server's does (2025-11-25 basic/utilities/tasks).
        let old = merged.part.slice.as_ref().is_some_and(|s| s.about.has_old_tasks());
        Some(if old { route } else { route.without_task() })
    }

    fn unlisted(&self, kind: ListKind, public: &str) -> Option<Route> {
        let by_prefix = native_uri(public).and_then(|(upstream, native)| {
            let merged = self.seen_part(upstream).filter(|m| m.part.config.prefixed)?;
            self.unlisted_of(merged, kind, public, &native)
        });
        by_prefix.or_else(|| {
            let merged = self.parts().find(|m| !m.part.config.prefixed)?;
            self.unlisted_of(merged, kind, public, public)
        })
    }

    fn unlisted_of(
        &self,
        merged: &Merged,
        kind: ListKind,
        public: &str,
        native: &str,
    ) -> Option<Route> {
        let filter = &merged.part.config.filter;
        let free = |p: &Patterns| p.allow.is_empty() && p.deny.is_empty();
        // A pattern sees text, the upstream may see a path: `/public/../secret` must not pass as
        // something public.
        if !(free(filter) && free(&self.patterns)) && climbs(native) {
            return None;
        }
        (filter.admits(native) && self.patterns.admits(public))
            .then(|| Route::unlisted(kind, public, native, &merged.part.config))
    }

    fn parts(&self) -> impl Iterator<Item = &Merged> {
        self.catalog.parts().iter().zip(&self.seen).filter(|(_, seen)| **seen).map(|(m, _)| m)
    }

    fn seen_part(&self, upstream: &str) -> Option<&Merged> {
        self.catalog.part(upstream).filter(|_| self.sees(upstream))
    }

    // What a list shows, in order.
    pub(super) fn entries(&self, kind: ListKind) -> impl Iterator<Item = (Place, &Entry)> {
        self.catalog.entries(kind).filter(|(place, entry)| {
            self.seen[place.part as usize] && self.patterns.admits(&entry.exposed)
        })
    }
}

// Whether some segment of the URI is `.` or `..`, also with its dots, slashes or backslashes
// percent-encoded.
fn climbs(uri: &str) -> bool {
    let mut plain = uri.to_ascii_lowercase();
    for (code, meant) in [("%2e", "."), ("%2f", "/"), ("%5c", "\\")] {
        plain = plain.replace(code, meant);
    }
    plain.split(['/', '\\', '?', '#', ':']).any(|segment| matches!(segment, "." | ".."))
}

#[cfg(test)]
mod tests;
