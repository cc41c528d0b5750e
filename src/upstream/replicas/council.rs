//! What several replicas tell becomes what one upstream tells: one condition, one catalog.
//!
//! The catalog is that of one replica, the *speaker*, as long as its lists are fresh; then another
//! that is takes its place. So lists do not change back and forth while replicas are updated one
//! after the other, and a replica that dies changes nothing that is shown.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::catalog::slice::Slice;
use crate::protocol::method::ListKind;
use crate::upstream::Upstream;
use crate::upstream::condition::{Condition, State};
use crate::upstream::keeper::{self, Event, Told};

/// See the module.
pub struct Council {
    whole: Weak<Upstream>,
    stop: CancellationToken,
    heard: mpsc::Receiver<Told>,
    events: keeper::Events,
    condition: watch::Sender<Condition>,
    // By number: what each offers, as long as that is fresh.
    fresh: Box<[Option<Arc<Slice>>]>,
    speaker: Option<usize>,
    saving: Option<tokio::task::JoinHandle<()>>,
}

impl Council {
    /// One for `whole`. `heard` is what its replicas tell.
    pub fn new(
        whole: &Arc<Upstream>,
        heard: mpsc::Receiver<Told>,
        events: keeper::Events,
        condition: watch::Sender<Condition>,
    ) -> Council {
        Council {
            fresh: vec![None; whole.replicas().len()].into(),
            whole: Arc::downgrade(whole),
            stop: whole.stop.clone(),
            heard,
            events,
            condition,
            speaker: None,
            saving: None,
        }
    }

    /// Run until the upstream is stopped.
    pub async fn run(mut self) {
        loop {
            let told = tokio::select! {
                told = self.heard.recv() => told,
                () = self.stop.cancelled() => None,
            };
            let (Some(told), Some(whole)) = (told, self.whole.upgrade()) else {
                self.condition.send_replace(Condition::new(State::Retired, ""));
                // Nobody must be kept waiting for a word that nobody hears.
                return;
            };
            let of = |replica: &Arc<Upstream>| replica.incarnation == told.incarnation;
            let Some(number) = whole.replicas().iter().position(of) else { continue };
            match told.event {
                Event::Fresh(slice) => self.fresh(&whole, number, slice, told.done).await,
                Event::Stale(why) => self.stale(&whole, number, why).await,
                Event::Changed => self.changed(&whole).await,
            }
        }
    }

    async fn fresh(
        &mut self,
        whole: &Upstream,
        number: usize,
        slice: Arc<Slice>,
        done: Option<oneshot::Sender<()>>,
    ) {
        let before = self.fresh[number].replace(slice.clone());
        let speaks = *self.speaker.get_or_insert(number) == number;
        if speaks {
            self.speak(whole, slice, done).await;
            return;
        }
        let shown = self.speaker.and_then(|speaker| self.fresh[speaker].as_ref());
        let differs = |a: &Slice, b: &Slice| {
            ListKind::ALL.iter().any(|kind| a.list(*kind).digest != b.list(*kind).digest)
        };
        // Once for each state that it is in.
        if shown.is_some_and(|shown| differs(shown, &slice))
            && before.is_none_or(|before| differs(&before, &slice))
        {
            tracing::warn!(upstream = %whole.name, replica = number + 1,
                shown = self.speaker.map(|speaker| speaker + 1),
                "the replica offers other things than the one whose catalog is shown");
        }
    }

    async fn stale(&mut self, whole: &Upstream, number: usize, why: Arc<str>) {
        self.fresh[number] = None;
        if self.speaker.is_some_and(|speaker| speaker != number) {
            return;
        }
        self.speaker = self.fresh.iter().position(Option::is_some);
        if let Some(speaker) = self.speaker {
            tracing::info!(upstream = %whole.name, replica = speaker + 1,
                "the catalog of another replica is shown");
            let slice = self.fresh[speaker].clone().expect("it is fresh");
            self.speak(whole, slice, None).await;
            return;
        }
        let starting = |replica: &Arc<Upstream>| replica.condition().state == State::Starting;
        // One that is still starting may have more to say.
        if !whole.replicas().iter().any(starting) {
            self.tell(whole, Event::Stale(why), None).await;
        }
    }

    async fn speak(
        &mut self,
        whole: &Upstream,
        slice: Arc<Slice>,
        done: Option<oneshot::Sender<()>>,
    ) {
        whole.lists_confirmed(&slice);
        self.tell(whole, Event::Fresh(slice.clone()), done).await;
        let (dir, config) = (&whole.connector.site.state_dir, whole.config());
        keeper::save(&mut self.saving, dir, &config, slice).await;
    }

    async fn changed(&mut self, whole: &Upstream) {
        let all: Vec<_> = whole.replicas().iter().map(|replica| replica.condition()).collect();
        let mut now = merged(&all, self.speaker);
        let before = self.condition.borrow().clone();
        if before.state == now.state {
            now.since = before.since;
        }
        self.condition.send_replace(now);
        self.tell(whole, Event::Changed, None).await;
    }

    async fn tell(&self, whole: &Upstream, event: Event, done: Option<oneshot::Sender<()>>) {
        if whole.retiring.load(Ordering::Relaxed) {
            return;
        }
        let (name, incarnation) = (whole.name.clone(), whole.incarnation);
        let told = self.events.send(Told { name, incarnation, event, done });
        // Whoever stops it may be the one who does not listen any more.
        tokio::select! {
            _ = told => {}
            () = self.stop.cancelled() => {}
        }
    }
}

/// The condition of an upstream whose replicas are in these.
fn merged(all: &[Condition], speaker: Option<usize>) -> Condition {
    let count = |state: State| all.iter().filter(|c| c.state == state).count();
    let first = |state: State| all.iter().find(|c| c.state == state);
    if let Some(ready) = first(State::Ready) {
        let mut now = Condition::new(State::Ready, "");
        let spoken = speaker.and_then(|n| all[n].link.clone());
        now.link = spoken.or_else(|| ready.link.clone());
        let serving = count(State::Ready);
        if serving < all.len() {
            now.why = format!("{serving} of {} replicas can be reached", all.len()).into();
        }
        return now;
    }
    if first(State::Starting).is_some() {
        return Condition::starting();
    }
    let Some(down) = first(State::Down) else {
        // Dormant or retired: what one is they all are.
        return all.first().cloned().unwrap_or_else(Condition::starting);
    };
    let mut now = Condition::new(State::Down, down.why.clone());
    now.cause = down.cause.clone();
    now.next_try = all.iter().filter_map(|c| c.next_try).min();
    let oldest = all.iter().map(|c| c.since).min();
    now.since = oldest.unwrap_or_else(SystemTime::now);
    now
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_that_serves_is_enough() {
        let of = |states: &[State]| {
            let all: Vec<_> = states.iter().map(|s| Condition::new(*s, s.as_str())).collect();
            let now = merged(&all, None);
            format!("{}: {}", now.state.as_str(), now.why)
        };
        use State::{Dormant, Down, Ready, Retired, Starting};
        assert_eq!(of(&[Ready, Ready]), "ready: ");
        assert_eq!(of(&[Down, Ready, Starting]), "ready: 1 of 3 replicas can be reached");
        assert_eq!(of(&[Down, Starting]), "starting: ");
        assert_eq!(of(&[Down, Down]), "down: down");
        assert_eq!(of(&[Dormant, Dormant]), "dormant: dormant");
        assert_eq!(of(&[Retired, Retired]), "retired: retired");
    }
}
