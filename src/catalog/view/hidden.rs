//! Why a public name leads nowhere. For operators: a consumer is never told more than that it does.

use std::sync::Arc;

use crate::catalog::merge::DropReason;
use crate::catalog::naming::{exposed_name, exposed_uri};
use crate::config::Objection;
use crate::protocol::method::ListKind;

use super::View;

/// What keeps something that an upstream offers from being seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// Whose it is.
    pub upstream: Arc<str>,
    /// Its native name or URI, if it could be read.
    pub native: Option<Arc<str>>,
    /// By what.
    pub by: HiddenBy,
}

/// What hides it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HiddenBy {
    /// The upstream is not in the view.
    Upstreams,
    /// The view's patterns.
    View(Objection),
    /// The upstream's own patterns.
    Filter(Objection),
    /// It is not in the catalog.
    Drop(DropReason),
}

impl View {
    /// What hides that which would have this public name. `None` also where nothing is known that
    /// would have it.
    pub fn hidden(&self, kind: ListKind, public: &str) -> Option<Hidden> {
        if let Some(place) = self.catalog.find(kind, public) {
            let merged = &self.catalog.parts()[place.part as usize];
            let by = if self.seen[place.part as usize] {
                HiddenBy::View(self.patterns.objection(public)?)
            } else {
                HiddenBy::Upstreams
            };
            let native = merged.list(kind).map(|l| l.item(place.entry as usize).key.clone());
            return Some(Hidden { upstream: merged.part.config.name.clone(), native, by });
        }
        self.filtered(kind, public).or_else(|| self.dropped(kind, public))
    }

    /// What the view's patterns have against a name, seen or not.
    pub fn objection(&self, public: &str) -> Option<Objection> {
        self.patterns.objection(public)
    }

    fn filtered(&self, kind: ListKind, public: &str) -> Option<Hidden> {
        self.catalog.parts().iter().find_map(|merged| {
            let config = &merged.part.config;
            let items = &merged.part.slice.as_ref()?.list(kind).items;
            items.iter().find_map(|item| {
                let objection = config.filter.objection(&item.key)?;
                (name(kind, &config.name, config.prefixed, &item.key) == public).then(|| Hidden {
                    upstream: config.name.clone(),
                    native: Some(item.key.clone()),
                    by: HiddenBy::Filter(objection),
                })
            })
        })
    }

    fn dropped(&self, kind: ListKind, public: &str) -> Option<Hidden> {
        let drop = self.catalog.drops().iter().filter(|d| d.kind == kind).find(|d| {
            let prefixed = self.catalog.part(&d.upstream).is_some_and(|m| m.part.config.prefixed);
            d.exposed.as_deref().is_some_and(|exposed| exposed == public)
                || d.native
                    .as_ref()
                    .is_some_and(|native| name(kind, &d.upstream, prefixed, native) == public)
        })?;
        Some(Hidden {
            upstream: drop.upstream.clone(),
            native: drop.native.clone(),
            by: HiddenBy::Drop(drop.why.clone()),
        })
    }
}

fn name(kind: ListKind, upstream: &str, prefixed: bool, native: &str) -> String {
    match kind {
        ListKind::Tools | ListKind::Prompts => exposed_name(upstream, prefixed, native),
        ListKind::Resources | ListKind::Templates | ListKind::Skills => {
            exposed_uri(upstream, prefixed, native)
        }
    }
}
