//! Several endpoints that stand for one another (`urls`).
//!
//! ```text
//!  Upstream ── guard ── Replicas ──┬─ Upstream 1 ── link, leases, keeper
//!                          │       └─ Upstream 2 ── link, leases, keeper
//!                          └─ roster: who is well, and has the fewest calls under way
//! ```
//!
//! Each replica is an upstream in itself, with a keeper, conversations and tasks of its own; the
//! guard before them is one for all. So whatever belongs to a conversation stays with its replica
//! by construction: a call's notices, cancellation and resumption, its rounds of questions, its
//! questions on a pipe. What outlives a call says where it belongs: the owner of a conversation
//! begins with the replica's tag, which is sealed into task ids and request states.
//!
//! Another replica is tried under the rule for repetitions, and no other: at once and as part of
//! the same attempt if nothing of the request can have reached the first; after that only what may
//! be repeated, by the guard. A write that may have arrived somewhere is at no time sent elsewhere,
//! also if it carries an idempotency key: the other one may not know the key.

mod council;
pub mod roster;

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, watch};

use crate::call::{Call, Terminal};
use crate::catalog::slice::Slice;
use crate::config::{Isolation, UpstreamConfig};
use crate::failure::{Delivery, Fault, Reason};
use crate::guard::{Done, Signal};
use crate::protocol::revision::Era;

use super::asking::Asking;
use super::condition::Condition;
use super::connector::{Connector, Replica};
use super::errand::{self, Errand};
use super::keeper;
use super::link::Link;
use super::{Counters, Rates, Upstream};

use council::Council;
use roster::{By, Facts, Roster, Set, Taken};

/// What replicas tell that waits for the one who puts it together: a few words each.
const TOLD_MAX: usize = 64;

/// The replicas of one upstream.
pub struct Replicas {
    all: Box<[Arc<Upstream>]>,
    roster: Roster,
}

/// What one call has tried so far.
pub struct Trip {
    tried: AtomicU32,
    read_only: bool,
    // The only one that it may still go to, by number from 1; 0: any.
    held: AtomicUsize,
}

impl Trip {
    /// Nothing yet.
    pub fn new(read_only: bool) -> Trip {
        Trip { tried: AtomicU32::new(0), read_only, held: AtomicUsize::new(0) }
    }
}

/// How one replica is.
pub struct Standing {
    /// Its place in the file, from 1.
    pub number: usize,
    /// Where it is, without what may be secret: scheme and authority, as they are written.
    pub at: String,
    /// Its conversation.
    pub condition: Condition,
    /// Its calls.
    pub facts: Facts,
}

impl Upstream {
    pub(super) fn of_replicas(
        config: Arc<UpstreamConfig>,
        connector: Arc<Connector>,
        condition: watch::Receiver<Condition>,
        (condition_tx, events): (watch::Sender<Condition>, keeper::Events),
        kept: Option<Arc<Slice>>,
        rates: Option<Rates>,
    ) -> Arc<Upstream> {
        let (told, heard) = mpsc::channel(TOLD_MAX);
        let counters = Counters::default();
        let upstream = Arc::new_cyclic(|whole| {
            let all = (0..config.replicas().len())
                .map(|n| replica(&config, n, &connector, &counters, whole, &told, kept.as_ref()));
            let all: Box<[_]> = all.collect();
            let roster = Roster::new(config.ejection, all.len());
            let replicas = Some(Replicas { all, roster });
            let whole = Weak::new();
            Upstream::new(config, &connector, &counters, condition, replicas, whole, rates)
        });
        let council = Council::new(&upstream, heard, events, condition_tx);
        upstream.runs(tokio::spawn(council.run()));
        upstream
    }

    /// How each of its replicas is; nothing for an upstream that has none.
    pub fn standings(&self) -> Vec<Standing> {
        let Some(replicas) = &self.replicas else { return Vec::new() };
        let config = self.config();
        let urls = config.replicas().iter();
        let all = replicas.all.iter().zip(replicas.roster.facts()).zip(urls).enumerate();
        let standing = |(n, ((replica, facts), url)): (usize, ((&Arc<Upstream>, _), _))| Standing {
            number: n + 1,
            at: origin(crate::config::secret::Template::written(url)),
            condition: replica.condition(),
            facts,
        };
        all.map(standing).collect()
    }
}

