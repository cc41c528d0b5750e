//! Work that takes a processor for milliseconds: reading and joining long lists.

use tokio::runtime::{Handle, RuntimeFlavor};

/// So many bytes are read in a fraction of a millisecond: not worth another thread.
const SMALL: usize = 64 << 10;

/// Do what so many bytes take without holding up calls: whatever else this thread would have to do
/// is done by another meanwhile. Each thread that has done work holds some memory from then on, so
/// what is small is done here.
pub fn aside_from<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    if bytes <= SMALL { work() } else { aside(work) }
}

/// Do it without holding up calls, however long it takes. A runtime of one thread, as in tests, has
/// no other.
pub fn aside<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    // One worker, which is busy until another task has run: that needs another thread.
    #[test]
    fn the_only_worker_goes_on() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        runtime.block_on(async {
            let heavy = |bytes: usize, patience: Duration| async move {
                let (tx, rx) = mpsc::channel();
                tokio::spawn(async move { tx.send(()) });
                aside_from(bytes, || rx.recv_timeout(patience))
            };
            let large = tokio::spawn(heavy(SMALL + 1, Duration::from_secs(60)));
            large.await.unwrap().unwrap();
            // Nobody else works while it is at something small.
            let small = tokio::spawn(heavy(SMALL, Duration::from_millis(50)));
            small.await.unwrap().unwrap_err();
        });
    }

    #[tokio::test]
    async fn one_thread_does_it_itself() {
        assert_eq!(aside(|| 7), 7);
    }
}
