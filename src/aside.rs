//! Work that takes a processor for milliseconds: reading and joining long lists.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Do it without holding up calls: whatever else this thread would have to do is done by another
/// meanwhile. A runtime of one thread, as in tests, has no other.
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
            let heavy = tokio::spawn(async {
                let (tx, rx) = mpsc::channel();
                tokio::spawn(async move { tx.send(()) });
                aside(|| rx.recv_timeout(Duration::from_secs(60)))
            });
            heavy.await.unwrap().unwrap();
        });
    }

    #[tokio::test]
    async fn one_thread_does_it_itself() {
        assert_eq!(aside(|| 7), 7);
    }
}
