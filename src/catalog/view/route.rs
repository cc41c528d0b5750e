//! The permission to call one thing.

use std::sync::Arc;

use crate::catalog::naming::exposed_uri;
use crate::catalog::slice::{Hints, Item};
use crate::config::UpstreamConfig;
use crate::protocol::method::ListKind;
use crate::protocol::param::Param;
use crate::protocol::task::TaskSupport;

/// The way to one tool, prompt or resource that a consumer may use. Only
/// [`View::resolve`](super::View::resolve) makes one, so a call without permission cannot be
/// written down.
#[derive(Clone, Debug)]
pub struct Route {
    kind: ListKind,
    upstream: Arc<str>,
    prefixed: bool,
    native: Arc<str>,
    exposed: Arc<str>,
    hints: Hints,
    params: Arc<[Param]>,
    declares_key: bool,
}

impl Route {
    pub(super) fn listed(
        kind: ListKind,
        exposed: Arc<str>,
        item: &Item,
        (params, declares_key): (Arc<[Param]>, bool),
        config: &UpstreamConfig,
    ) -> Route {
        Route {
            kind,
            upstream: config.name.clone(),
            prefixed: config.prefixed,
            native: item.key.clone(),
            exposed,
            hints: item.hints,
            params,
            declares_key,
        }
    }

    pub(super) fn unlisted(
        kind: ListKind,
        exposed: &str,
        native: &str,
        config: &UpstreamConfig,
    ) -> Route {
        Route {
            kind,
            upstream: config.name.clone(),
            prefixed: config.prefixed,
            native: native.into(),
            exposed: exposed.into(),
            hints: Hints::default(),
            params: Arc::default(),
            declares_key: false,
        }
    }

    /// What it leads to.
    pub fn kind(&self) -> ListKind {
        self.kind
    }

    /// Whose it is.
    pub fn upstream(&self) -> &Arc<str> {
        &self.upstream
    }

    /// Its name or URI there.
    pub fn native(&self) -> &Arc<str> {
        &self.native
    }

    /// Its public name or URI.
    pub fn exposed(&self) -> &Arc<str> {
        &self.exposed
    }

    /// The tool's own `readOnlyHint`. The operator's word goes before it.
    pub fn read_only(&self) -> Option<bool> {
        self.hints.read_only
    }

    /// The same to a tool that never runs as a task of 2025-11-25.
    pub(super) fn without_task(mut self) -> Route {
        self.hints.task = TaskSupport::Forbidden;
        self
    }

    /// Whether the tool runs as a task (2025-11-25 basic/utilities/tasks).
    pub fn task(&self) -> TaskSupport {
        self.hints.task
    }

    /// The tool's parameters that are mirrored in headers; none where its upstream gets none.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Whether the tool declares the argument that is to hold the key of a call.
    pub fn declares_key(&self) -> bool {
        self.declares_key
    }

    /// The public form of a URI in this upstream's answers; `None` if it is the same.
    pub fn public_uri(&self, native: &str) -> Option<String> {
        self.prefixed.then(|| exposed_uri(&self.upstream, true, native))
    }
}
