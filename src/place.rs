//! A future's place on the heap.

use std::pin::Pin;

/// A future on the heap that is made where it stays. [`Box::pin`] takes one that was made elsewhere,
/// and copies all the room that it may need one day, some kilobytes of a call's, with nothing in
/// them yet.
#[inline]
pub fn in_place<F: Future>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    // First the place: what may fail while there is a future already would have to know where it
    // is, to drop it.
    let place = Box::new_uninit();
    Box::into_pin(Box::write(place, make()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_the_future_that_was_made() {
        let text = "a".to_owned();
        assert_eq!(in_place(|| async { text + "b" }).await, "ab");
    }
}
