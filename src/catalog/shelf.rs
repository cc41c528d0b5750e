//! Pages of lists that are kept ready. Views that show the same share them, also those of the
//! catalogs before and after; they go with the last such view.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crate::call::Form;
use crate::protocol::method::ListKind;
use crate::protocol::prepared::Prepared;

/// Most bytes of pages that are kept: a hundred views of six hundred tools each that are all
/// different. What does not fit is made anew for each request.
const KEPT_MAX: usize = 64 << 20;

/// What pages look like follows from this.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub kind: ListKind,
    /// Of the items and their order.
    pub digest: [u8; 32],
    /// What is said of the upstreams' state.
    pub degraded: Option<String>,
    /// Items in a page.
    pub size: usize,
}

/// All kept pages.
#[derive(Default)]
pub(super) struct Shelf {
    pages: Mutex<HashMap<Key, Weak<Pages>>>,
    kept: Arc<AtomicUsize>,
}

/// The pages of one list, in both forms, each made when first asked for.
pub(super) struct Pages {
    pub size: usize,
    // `None`: there was no room for it.
    made: Vec<[OnceLock<Option<Prepared>>; 2]>,
    // Of all pages, and of these.
    kept: Arc<AtomicUsize>,
    own: AtomicUsize,
}

impl Shelf {
    /// The pages of a list of so many items, which another view may have already.
    pub fn pages(&self, key: Key, items: usize) -> Arc<Pages> {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = pages.get(&key).and_then(Weak::upgrade) {
            return there;
        }
        pages.retain(|_, old| old.strong_count() > 0);
        let count = items.div_ceil(key.size).max(1);
        let new = Arc::new(Pages {
            size: key.size,
            made: (0..count).map(|_| Default::default()).collect(),
            kept: self.kept.clone(),
            own: AtomicUsize::default(),
        });
        pages.insert(key, Arc::downgrade(&new));
        new
    }
}

impl Pages {
    /// One page; `make` makes it.
    pub fn get(&self, number: usize, form: Form, make: impl Fn() -> Prepared) -> Prepared {
        let mut fresh = None;
        let kept = self.made[number][usize::from(form == Form::Canonical)].get_or_init(|| {
            let made = make();
            let kept = self.has_room(made.size()).then(|| made.clone());
            fresh = Some(made);
            kept
        });
        kept.clone().or(fresh).unwrap_or_else(make)
    }

    fn has_room(&self, size: usize) -> bool {
        if self.kept.fetch_add(size, Ordering::Relaxed) + size > KEPT_MAX {
            self.kept.fetch_sub(size, Ordering::Relaxed);
            return false;
        }
        self.own.fetch_add(size, Ordering::Relaxed);
        true
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.kept.fetch_sub(*self.own.get_mut(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(mark: u8) -> Key {
        Key { kind: ListKind::Tools, digest: [mark; 32], degraded: None, size: 10 }
    }

    fn of(size: usize) -> Prepared {
        Prepared::new(vec![b' '; size])
    }

    #[test]
    fn lists_that_look_the_same_share_their_pages() {
        let shelf = Shelf::default();
        let (a, b) = (shelf.pages(key(1), 25), shelf.pages(key(1), 25));
        assert!(Arc::ptr_eq(&a, &b));
        assert_eq!(a.made.len(), 3);
        let others =
            [key(2), Key { size: 7, ..key(1) }, Key { degraded: Some("x".into()), ..key(1) }]
                .map(|other| shelf.pages(other, 25));
        assert!(!others.iter().any(|other| Arc::ptr_eq(&a, other)));
        assert_eq!(shelf.pages.lock().expect("nobody panicked").len(), 4);
        drop((a, b, others));
        let _c = shelf.pages(key(3), 1);
        assert_eq!(shelf.pages.lock().expect("nobody panicked").len(), 1, "the others are gone");
    }

    #[test]
    fn what_does_not_fit_is_made_each_time_until_there_is_room() {
        let shelf = Shelf::default();
        let large = shelf.pages(key(1), 1);
        large.get(0, Form::Plain, || of(KEPT_MAX - 100));
        let small = shelf.pages(key(2), 20);
        let made = AtomicUsize::default();
        let make = || {
            made.fetch_add(1, Ordering::Relaxed);
            of(200)
        };
        for _ in 0..3 {
            assert_eq!(small.get(0, Form::Plain, make), of(200));
        }
        assert_eq!(made.load(Ordering::Relaxed), 3);
        drop(large);
        for _ in 0..3 {
            assert_eq!(small.get(1, Form::Plain, make), of(200));
        }
        assert_eq!(made.load(Ordering::Relaxed), 4);
        drop(small);
        assert_eq!(shelf.kept.load(Ordering::Relaxed), 0);
    }
}
