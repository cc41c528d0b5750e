//! Who is calling?
//!
//! One scheme: a key, presented as `Authorization: Bearer` or `X-API-Key`. Anonymous is a
//! consumer too, and exists only when none are configured. A digest of the presented key finds
//! its candidates; the comparison itself takes constant time.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hashbrown::HashMap;

use crate::call::Consumer;
use crate::config::Config;
pub use crate::config::OPERATOR;
use crate::config::secret::ConsumerKey;
use crate::failure::{Reason, Refusal};
use crate::guard::Limiter;

/// A consumer and its quota.
pub struct Member {
    /// Who.
    pub consumer: Arc<Consumer>,
    /// Its rate quota.
    pub quota: Option<Arc<Limiter>>,
    /// Its calls under way.
    pub in_flight: Arc<AtomicU64>,
}

/// All consumers of one configuration.
pub struct Identity {
    by_digest: HashMap<u64, Vec<(ConsumerKey, usize)>>,
    by_name: HashMap<Arc<str>, usize>,
    members: Vec<Member>,
    anonymous: Option<Member>,
}

impl Identity {
    /// The consumers of `config`; quotas of consumers that `before` had go on as they were.
    pub fn new(config: &Config, before: Option<&Identity>) -> Identity {
        let mut by_digest: HashMap<u64, Vec<_>> = HashMap::new();
        let mut members = Vec::with_capacity(config.consumers.len());
        for (index, c) in config.consumers.iter().enumerate() {
            for key in &c.keys {
                by_digest.entry(key.bucket()).or_default().push((key.clone(), index));
            }
            let known = before.and_then(|b| b.named(&c.name));
            let in_flight = known.map(|m| m.in_flight.clone()).unwrap_or_default();
            let quota = c.rate.as_ref().map(|rate| {
                let kept = known.and_then(|m| m.quota.clone());
                match kept {
                    Some(quota) => {
                        quota.reconfigure(Some(rate));
                        quota
                    }
                    None => Arc::new(Limiter::new(Some(rate))),
                }
            });
            let consumer = Consumer { name: c.name.clone(), view: c.view.clone() };
            members.push(Member { consumer: Arc::new(consumer), quota, in_flight });
        }
        let anonymous = config.consumers.is_empty().then(|| Member {
            consumer: Arc::new(Consumer { name: "anonymous".into(), view: None }),
            quota: None,
            in_flight: before
                .and_then(|b| b.anonymous.as_ref())
                .map(|m| m.in_flight.clone())
                .unwrap_or_default(),
        });
        let names = members.iter().enumerate().map(|(n, m)| (m.consumer.name.clone(), n));
        Identity { by_name: names.collect(), by_digest, members, anonymous }
    }

    /// The consumer who presents `key`. Without configured consumers everybody is anonymous,
    /// whatever they present.
    ///
    /// # Errors
    /// When there is no key, or nobody has this one.
    pub fn identify(&self, key: Option<&str>) -> Result<&Member, Refusal> {
        // An anonymous caller's header is not worth a digest.
        let key = key.filter(|_| self.anonymous.is_none());
        self.identify_digest(key.map(ConsumerKey::of).as_ref())
    }

    /// The same by the digest of the key, for who must ask again later.
    ///
    /// # Errors
    /// As [`Identity::identify`].
    pub fn identify_digest(&self, key: Option<&ConsumerKey>) -> Result<&Member, Refusal> {
        if let Some(anonymous) = &self.anonymous {
            return Ok(anonymous);
        }
        let Some(key) = key else {
            return Err(Refusal::new(
                Reason::Unauthenticated,
                "a key is needed: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
            ));
        };
        let candidates = self.by_digest.get(&key.bucket()).map_or(&[][..], Vec::as_slice);
        candidates
            .iter()
            .find(|(known, _)| known.same(key))
            .map(|(_, index)| &self.members[*index])
            .ok_or_else(|| Refusal::new(Reason::Unauthenticated, "the key is not known"))
    }

    /// The consumer of this name: for the operator's own commands, which read the configuration
    /// anyway.
    pub fn named(&self, name: &str) -> Option<&Member> {
        match self.by_name.get(name) {
            Some(index) => Some(&self.members[*index]),
            None => self.anonymous.as_ref().filter(|m| &*m.consumer.name == name),
        }
    }

    /// Everybody.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().chain(&self.anonymous)
    }
}
