//! Why a name leads nowhere in a consumer's view. For operators alone.

use crate::catalog::freshness::rfc3339;
use crate::catalog::merge::DropReason;
use crate::catalog::naming::upstream_of_name;
use crate::catalog::view::{Hidden, HiddenBy};
use crate::config::problem::nearest;
use crate::config::{Objection, UpstreamConfig};
use crate::failure::Reason;
use crate::gateway::builtin;
use crate::protocol::method::ListKind;

use super::{Case, Refused};

/// Most names that are compared with a mistyped one, and its longest that is: it is a courtesy.
const COMPARED_MAX: usize = 1000;
const COMPARED_LENGTH_MAX: usize = 128;

impl Case<'_> {
    /// What hides the name, or that there is none. `since` is when the configuration was taken.
    pub(super) fn unseen(&self) -> Refused {
        let since = Some(rfc3339(self.snapshot.configured_at));
        let found = match self.view.hidden(ListKind::Tools, self.tool) {
            Some(hidden) => self.hidden(&hidden),
            None => self.unknown(),
        };
        // What an upstream offers is not the configuration's doing.
        let since =
            since.filter(|_| matches!(found.layer.as_str(), "view" | "filter" | "disabled"));
        Refused { since, reason: Reason::UnknownName.as_str().into(), ..found }
    }

    fn hidden(&self, Hidden { upstream, native, by }: &Hidden) -> Refused {
        let native = native.as_deref().unwrap_or("a tool");
        match by {
            HiddenBy::Upstreams => self.not_in_view(upstream),
            HiddenBy::View(objection) => {
                let place = format!("views.{}", self.view_name());
                patterns("view", &place, self.tool, objection)
            }
            HiddenBy::Filter(objection) => {
                patterns("filter", &format!("upstreams.{upstream}"), native, objection)
            }
            HiddenBy::Drop(why @ (DropReason::Taken { .. } | DropReason::Foreign(_))) => say(
                "collision",
                format!("{upstream} offers \"{native}\", but {why}"),
                match why {
                    DropReason::Foreign(_) => Some(format!("upstreams.{upstream}.prefix")),
                    _ => None,
                },
                match why {
                    DropReason::Foreign(_) => format!(
                        "leave out `prefix` of upstreams.{upstream}, so that its names begin with \
                         its own"
                    ),
                    _ => format!("the server behind {upstream} has to give it a name of its own"),
                },
            ),
            HiddenBy::Drop(why) => say(
                "entry",
                format!("{upstream} offers \"{native}\", but {why}"),
                None,
                format!("the server behind {upstream} has to mend the tool's definition"),
            ),
        }
    }

    fn unknown(&self) -> Refused {
        let Some(prefix) = upstream_of_name(self.tool) else {
            let said = "no upstream offers a tool of this name".to_owned();
            return say("name", said, None, self.instead());
        };
        let all = &self.snapshot.config.upstreams;
        let Some(config) = all.iter().find(|c| &*c.name == prefix) else {
            let (said, key, remedy) = if prefix == builtin::NAME {
                let said = "the gateway's own tools have none of this name, or are switched off";
                (said.to_owned(), "gateway.builtin".to_owned(), self.instead())
            } else {
                let said = format!("no upstream \"{prefix}\" is configured");
                (said, format!("upstreams.{prefix}"), self.instead())
            };
            return say("name", said, Some(key), remedy);
        };
        if !config.enabled {
            return say(
                "disabled",
                format!("{prefix} is disabled"),
                Some(format!("upstreams.{prefix}.enabled")),
                format!("set upstreams.{prefix}.enabled = true, or take the line out"),
            );
        }
        self.not_offered(config)
    }

    fn not_offered(&self, config: &UpstreamConfig) -> Refused {
        let name = &config.name;
        let catalog = &self.snapshot.catalog;
        let known = catalog.upstreams().any(|p| p.config.name == *name && p.slice.is_some());
        if !known && !self.view.sees(name) {
            return self.not_in_view(name);
        }
        if !known && let Some(objection) = self.view.objection(self.tool) {
            let place = format!("views.{}", self.view_name());
            return patterns("view", &place, self.tool, &objection);
        }
        say(
            "name",
            format!("{name} offers no tool of this name, as its list was last seen"),
            None,
            self.instead(),
        )
    }

    fn not_in_view(&self, upstream: &str) -> Refused {
        let key = format!("views.{}.upstreams", self.view_name());
        let remedy = format!("add \"{upstream}\" to {key}, or give the consumer another view");
        say(
            "view",
            format!("the view \"{}\" does not have the upstream {upstream}", self.view_name()),
            Some(key),
            remedy,
        )
    }

    fn view_name(&self) -> &str {
        self.consumer.view.as_deref().unwrap_or("(everything)")
    }

    // A visible name that may have been meant.
    fn instead(&self) -> String {
        let names = || self.view.items(ListKind::Tools).map(|(name, _)| &**name).take(COMPARED_MAX);
        let native = names()
            .find(|name| name.strip_suffix(self.tool).is_some_and(|before| before.ends_with("__")));
        let near = || {
            let short = self.tool.len() <= COMPARED_LENGTH_MAX;
            short.then(|| nearest(self.tool, names())).flatten()
        };
        match native.or_else(near) {
            Some(name) => format!("did you mean {name}?"),
            None => "`weir catalog` shows the names that each consumer sees".to_owned(),
        }
    }
}

fn patterns(layer: &str, place: &str, name: &str, objection: &Objection) -> Refused {
    match objection {
        Objection::Denied(pattern) => say(
            layer,
            format!("{place}.deny has \"{pattern}\", which describes \"{name}\""),
            Some(format!("{place}.deny")),
            format!("take \"{pattern}\" out of {place}.deny, or narrow it"),
        ),
        Objection::NotAllowed => say(
            layer,
            format!("no pattern of {place}.allow describes \"{name}\""),
            Some(format!("{place}.allow")),
            format!("add \"{name}\" to {place}.allow"),
        ),
    }
}

fn say(layer: &str, why: String, key: Option<String>, remedy: String) -> Refused {
    Refused { layer: layer.into(), why, key, remedy, ..Refused::default() }
}
