//! What a caller hears while its call runs, on the way from whoever says it to the call's edge.
//!
//! Decided: a queue of our own, and not the runtime's (2026-11-21). Most calls say nothing, and
//! paid a kilobyte for the room; and since the end of the work is the end of its words, each call
//! woke its own task once more to find that out. This one holds nothing until something is said,
//! and who looks at the work first is not woken by what the work says.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{NOTICES_MAX, Offer};

/// What a caller that cannot be asked hears before the terminal.
#[derive(Debug)]
pub enum Heard {
    /// A whole notification message.
    Notice(Bytes),
    /// The answer comes, if the caller takes it in pieces.
    Offer(Offer),
}

/// Where words are put. Cloning shares the way; it ends with the last of them.
#[derive(Debug)]
pub struct Teller(Arc<Way>);

/// Where they come out, in their order. Dropping it says that nobody listens any more.
#[derive(Debug)]
pub struct Listener(Arc<Way>);

#[derive(Debug, Default)]
struct Way {
    now: Mutex<Now>,
    // Told when a place has become free, or the listener has gone.
    room: Notify,
}

#[derive(Debug, Default)]
struct Now {
    waiting: VecDeque<Heard>,
    tellers: usize,
    // A listener that has gone hears nothing.
    gone: bool,
    // Words that found no room.
    dropped: u64,
    listens: Option<Waker>,
}

/// A way for the words of one call: [`NOTICES_MAX`] of them can wait.
pub fn way() -> (Teller, Listener) {
    let now = Mutex::new(Now { tellers: 1, ..Now::default() });
    let way = Arc::new(Way { now, room: Notify::new() });
    (Teller(way.clone()), Listener(way))
}

impl Way {
    fn now(&self) -> MutexGuard<'_, Now> {
        // Nothing in here panics while it is held; and what one left would still be in order.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Teller {
    /// Say a word. Never waits.
    ///
    /// # Errors
    /// The word, if there is no room for it or nobody listens.
    pub fn try_send(&self, word: Heard) -> Result<(), Heard> {
        let mut now = self.0.now();
        if now.gone || now.waiting.len() >= NOTICES_MAX {
            return Err(word);
        }
        now.waiting.push_back(word);
        let listens = now.listens.take();
        drop(now);
        if let Some(listens) = listens {
            listens.wake();
        }
        Ok(())
    }

    /// Say a word as soon as there is room for it.
    ///
    /// # Errors
    /// The word, if nobody listens.
    pub async fn send(&self, word: Heard) -> Result<(), Heard> {
        let mut word = word;
        loop {
            let room = self.0.room.notified();
            match self.try_send(word) {
                Ok(()) => return Ok(()),
                Err(refused) if self.0.now().gone => return Err(refused),
                Err(refused) => word = refused,
            }
            room.await;
        }
    }

    /// The same, where what finds no room is counted and dropped.
    pub fn tell(&self, word: Heard) {
        if self.try_send(word).is_err() {
            self.0.now().dropped += 1;
        }
    }

    /// How many [`Teller::tell`] dropped.
    pub fn dropped(&self) -> u64 {
        self.0.now().dropped
    }
}

impl Clone for Teller {
    fn clone(&self) -> Teller {
        self.0.now().tellers += 1;
        Teller(self.0.clone())
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        let listens = {
            let mut now = self.0.now();
            now.tellers -= 1;
            if now.tellers > 0 {
                return;
            }
            now.listens.take()
        };
        if let Some(listens) = listens {
            listens.wake();
        }
    }
}

impl Listener {
    /// The next word; `None` when there is no more to come.
    pub async fn recv(&mut self) -> Option<Heard> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The same.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Heard>> {
        let mut now = self.0.now();
        if let Some(word) = now.waiting.pop_front() {
            drop(now);
            self.0.room.notify_one();
            return Poll::Ready(Some(word));
        }
        if now.tellers == 0 {
            return Poll::Ready(None);
        }
        match &mut now.listens {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Be woken by no word until [`Listener::poll_recv`] is called again.
    pub fn look_away(&mut self) {
        self.0.now().listens = None;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let waiting = {
            let mut now = self.0.now();
            now.gone = true;
            std::mem::take(&mut now.waiting)
        };
        self.0.room.notify_waiters();
        // Who made an offer hears that it is declined; not while the lock is held.
        drop(waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::task::Wake;

    fn word(n: usize) -> Heard {
        Heard::Notice(n.to_string().into())
    }

    fn text(heard: Option<Heard>) -> Option<String> {
        match heard? {
            Heard::Notice(bytes) => String::from_utf8(bytes.to_vec()).ok(),
            Heard::Offer(_) => None,
        }
    }

    #[derive(Default)]
    struct Woken(AtomicU64);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn words_come_in_order_and_the_last_teller_ends_them() {
        let (teller, mut listener) = way();
        let other = teller.clone();
        for n in 0..NOTICES_MAX {
            teller.tell(word(n));
        }
        teller.tell(word(1000));
        assert_eq!(teller.dropped(), 1);
        assert!(other.try_send(word(1001)).is_err());
        drop(teller);
        for n in 0..NOTICES_MAX {
            assert_eq!(text(listener.recv().await), Some(n.to_string()));
        }
        let last = tokio::spawn(async move { listener.recv().await.is_none() });
        tokio::task::yield_now().await;
        drop(other);
        assert!(last.await.expect("it ends"));
    }

    #[tokio::test]
    async fn who_waits_for_room_gets_it_or_hears_that_nobody_listens() {
        let (teller, mut listener) = way();
        for n in 0..NOTICES_MAX {
            teller.tell(word(n));
        }
        let waits = tokio::spawn(async move {
            let first = teller.send(word(7000)).await.is_ok();
            (first, teller.send(word(7001)).await.is_err())
        });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        for _ in 0..NOTICES_MAX {
            assert!(listener.recv().await.is_some());
            tokio::task::yield_now().await;
        }
        assert_eq!(text(listener.recv().await), Some("7000".to_owned()));
        drop(listener);
        // The second word came while the listener was there, or found it gone.
        let (first, _) = waits.await.expect("it ends");
        assert!(first);
    }

    #[test]
    fn who_looks_away_is_not_woken() {
        let (teller, mut listener) = way();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        assert!(listener.poll_recv(&mut cx).is_pending());
        listener.look_away();
        teller.tell(word(1));
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        assert!(listener.poll_recv(&mut cx).is_ready());
        assert!(listener.poll_recv(&mut cx).is_pending());
        drop(teller);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(matches!(listener.poll_recv(&mut cx), Poll::Ready(None)));
    }
}
