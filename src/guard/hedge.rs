//! A second attempt beside a slow first one, of a call that changes nothing.
//!
//! The one that answers first is the call's answer, and the other is dropped, by which it is
//! cancelled. The second is made once for each call and only if it can be made at once: with a
//! place, tokens and an admission of its own, and from the budget of retries, so that it adds no
//! load just when everything is slow. One that would have to wait is no help, and would stand in
//! the way of calls.
//!
//! Decided: each of the two that ends has its own verdict of the breaker, and the one that is
//! dropped has none. It may have been about to answer; and an upstream whose callers were all
//! answered in time is not to be kept from them.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;

use super::breaker::Admission;
use super::concurrency::Permit;
use super::{Ask, Deadline, Done, Elapsed, Guard, Signal, Spent};
use crate::failure::Fault;

/// When a call gets a second attempt beside the first. The guard and the attempts share it.
#[derive(Debug)]
pub struct Hedge {
    after: Duration,
    // Numbers of attempts, from 1; 0: none.
    beside: AtomicU32,
    alone: AtomicU32,
    answered: AtomicU32,
}

impl Hedge {
    /// When the first attempt has taken so long.
    pub fn new(after: Duration) -> Hedge {
        let none = || AtomicU32::new(0);
        Hedge { after, beside: none(), alone: none(), answered: none() }
    }

    /// Whether this attempt is the one that is made beside the first.
    pub fn is_beside(&self, number: u32) -> bool {
        number != 0 && self.beside.load(Ordering::Relaxed) == number
    }

    /// What this attempt does from now on must not happen twice: no other is begun beside it, and
    /// one that is under way is dropped.
    pub fn goes_alone(&self, number: u32) {
        self.alone.store(number, Ordering::Relaxed);
    }

    /// Whether an attempt that was begun later than this one answered before it.
    pub fn is_overtaken(&self, number: u32) -> bool {
        self.answered.load(Ordering::Relaxed) > number
    }

    fn alone(&self) -> u32 {
        self.alone.load(Ordering::Relaxed)
    }
}

/// One of the two.
struct Side<'g, F> {
    number: u32,
    work: Pin<Box<F>>,
    admission: Admission<'g>,
    // The first one's is the call's.
    _place: Option<Permit<'g>>,
}

/// How an attempt ended, and the admission that it counts for.
pub(super) type Ended<'g, T> = (Result<Result<Done<T>, Fault>, Elapsed>, Admission<'g>);

impl Guard {
    /// Make the first attempt, which has `admission`, and another one beside it if it is slow.
    pub(super) async fn hedged<'g, T, F: Future<Output = Result<Done<T>, Fault>>>(
        &'g self,
        (ask, hedge): (&Ask<'_>, &Hedge),
        deadline: &Deadline,
        attempt: &mut impl FnMut(u32) -> F,
        admission: Admission<'g>,
        spent: &mut Spent,
    ) -> Ended<'g, T> {
        let number = spent.attempts;
        let mut work = Box::pin(attempt(number));
        let early = tokio::select! {
            biased;
            ended = deadline.run(&mut work) => Some(ended),
            () = tokio::time::sleep(hedge.after) => None,
        };
        if let Some(ended) = early {
            return (ended, admission);
        }
        let first = Side { number, work, admission, _place: None };
        let second = if hedge.alone() == 0 { self.beside(ask, deadline, spent) } else { None };
        let second = second.map(|(place, admission)| {
            spent.attempts += 1;
            let number = spent.attempts;
            hedge.beside.store(number, Ordering::Relaxed);
            tracing::debug!(
                upstream = &*self.upstream,
                attempt = number,
                after_ms = hedge.after.as_millis() as u64,
                "a slow call to {} is made a second time beside the first",
                self.upstream,
            );
            Side { number, work: Box::pin(attempt(number)), admission, _place: Some(place) }
        });
        let made = second.is_some();
        let ended = self.race([Some(first), second], hedge, deadline).await;
        if made {
            self.retry.hedged(hedge.is_beside(hedge.answered.load(Ordering::Relaxed)));
        }
        ended
    }

    async fn race<'g, T, F: Future<Output = Result<Done<T>, Fault>>>(
        &'g self,
        mut sides: [Option<Side<'g, F>>; 2],
        hedge: &Hedge,
        deadline: &Deadline,
    ) -> Ended<'g, T> {
        loop {
            let ended = deadline.run(poll_fn(|cx| poll(&mut sides, hedge, cx))).await;
            let Ok((which, mut end)) = ended else {
                // One call that was too slow, and not two.
                let side = sides.into_iter().flatten().next().expect("one of them is under way");
                return (Err(Elapsed), side.admission);
            };
            let side = sides[which].take().expect("it ended just now");
            let answered =
                matches!(&end, Ok(Done { signal: Signal::Fine | Signal::Broken(_), .. }));
            if answered || sides.iter().all(Option::is_none) {
                if answered {
                    // Before the other one is dropped, which may want to know why.
                    hedge.answered.store(side.number, Ordering::Relaxed);
                }
                return (Ok(end), side.admission);
            }
            // The other one may do better.
            match &mut end {
                Err(fault) => {
                    self.failed(side.admission, fault);
                }
                Ok(Done { signal: Signal::Throttled(how_long), .. }) => {
                    self.throttled(*how_long);
                }
                Ok(_) => {}
            }
        }
    }

    // What a second attempt takes with it, if all of it is there now.
    fn beside<'g>(
        &'g self,
        ask: &Ask<'_>,
        deadline: &Deadline,
        spent: &mut Spent,
    ) -> Option<(Permit<'g>, Admission<'g>)> {
        let place = self.concurrency.acquire(deadline).now_or_never()?.ok()?;
        self.breaker.check().ok()?;
        if !self.retry.draw_beside() {
            return None;
        }
        let admission = self.admit(ask, deadline, spent).now_or_never()?.ok()?;
        Some((place, admission))
    }
}

// Both in one task, so that what one of them says of itself is known before the other goes on.
fn poll<T, F: Future<Output = T>>(
    sides: &mut [Option<Side<'_, F>>; 2],
    hedge: &Hedge,
    cx: &mut Context<'_>,
) -> Poll<(usize, T)> {
    for which in 0..2 {
        let Some(side) = &mut sides[which] else { continue };
        if let Poll::Ready(end) = side.work.as_mut().poll(cx) {
            return Poll::Ready((which, end));
        }
        if hedge.alone() == side.number {
            sides[1 - which] = None;
        }
    }
    Poll::Pending
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
