//! The requests of one connection that are under way, by the raw text of their ids.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::failure::Reason;

use super::refused::Refused;
use super::session::SESSION_CALLS_MAX;

struct Job {
    cancel: CancellationToken,
    // It goes on until it is ended: a stream of notices.
    endless: bool,
}

type Book = HashMap<Bytes, Job>;

/// The book of them. Clones share it.
#[derive(Clone, Default)]
pub struct Jobs(Arc<Mutex<Book>>);

/// A request's place in the book, given back when it has ended, however that came.
pub struct Place {
    book: Jobs,
    /// The raw id.
    pub id: Bytes,
    /// Set when nobody waits for the answer any more.
    pub cancel: CancellationToken,
}

impl Place {
    /// The request has no end of its own.
    pub fn endless(&self) {
        if let Some(job) = self.book.lock().get_mut(&self.id) {
            job.endless = true;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Ok(mut book) = self.book.0.lock() {
            book.remove(&self.id);
        }
    }
}

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().expect("no panic while held")
    }

    /// A place for a request.
    ///
    /// # Errors
    /// When there is no room, or one with this id is under way.
    pub fn register(&self, id: &Bytes) -> Result<Place, Refused> {
        let mut book = self.lock();
        if book.len() >= SESSION_CALLS_MAX {
            let text = "as many requests of this connection are under way as may be";
            return Err(Refused::new(Reason::Overloaded, text));
        }
        if book.contains_key(id) {
            let text = "a request with this id is already under way";
            return Err(Refused::new(Reason::DuplicateId, text));
        }
        // Its own bytes: it may stay for long, and the message need not.
        let (id, cancel) = (Bytes::copy_from_slice(id), CancellationToken::new());
        book.insert(id.clone(), Job { cancel: cancel.clone(), endless: false });
        Ok(Place { book: self.clone(), id, cancel })
    }

    /// Nobody waits for this one any more.
    pub fn cancel(&self, id: &Bytes) {
        if let Some(job) = self.lock().get(id) {
            job.cancel.cancel();
        }
    }

    /// Nobody waits for any.
    pub fn cancel_all(&self) {
        self.lock().values().for_each(|job| job.cancel.cancel());
    }

    /// Nobody waits for those that have no end of their own.
    pub fn cancel_endless(&self) {
        self.lock().values().filter(|job| job.endless).for_each(|job| job.cancel.cancel());
    }

    /// Whether all have ended.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}