fn replica(
    config: &Arc<UpstreamConfig>,
    number: usize,
    whole_connector: &Connector,
    counters: &Counters,
    whole: &Weak<Upstream>,
    told: &keeper::Events,
    kept: Option<&Arc<Slice>>,
) -> Arc<Upstream> {
    let own = Arc::new(config.of_replica(number));
    let tag = tag(config.replicas()[number].written());
    let replica = Replica { number: number + 1, tag };
    let (site, scrubber) = (&whole_connector.site, whole_connector.scrubber.clone());
    let (connector, notes) = counters.connector(&own, site, scrubber, kept, Some(replica));
    let (condition_tx, condition) = watch::channel(Condition::starting());
    let upstream = Upstream::new(own, &connector, counters, condition, None, whole.clone(), None);
    let upstream = Arc::new(upstream);
    upstream.keep(connector, notes, told.clone(), condition_tx, kept);
    upstream
}

// Of the URL as it is written, which holds no secret, and in every gateway alike.
fn tag(url: &str) -> Arc<str> {
    use std::fmt::Write as _;
    let digest = Sha256::new().chain_update(b"weir replica 1").chain_update(url).finalize();
    let mut tag = String::from("@");
    for byte in &digest[..6] {
        let _ = write!(tag, "{byte:02x}");
    }
    tag.into()
}

fn origin(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return String::new() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    format!("{scheme}://{authority}")
}

/// Where a call goes.
enum Place {
    /// Only there: what it is about is nowhere else.
    Only(usize),
    /// There, as long as that one can be reached.
    Rather(usize),
    /// To any.
    Any,
}

impl Replicas {
    /// Each of them.
    pub fn all(&self) -> &[Arc<Upstream>] {
        &self.all
    }

    /// New settings for all.
    pub fn reconfigure(&self, config: &UpstreamConfig) {
        self.roster.reconfigure(config.ejection);
        for (n, replica) in self.all.iter().enumerate() {
            replica.config.store(Arc::new(config.of_replica(n)));
        }
    }

    /// End them all, at once.
    pub async fn retire(&self) {
        let ends = self.all.iter().map(|replica| replica.retire(Duration::ZERO));
        futures_util::future::join_all(ends).await;
    }

    /// Make one attempt of a call: at one replica, and at the next for as long as nothing of the
    /// request can have reached any.
    pub async fn attempt(
        &self,
        whole: &Upstream,
        errand: &Errand<'_>,
        trip: &Trip,
    ) -> Result<Done<(Terminal, bool)>, Fault> {
        let deadline = errand.asking.deadline;
        // One of them; who has to wait for the first, or is refused, does so here.
        let some = match self.all.iter().find_map(|replica| replica.link_now()) {
            Some(link) => link,
            None => whole.link(deadline).await?,
        };
        let call = errand.asking.call;
        let affinity = affinity(&some, errand.config, call);
        let mut place = self.place(call)?;
        if let Some(held) = trip.held.load(Ordering::Relaxed).checked_sub(1) {
            place = Place::Only(held);
        }
        let mut first: Option<Fault> = None;
        loop {
            let by = affinity.map_or(By::Load, By::Affinity);
            let Some(taken) = self.choose(&place, trip, first.is_some(), by) else {
                return Err(first.unwrap_or_else(nobody));
            };
            let number = taken.number;
            trip.tried.fetch_or(1 << number, Ordering::Relaxed);
            let at = At { replica: &self.all[number], taken: Some(taken), errand };
            let fault = match at.attempt().await {
                Ok(done) => return Ok(done),
                Err(fault) => fault,
            };
            if fault.delivery != Delivery::NotSent {
                // From now on it may have been there: what is not free to be repeated anywhere
                // goes nowhere else.
                if !trip.read_only {
                    trip.held.store(number + 1, Ordering::Relaxed);
                }
                return Err(fault);
            }
            if matches!(place, Place::Only(_)) || !is_away(fault.reason) {
                return Err(fault);
            }
            place = Place::Any;
            first.get_or_insert(fault);
        }
    }

