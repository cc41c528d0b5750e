//! What the gateway asks the host, until it is answered.
//!
//! The host sees ids of ours. A gateway that was started again numbers its questions anew, and an
//! answer to an earlier one must not be taken for the answer to another that got the same number.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;

/// Most questions that wait for the host: a person answers them one by one.
pub const QUESTIONS_MAX: usize = 256;

/// On whose stream a question came: the id of a request, or [`STREAM`].
pub type Asker = u64;

/// The session's own stream.
pub const STREAM: Asker = 0;

#[derive(Default)]
struct Book {
    minted: u64,
    open: HashMap<Bytes, (Asker, Bytes)>,
}

/// The questions of one host.
#[derive(Default)]
pub struct Questions(Mutex<Book>);

impl Questions {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().expect("no panic while held")
    }

    /// An id for a question that the gateway calls `raw`; `None` if too many are open.
    pub fn open(&self, asker: Asker, raw: Bytes) -> Option<Bytes> {
        let mut book = self.lock();
        if book.open.len() >= QUESTIONS_MAX {
            return None;
        }
        book.minted += 1;
        let minted = Bytes::from(format!("\"weir-{}\"", book.minted));
        book.open.insert(minted.clone(), (asker, raw));
        Some(minted)
    }

    /// The host answers: what the gateway calls the question, if it still waits.
    pub fn answered(&self, minted: &[u8]) -> Option<Bytes> {
        self.lock().open.remove(minted).map(|(_, raw)| raw)
    }

    /// The gateway takes a question back: what the host calls it.
    pub fn withdrawn(&self, asker: Asker, raw: &[u8]) -> Option<Bytes> {
        let mut book = self.lock();
        let found = book.open.iter().find(|(_, (by, theirs))| *by == asker && *theirs == raw);
        let minted = found.map(|(minted, _)| minted.clone())?;
        book.open.remove(&minted);
        Some(minted)
    }

    /// A stream has ended for good, and what was asked on it with it.
    pub fn forget(&self, asker: Asker) -> Vec<Bytes> {
        let mut gone = Vec::new();
        self.lock().open.retain(|minted, (by, _)| {
            if *by == asker {
                gone.push(minted.clone());
            }
            *by != asker
        });
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_goes_to_the_question_it_was_given_to_and_no_other() {
        let questions = Questions::default();
        let old = questions.open(7, "\"q1\"".into()).unwrap();
        assert_eq!(questions.forget(7), std::slice::from_ref(&old));
        // The gateway came back and numbers anew.
        let new = questions.open(8, "\"q1\"".into()).unwrap();
        assert_ne!(old, new);
        assert_eq!(questions.answered(&old), None);
        assert_eq!(questions.answered(&new).unwrap(), "\"q1\"");
        assert_eq!(questions.answered(&new), None, "it is answered once");
    }

    #[test]
    fn a_question_is_taken_back_by_whom_it_came_from() {
        let questions = Questions::default();
        let minted = questions.open(STREAM, "3".into()).unwrap();
        assert_eq!(questions.withdrawn(9, b"3"), None);
        assert_eq!(questions.withdrawn(STREAM, b"3"), Some(minted));
        assert!(questions.forget(STREAM).is_empty());
    }

    #[test]
    fn their_number_is_bounded() {
        let questions = Questions::default();
        assert!((0..QUESTIONS_MAX).all(|_| questions.open(1, "1".into()).is_some()));
        assert_eq!(questions.open(1, "1".into()), None);
    }
}
