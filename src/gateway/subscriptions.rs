//! Who hears of changed lists: each listener compares what *its own view* shows before and after.

use std::sync::Arc;

use tokio::sync::watch;

use crate::call::Consumer;
use crate::protocol::method::ListKind;

use super::Gateway;

/// The lists as clients know them: a change of templates is told as one of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// `notifications/tools/list_changed`
    Tools,
    /// `notifications/prompts/list_changed`
    Prompts,
    /// `notifications/resources/list_changed`
    Resources,
}

impl Topic {
    /// All three.
    pub const ALL: [Topic; 3] = [Topic::Tools, Topic::Prompts, Topic::Resources];

    /// The notification's method.
    pub fn method(self) -> &'static str {
        match self {
            Topic::Tools => "notifications/tools/list_changed",
            Topic::Prompts => "notifications/prompts/list_changed",
            Topic::Resources => "notifications/resources/list_changed",
        }
    }

    /// The key of the listen filter (2026-07-28 basic/patterns/subscriptions).
    pub fn filter_key(self) -> &'static str {
        match self {
            Topic::Tools => "toolsListChanged",
            Topic::Prompts => "promptsListChanged",
            Topic::Resources => "resourcesListChanged",
        }
    }

    fn kinds(self) -> &'static [ListKind] {
        match self {
            Topic::Tools => &[ListKind::Tools],
            Topic::Prompts => &[ListKind::Prompts],
            Topic::Resources => &[ListKind::Resources, ListKind::Templates],
        }
    }
}

/// One listener's memory of what it was last told about.
pub struct Changes {
    gateway: Arc<Gateway>,
    consumer: Arc<Consumer>,
    numbers: watch::Receiver<u64>,
    known: [[u8; 32]; 4],
}

impl Changes {
    /// Start from what the consumer sees now.
    pub fn of(gateway: &Arc<Gateway>, consumer: &Arc<Consumer>) -> Changes {
        let mut numbers = gateway.current.subscribe();
        numbers.mark_unchanged();
        let mut changes = Changes {
            gateway: gateway.clone(),
            consumer: consumer.clone(),
            numbers,
            known: [[0; 32]; 4],
        };
        changes.known = changes.digests();
        changes
    }

    fn digests(&self) -> [[u8; 32]; 4] {
        let view = self.gateway.current.load().view(&self.consumer);
        ListKind::ALL.map(|kind| view.digest(kind))
    }

    /// Wait until something that this consumer sees has changed and been quiet for the debounce
    /// time. Never empty.
    pub async fn next(&mut self) -> Vec<Topic> {
        loop {
            if self.numbers.changed().await.is_err() {
                // The gateway is gone; so will be the connection.
                std::future::pending::<()>().await;
            }
            let quiet = self.gateway.current.load().config.gateway.list_changed_debounce;
            while let Ok(Ok(())) = tokio::time::timeout(quiet, self.numbers.changed()).await {}
            let now = self.digests();
            let changed = |kind: ListKind| {
                let at = ListKind::ALL.iter().position(|k| *k == kind).expect("one of four");
                now[at] != self.known[at]
            };
            let topics: Vec<Topic> =
                Topic::ALL.into_iter().filter(|t| t.kinds().iter().any(|k| changed(*k))).collect();
            self.known = now;
            if !topics.is_empty() {
                return topics;
            }
        }
    }
}