    fn choose<'s>(
        &'s self,
        place: &Place,
        trip: &Trip,
        anew: bool,
        by: By<'_>,
    ) -> Option<Taken<'s>> {
        let reached = self.reached();
        match place {
            Place::Only(number) => Some(self.roster.this(*number)),
            Place::Rather(number) if reached & 1 << number != 0 => Some(self.roster.this(*number)),
            Place::Rather(_) | Place::Any => {
                self.roster.choose(reached, trip.tried.load(Ordering::Relaxed), anew, by)
            }
        }
    }

    fn reached(&self) -> Set {
        let there = self.all.iter().enumerate().filter(|(_, replica)| replica.link_now().is_some());
        there.fold(0, |set, (n, _)| set | 1 << n)
    }

    // A task is where it was made. The next round of a call belongs to the replica that asked for
    // it, but what it needs is in the request (2026-07-28 basic/patterns/mrtr): another may do.
    fn place(&self, call: &Call) -> Result<Place, Fault> {
        let owner_of_task = call.task.as_ref().and_then(|task| task.owner.as_deref());
        if let Some(tag) = owner_of_task.and_then(tag_of) {
            return self.tagged(tag).map(Place::Only).ok_or_else(|| {
                let text = "the replica that has the task was taken out of the configuration";
                Fault::new(Reason::Retired, Delivery::NotSent, text)
            });
        }
        let owner = call.earlier.as_ref().and_then(|earlier| earlier.owner.as_deref());
        let number = owner.and_then(tag_of).and_then(|tag| self.tagged(tag));
        Ok(number.map_or(Place::Any, Place::Rather))
    }

    fn tagged(&self, tag: &str) -> Option<usize> {
        let own = |replica: &Arc<Upstream>| {
            replica.connector.replica.as_ref().is_some_and(|own| *own.tag == *tag)
        };
        self.all.iter().position(own)
    }
}

fn tag_of(owner: &str) -> Option<&str> {
    owner.starts_with('@').then(|| owner.split(' ').next().unwrap_or_default())
}

// Whose conversation a call of an old upstream needs, if it needs one: that is to stay where it is.
fn affinity<'a>(link: &Link, config: &UpstreamConfig, call: &'a Call) -> Option<&'a str> {
    if link.era() == Era::Modern || call.askable.is_nothing() {
        return None;
    }
    match config.isolation {
        Isolation::Shared => None,
        Isolation::Consumer => Some(&call.consumer.name),
        Isolation::Session => call.session.as_deref(),
    }
}

fn nobody() -> Fault {
    let text = "no replica of the upstream can be reached";
    Fault::new(Reason::UpstreamDown, Delivery::NotSent, text)
}

// Nobody is there, so that another may be: of what was not sent. A full line is no such thing.
fn is_away(reason: Reason) -> bool {
    matches!(reason, Reason::ConnectFailed | Reason::ConnectionLost | Reason::UpstreamDown)
}

// What the end of an attempt says of its replica: `None`: nothing.
fn verdict(fault: &Fault) -> Option<bool> {
    match fault.reason {
        Reason::ConnectFailed
        | Reason::ConnectionLost
        | Reason::UpstreamDown
        | Reason::DeadlineExceeded
        | Reason::Garbled
        | Reason::CredentialRefused => Some(false),
        // A status that says no to this request says that somebody is there.
        Reason::UpstreamStatus => Some(fault.delivery == Delivery::Refused),
        // The upstream's wish for a pause is for all of them; the rest is our own affair, or the
        // caller's.
        _ => None,
    }
}

/// An attempt at one replica. One that is given up because its time is over says something of it,
/// and so does one that was overtaken.
struct At<'a> {
    replica: &'a Arc<Upstream>,
    taken: Option<Taken<'a>>,
    errand: &'a Errand<'a>,
}

impl At<'_> {
    async fn attempt(mut self) -> Result<Done<(Terminal, bool)>, Fault> {
        let config = self.replica.config();
        let asking = Asking { pages: &self.replica.pages, ..self.errand.asking };
        let errand = Errand { config: &config, asking, ..*self.errand };
        let end = errand::attempt(self.replica, &errand).await;
        let well = match &end {
            Ok(done) => Some(!matches!(done.signal, Signal::Broken(_))),
            Err(fault) => verdict(fault),
        };
        match (self.taken.take(), well) {
            (Some(taken), Some(true)) => taken.succeeded(),
            (Some(taken), Some(false)) => taken.failed(),
            _ => {}
        }
        end
    }
}

impl Drop for At<'_> {
    fn drop(&mut self) {
        let Some(taken) = self.taken.take() else { return };
        if self.errand.asking.deadline.remaining().is_zero() {
            taken.failed();
        } else if self.errand.hedge.is_some_and(|(hedge, number)| hedge.is_overtaken(number)) {
            taken.lost();
        }
    }
}
