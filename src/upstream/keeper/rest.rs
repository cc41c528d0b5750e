//! A child's rest: begun when nobody uses it, ended when somebody does; and its turn to start.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::config::{TransportConfig, UpstreamConfig};
use crate::upstream::condition::{Condition, State};
use crate::upstream::idle::Quiet;
use crate::upstream::link::Link;
use crate::upstream::starts::{self, Cause};

use super::{Event, Keeper};

impl Keeper {
    // Stopped while nobody uses it, until somebody does; `false`: for good.
    pub(super) async fn rest(&mut self, link: Arc<Link>) -> bool {
        tracing::info!(upstream = %self.name, "nobody uses the upstream: its process is stopped");
        // Whoever comes meanwhile need not wait for its end: the next one is another process.
        let closing = tokio::spawn(async move { link.close().await });
        let mut wishes = self.connector.site.subscriptions.changes();
        loop {
            wishes.mark_unchanged();
            let Some(upstream) = self.config.upgrade() else { return false };
            let stays = upstream.config().child.idle_stop.is_some() && !upstream.is_busy();
            drop(upstream);
            if !stays && !self.stop.is_cancelled() {
                break;
            }
            tokio::select! {
                () = self.uses.woken() => {}
                _ = wishes.changed() => {}
                () = self.stop.cancelled() => {
                    let _ = closing.await;
                    return false;
                }
            }
        }
        tracing::info!(upstream = %self.name, "the upstream is wanted again");
        self.cause = Cause::Wanted;
        self.set(Condition::starting()).await;
        true
    }

    // Whether nobody uses it any more. From then on no call finds its conversation.
    pub(super) async fn begins_to_rest(&self, quiet: &mut Quiet, limit: Duration) -> bool {
        let Some(upstream) = self.config.upgrade() else { return false };
        if !quiet.has_lasted(&self.uses, upstream.is_busy(), limit) {
            return false;
        }
        let why = format!("stopped after {limit:?} without use; the next call starts it");
        let before = self.condition.send_replace(Condition::new(State::Idle, why));
        // A call counts before it looks for the conversation: either it counts now, or it found
        // none.
        if upstream.is_busy() {
            self.condition.send_replace(before);
            *quiet = Quiet::new(&self.uses);
            return false;
        }
        drop(upstream);
        self.tell(Event::Changed).await;
        true
    }

    // A place among the children that start.
    pub(super) async fn place(&mut self, config: &UpstreamConfig) -> Option<starts::Place> {
        if !matches!(config.transport, TransportConfig::Stdio(_)) {
            return None;
        }
        let cause = std::mem::replace(&mut self.cause, Cause::Configured);
        let starts = self.connector.site.starts.clone();
        if let Some(place) = starts.try_enter(cause, config.connect_timeout) {
            return Some(place);
        }
        // One that is down stays so, with its reason, until it is tried.
        let waits = matches!(self.condition.borrow().state, State::Starting);
        if waits {
            let why = "it waits for others to start first (gateway.max_starting)";
            self.set(Condition::new(State::Starting, why)).await;
        }
        self.connector.in_line.store(true, Ordering::Relaxed);
        let place = starts.enter(cause, config.connect_timeout).await;
        self.connector.in_line.store(false, Ordering::Relaxed);
        if waits {
            self.set(Condition::starting()).await;
        }
        Some(place)
    }
}
