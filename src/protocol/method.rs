//! The method table: one row per request that a client may send.

use super::revision::Revision;

/// Which list of the catalog a method returns, or an entry belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListKind {
    /// `tools/list`
    Tools,
    /// `prompts/list`
    Prompts,
    /// `resources/list`
    Resources,
    /// `resources/templates/list`
    Templates,
    /// `skills/list` of the extension `io.modelcontextprotocol/skills`
    Skills,
}

impl ListKind {
    /// How many there are.
    pub const COUNT: usize = 5;
    /// All of them.
    pub const ALL: [ListKind; ListKind::COUNT] = [
        ListKind::Tools,
        ListKind::Prompts,
        ListKind::Resources,
        ListKind::Templates,
        ListKind::Skills,
    ];

    /// The member of the result that holds the items.
    pub fn member(self) -> &'static str {
        match self {
            ListKind::Tools => "tools",
            ListKind::Prompts => "prompts",
            ListKind::Resources => "resources",
            ListKind::Templates => "resourceTemplates",
            ListKind::Skills => "skills",
        }
    }

    /// The method that lists it.
    pub fn method(self) -> &'static str {
        match self {
            ListKind::Tools => "tools/list",
            ListKind::Prompts => "prompts/list",
            ListKind::Resources => "resources/list",
            ListKind::Templates => "resources/templates/list",
            ListKind::Skills => "skills/list",
        }
    }

    /// The member that identifies an item: `name`, `uri` or `uriTemplate`.
    pub fn key(self) -> &'static str {
        match self {
            ListKind::Tools | ListKind::Prompts => "name",
            ListKind::Resources | ListKind::Skills => "uri",
            ListKind::Templates => "uriTemplate",
        }
    }

    /// A metric label and a word for humans.
    pub fn as_str(self) -> &'static str {
        match self {
            ListKind::Tools => "tools",
            ListKind::Prompts => "prompts",
            ListKind::Resources => "resources",
            ListKind::Templates => "templates",
            ListKind::Skills => "skills",
        }
    }
}

/// Where the address of a request stands in its params.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressField {
    /// Nothing routes.
    None,
    /// `params.name`, a tool.
    ToolName,
    /// `params.name`, a prompt.
    PromptName,
    /// `params.uri`, a resource.
    Uri,
    /// `params.taskId`, a task.
    Task,
    /// `params.ref`: `{type: "ref/prompt", name}` or `{type: "ref/resource", uri}`.
    Ref,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handling {
    /// The edge: it belongs to a connection or session.
    Edge,
    /// The catalog, from memory.
    List(ListKind),
    /// The catalog, from memory: who we are and what we can do.
    Discover,
    /// Whoever owns the address.
    Forward,
    /// A stream of notices until the client leaves.
    Listen,
}

/// One row.
#[derive(Debug, PartialEq, Eq)]
pub struct Method {
    /// As on the wire.
    pub name: &'static str,
    /// Who answers it.
    pub handling: Handling,
    /// What routes it.
    pub address: AddressField,
    /// By the protocol's own meaning it changes nothing, so it may be repeated. `tools/call` is
    /// not: there the tool's annotation or the operator decides.
    pub read_only: bool,
    /// Its complete result carries `ttlMs` and `cacheScope` (2026-07-28 server/utilities/caching).
    pub cacheable: bool,
    /// First revision that has it.
    pub since: Revision,
    /// Last revision that has it.
    pub until: Revision,
}

use AddressField as A;
use Handling as H;
use Revision::{R2024_11_05 as R24, R2025_11_25 as R11, R2026_07_28 as R26};

const fn row(
    name: &'static str,
    handling: Handling,
    address: AddressField,
    read_only: bool,
    cacheable: bool,
    since: Revision,
    until: Revision,
) -> Method {
    Method { name, handling, address, read_only, cacheable, since, until }
}

/// The table, in the order of section 3 of any revision's schema.
/// Behind it the methods of extensions.
pub static METHODS: [Method; 22] = [
    row("initialize", H::Edge, A::None, true, false, R24, R11),
    row("ping", H::Edge, A::None, true, false, R24, R11),
    row("logging/setLevel", H::Edge, A::None, true, false, R24, R11),
    row("server/discover", H::Discover, A::None, true, true, R26, R26),
    row("tools/list", H::List(ListKind::Tools), A::None, true, true, R24, R26),
    row("prompts/list", H::List(ListKind::Prompts), A::None, true, true, R24, R26),
    row("resources/list", H::List(ListKind::Resources), A::None, true, true, R24, R26),
    row("resources/templates/list", H::List(ListKind::Templates), A::None, true, true, R24, R26),
    row("tools/call", H::Forward, A::ToolName, false, false, R24, R26),
    row("prompts/get", H::Forward, A::PromptName, true, false, R24, R26),
    row("resources/read", H::Forward, A::Uri, true, true, R24, R26),
    row("completion/complete", H::Forward, A::Ref, true, false, R24, R26),
    row("subscriptions/listen", H::Listen, A::None, true, false, R26, R26),
    row("resources/subscribe", H::Edge, A::Uri, true, false, R24, R11),
    row("resources/unsubscribe", H::Edge, A::Uri, true, false, R24, R11),
    row("tasks/get", H::Forward, A::Task, true, false, R11, R26),
    row("tasks/result", H::Forward, A::Task, true, false, R11, R11),
    row("tasks/update", H::Forward, A::Task, false, false, R26, R26),
    row("tasks/cancel", H::Forward, A::Task, false, false, R11, R26),
    row("skills/list", H::List(ListKind::Skills), A::None, true, true, R26, R26),
    row("skills/get", H::Forward, A::Uri, true, true, R26, R26),
    row("resources/directory/read", H::Forward, A::Uri, true, false, R26, R26),
];

/// The row of a method in a revision; `None` if that revision does not have it.
pub fn find(name: &str, revision: Revision) -> Option<&'static Method> {
    METHODS.iter().find(|m| m.name == name && m.since <= revision && revision <= m.until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_exist_only_in_their_revisions() {
        assert!(find("initialize", R11).is_some());
        assert!(find("initialize", R26).is_none());
        assert!(find("ping", R26).is_none());
        assert!(find("server/discover", R11).is_none());
        assert!(find("tools/call", R24).is_some());
        assert!(find("tools/call", R26).is_some_and(|m| !m.read_only));
        assert!(find("no/such", R26).is_none());
    }
}
