//! Who hears of changed lists: each listener compares what *its own view* shows before and after.

use std::sync::Arc;

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::call::Consumer;
use crate::protocol::method::ListKind;

use super::Gateway;

/// A change is told after this time at the latest, however restless the lists are.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// The lists as clients know them: a change of templates is told as one of resources. Of changed
/// skills nothing is told, because their extension has no word for it; a listing says how long it
/// may be kept.
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

/// What a listener knows of the lists.
pub type Known = [[u8; 32]; ListKind::COUNT];

/// One listener's memory of what it was last told about.
pub struct Changes {
    gateway: Arc<Gateway>,
    consumer: Arc<Consumer>,
    numbers: watch::Receiver<u64>,
    known: Known,
    // Something changed and was not compared yet. Kept here and not in `next`, whose future is
    // dropped whenever its caller has something else to do.
    pending: bool,
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
            known: [[0; 32]; ListKind::COUNT],
            pending: false,
        };
        changes.known = changes.digests();
        changes
    }

    /// What the consumer was last told about, for the next listener of the same client.
    pub fn known(&self) -> Known {
        self.known
    }

    /// Go on from what an earlier listener knew: what changed since is told.
    pub fn go_on_from(&mut self, known: Known) {
        self.pending = known != self.known;
        self.known = known;
    }

    fn digests(&self) -> Known {
        let view = self.gateway.current.load().view(&self.consumer);
        ListKind::ALL.map(|kind| view.digest(kind))
    }

    /// Wait until something that this consumer sees has changed and been quiet for the debounce
    /// time. Never empty. Safe to drop and call again: no change is lost.
    pub async fn next(&mut self) -> Vec<Topic> {
        loop {
            if !self.pending && self.numbers.changed().await.is_err() {
                // The gateway is gone; so will be the connection.
                std::future::pending::<()>().await;
            }
            self.pending = true;
            let quiet = self.gateway.current.load().config.gateway.list_changed_debounce;
            // An upstream that never rests must not keep what others changed from being told.
            let latest = Instant::now() + TOLD_WITHIN.max(quiet);
            while let Ok(Ok(())) =
                tokio::time::timeout_at(latest.min(Instant::now() + quiet), self.numbers.changed())
                    .await
            {
                if Instant::now() >= latest {
                    break;
                }
            }
            self.pending = false;
            let now = self.digests();
            let changed = |kind: ListKind| {
                let at = ListKind::ALL.iter().position(|k| *k == kind).expect("one of all");
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

#[cfg(test)]
mod tests {
    use super::*;

    use crate::catalog::freshness::Freshness;
    use crate::catalog::merge::{Catalog, Part};
    use crate::catalog::view::View;
    use crate::control::diff;
    use crate::gateway::snapshot::Snapshot;
    use crate::identity::Identity;
    use crate::observe::Observe;
    use hashbrown::HashMap;

    fn snapshot(number: u64, tools: bool) -> Snapshot {
        let config = crate::config::parse("", "t", &|_| None, &|_| unreachable!()).unwrap();
        let part = Part {
            config: Arc::new(diff::builtin_config(0)),
            slice: tools.then(crate::gateway::builtin::slice),
            freshness: Freshness::Live,
        };
        let catalog = Arc::new(Catalog::build(number, vec![part], None));
        Snapshot {
            number,
            identity: Arc::new(Identity::new(&config, None)),
            config: Arc::new(config),
            configured_at: std::time::SystemTime::UNIX_EPOCH,
            upstreams: HashMap::new(),
            successors: HashMap::new(),
            views: HashMap::from([(None, Arc::new(View::new(&catalog, None)))]),
            catalog,
            series: HashMap::new(),
            no_series: Observe::quiet().metrics.nobody(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_told_although_the_wait_for_it_was_dropped() {
        let gateway =
            Arc::new(Gateway::new(snapshot(1, false), Arc::new(Observe::quiet()), Arc::default()));
        let consumer = Arc::new(Consumer { name: "anonymous".into(), view: None });
        let mut changes = Changes::of(&gateway, &consumer);
        gateway.current.publish(snapshot(2, true));
        // Dropped in the middle of the quiet time, as a keep-alive does.
        let dropped = tokio::time::timeout(Duration::from_millis(100), changes.next()).await;
        assert!(dropped.is_err());
        let told = tokio::time::timeout(Duration::from_secs(5), changes.next()).await;
        assert_eq!(told.unwrap(), [Topic::Tools]);
        // What looks the same is not told.
        gateway.current.publish(snapshot(3, true));
        assert!(tokio::time::timeout(Duration::from_secs(5), changes.next()).await.is_err());
    }
}
