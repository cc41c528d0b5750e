//! What is known of an upstream that is a process.

use crate::config::TransportConfig;

use super::Upstream;
use super::subscriptions::Subject;
use super::transport::stdio::FamilyUsage;

impl Upstream {
    /// What its processes use, as last seen; `None`: it has none, but a URL.
    pub fn children(&self) -> Option<FamilyUsage> {
        let is_child = matches!(self.config.load().transport, TransportConfig::Stdio(_));
        is_child.then(|| self.connector.site.children.of(&self.connector.family))
    }

    /// See what the processes of all upstreams use now.
    pub async fn look_at_children(&self) {
        self.connector.site.children.look().await;
    }

    /// Whether anybody uses it or waits for it at this moment.
    pub fn is_busy(&self) -> bool {
        let wished = |subject| !self.connector.site.subscriptions.nothing_of(subject, &self.name);
        self.in_flight() > 0
            || !self.leases.is_empty()
            || wished(Subject::Resource)
            || wished(Subject::Task)
    }
}
