//! Whether who opened a stream may still have it. A request shows its key each time; a stream
//! shows it once and can outlive it.

use std::sync::Arc;

use tokio::sync::watch;

use crate::call::Consumer;
use crate::config::secret::ConsumerKey;
use crate::gateway::Gateway;

use super::checks;
use super::headers::Headers;

/// Who opened a stream, and with which key.
pub struct Access {
    gateway: Arc<Gateway>,
    consumer: Arc<Consumer>,
    shown: Shown,
    numbers: watch::Receiver<u64>,
}

enum Shown {
    /// The key of the headers, or none.
    Key(Option<ConsumerKey>),
    /// Nothing: whoever holds the connection watches over it, or it is this machine's own pipe.
    Pipe,
}

impl Access {
    /// What these headers were let in with.
    pub fn new(gateway: &Arc<Gateway>, consumer: &Arc<Consumer>, headers: &Headers) -> Access {
        Access {
            gateway: gateway.clone(),
            consumer: consumer.clone(),
            shown: Shown::Key(checks::key(headers).map(ConsumerKey::of)),
            numbers: gateway.current.subscribe(),
        }
    }

    /// For one stream of several on a connection that is ended as a whole.
    pub fn of_pipe(gateway: &Arc<Gateway>, consumer: &Arc<Consumer>) -> Access {
        Access {
            gateway: gateway.clone(),
            consumer: consumer.clone(),
            shown: Shown::Pipe,
            numbers: gateway.current.subscribe(),
        }
    }

    /// Who it is.
    pub fn consumer(&self) -> &Arc<Consumer> {
        &self.consumer
    }

    /// Resolves when the key no longer lets this consumer in. Safe to drop and call again.
    pub async fn revoked(&mut self) {
        let Shown::Key(key) = &self.shown else { return std::future::pending().await };
        loop {
            self.numbers.mark_unchanged();
            let identity = self.gateway.current.load().identity.clone();
            let now = identity.identify_digest(key.as_ref());
            if !now.is_ok_and(|member| member.consumer.name == self.consumer.name) {
                tracing::info!(
                    consumer = &*self.consumer.name,
                    "a stream is ended: its key no longer lets in"
                );
                return;
            }
            if self.numbers.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}
