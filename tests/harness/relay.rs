//! A TCP relay that breaks a connection behind a byte that a test names: of either direction,
//! counted from the moment it is told to, so that what comes before (handshakes, lists) is whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

/// How long a side that was told the end in good order is still read; then it is reset.
const GOODBYE: Duration = Duration::from_secs(2);
/// Most bytes passed at once. Both directions share a task, so one that is not read stops the
/// other; the messages of tests fit into what sockets hold.
const PIECE: usize = 16 << 10;
/// So many first bytes tell one connection from another.
const BEGINNING: usize = 4;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Request,
    Answer,
}

/// How a connection ends, on both of its sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// FIN; what still comes is read and thrown away.
    End,
    /// RST.
    Reset,
}

/// Where to break.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    pub way: Way,
    /// So many bytes still pass. With none the connection breaks when the first would.
    pub after: usize,
    pub how: How,
    /// Only a connection whose first request begins so, in four bytes at most; empty: any.
    pub only: &'static [u8],
}

/// The relay; it ends with the test.
pub struct Relay {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    open: AtomicUsize,
    broke: Notify,
    hang_up: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    armed: Option<Cut>,
    // How often it was told to break; a connection counts anew for each.
    turn: u64,
    breaks: usize,
    // Of what matches, since it was told.
    passed: usize,
    beginnings: Vec<Vec<u8>>,
}

impl Relay {
    pub async fn to(target: u16) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            open: AtomicUsize::new(0),
            broke: Notify::new(),
            hang_up: watch::Sender::new(()),
        });
        let inner = shared.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                inner.open.fetch_add(1, Ordering::SeqCst);
                let inner = inner.clone();
                tokio::spawn(async move {
                    if let Ok(far) = TcpStream::connect(("127.0.0.1", target)).await {
                        pass(near, far, &inner).await;
                    }
                    inner.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Relay { port, shared }
    }

    /// Break the first connection of which so many bytes have passed from now on. Once, then no
    /// more; what was said before is forgotten.
    pub fn arm(&self, cut: Cut) {
        let mut state = self.shared.lock();
        state.armed = Some(cut);
        state.turn += 1;
        state.passed = 0;
    }

    /// Break nothing any more. Whether something had been broken since it was told to.
    pub fn disarm(&self) -> bool {
        self.shared.lock().armed.take().is_none()
    }

    /// Whether a break is still to come.
    pub fn is_armed(&self) -> bool {
        self.shared.lock().armed.is_some()
    }

    /// Resolves when nothing is to be broken any more.
    pub async fn broke(&self) {
        loop {
            let broke = self.shared.broke.notified();
            if !self.is_armed() {
                return;
            }
            broke.await;
        }
    }

    /// How often something was broken.
    pub fn breaks(&self) -> usize {
        self.shared.lock().breaks
    }

    /// Bytes that have passed since it was told to break, of what it was told.
    pub fn passed(&self) -> usize {
        self.shared.lock().passed
    }

    /// How many connections have begun so.
    pub fn begun(&self, with: &[u8]) -> usize {
        self.shared.lock().beginnings.iter().filter(|b| b.starts_with(with)).count()
    }

    /// End all connections in good order, and wait until they are gone.
    pub async fn hang_up(&self) {
        self.shared.hang_up.send_replace(());
        while self.shared.open.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    // Bytes are about to pass: how many still may, and how it ends then.
    fn count(&self, one: &mut Counted, way: Way, length: usize) -> Option<(usize, How)> {
        let mut state = self.lock();
        let cut = state.armed.filter(|c| c.way == way && one.beginning.starts_with(c.only))?;
        if one.turn != state.turn {
            (one.turn, one.passed) = (state.turn, 0);
        }
        let left = cut.after - one.passed;
        if left.max(1) > length {
            one.passed += length;
            state.passed += length;
            return None;
        }
        state.armed = None;
        state.breaks += 1;
        Some((left, cut.how))
    }
}

// What one connection has passed in a turn.
#[derive(Default)]
struct Counted {
    beginning: Vec<u8>,
    turn: u64,
    passed: usize,
}

async fn pass(mut near: TcpStream, mut far: TcpStream, shared: &Shared) {
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let mut one = Counted::default();
    let mut hang_up = shared.hang_up.subscribe();
    let (mut out, mut back) = (vec![0; PIECE], vec![0; PIECE]);
    let (mut asks, mut answers) = (true, true);
    while asks || answers {
        let (way, got) = tokio::select! {
            _ = hang_up.changed() => {
                end(&mut near, &mut far).await;
                return;
            }
            got = near.read(&mut out), if asks => (Way::Request, got),
            got = far.read(&mut back), if answers => (Way::Answer, got),
        };
        // One side is gone: so is the other.
        let Ok(length) = got else { return };
        let (bytes, to, open) = match way {
            Way::Request => (&out[..length], &mut far, &mut asks),
            Way::Answer => (&back[..length], &mut near, &mut answers),
        };
        if length == 0 {
            *open = false;
            let _ = to.shutdown().await;
            continue;
        }
        if one.beginning.is_empty() && way == Way::Request {
            one.beginning = bytes[..length.min(BEGINNING)].to_owned();
            shared.lock().beginnings.push(one.beginning.clone());
        }
        let Some((left, how)) = shared.count(&mut one, way, length) else {
            if to.write_all(bytes).await.is_err() {
                return;
            }
            continue;
        };
        let _ = to.write_all(&bytes[..left]).await;
        shared.broke.notify_waiters();
        match how {
            How::End => end(&mut near, &mut far).await,
            How::Reset => {
                let _ = (near.set_zero_linger(), far.set_zero_linger());
            }
        }
        return;
    }
}

// Told on both sides; what they have not read yet must still reach them, so no reset follows at
// once, as it would where something comes to a socket that is gone.
async fn end(near: &mut TcpStream, far: &mut TcpStream) {
    let _ = (near.shutdown().await, far.shutdown().await);
    let (mut out, mut back) = (vec![0; PIECE], vec![0; PIECE]);
    let rest = async {
        tokio::join!(async { while near.read(&mut out).await.is_ok_and(|n| n > 0) {} }, async {
            while far.read(&mut back).await.is_ok_and(|n| n > 0) {}
        },);
    };
    let _ = tokio::time::timeout(GOODBYE, rest).await;
}

/// What the relay itself does.
#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    // Both ends of a connection through the relay.
    async fn ends(relay: &Relay, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let near = TcpStream::connect(("127.0.0.1", relay.port)).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    async fn start() -> (Relay, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        (Relay::to(listener.local_addr().unwrap().port()).await, listener)
    }

    // All that comes, and how it ends.
    async fn rest(stream: &mut TcpStream) -> (Vec<u8>, How) {
        let mut all = Vec::new();
        match stream.read_to_end(&mut all).await {
            Ok(_) => (all, How::End),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::ConnectionReset);
                (all, How::Reset)
            }
        }
    }

    async fn say(from: &mut TcpStream, to: &mut TcpStream, text: &[u8]) {
        from.write_all(text).await.unwrap();
        let mut got = vec![0; text.len()];
        to.read_exact(&mut got).await.unwrap();
        assert_eq!(got, text);
    }

    #[tokio::test]
    async fn so_many_bytes_pass_from_then_on_and_no_more() {
        for how in [How::End, How::Reset] {
            for way in [Way::Request, Way::Answer] {
                for after in 0..=5 {
                    let (relay, listener) = start().await;
                    let (mut near, mut far) = ends(&relay, &listener).await;
                    say(&mut near, &mut far, b"before").await;
                    say(&mut far, &mut near, b"both ways").await;
                    relay.arm(Cut { way, after, how, only: b"" });
                    let (from, to) = match way {
                        Way::Request => (&mut near, &mut far),
                        Way::Answer => (&mut far, &mut near),
                    };
                    // The other direction does not count.
                    say(to, from, b"something else").await;
                    from.write_all(b"12").await.unwrap();
                    let more = async {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        from.write_all(b"345").await.is_err()
                    };
                    let ((got, ended), refused) = tokio::join!(rest(to), more);
                    let wanted = &b"12345"[..after];
                    assert_eq!((got.as_slice(), ended), (wanted, how), "{way:?} {after}");
                    // Who is told of a reset when it writes is not told again when it reads.
                    let ended = if refused { How::Reset } else { rest(from).await.1 };
                    assert_eq!(ended, how, "{way:?} {after}");
                    assert!(relay.disarm());
                    assert_eq!(relay.breaks(), 1);
                }
            }
        }
    }

    #[tokio::test]
    async fn it_breaks_one_connection_of_the_kind_that_is_meant() {
        let (relay, listener) = start().await;
        let (mut get, mut get_far) = ends(&relay, &listener).await;
        say(&mut get, &mut get_far, b"GET 1").await;
        let (mut post, mut post_far) = ends(&relay, &listener).await;
        say(&mut post, &mut post_far, b"POST 1").await;
        relay.arm(Cut { way: Way::Request, after: 3, how: How::End, only: b"POST" });
        say(&mut get, &mut get_far, b"more than that").await;
        assert_eq!(relay.passed(), 0);
        say(&mut post, &mut post_far, b"..").await;
        assert_eq!((relay.is_armed(), relay.passed()), (true, 2));
        // Each counts for itself.
        let (mut other, mut other_far) = ends(&relay, &listener).await;
        say(&mut other, &mut other_far, b"PO").await;
        post.write_all(b"..").await.unwrap();
        relay.broke().await;
        assert_eq!(rest(&mut post_far).await, (b".".to_vec(), How::End));
        say(&mut get, &mut get_far, b"still there").await;
        say(&mut other, &mut other_far, b"and there").await;
        assert_eq!((relay.begun(b"GET "), relay.begun(b"PO"), relay.breaks()), (1, 2, 1));
    }

    #[tokio::test]
    async fn what_is_not_reached_is_not_broken() {
        let (relay, listener) = start().await;
        let (mut near, mut far) = ends(&relay, &listener).await;
        relay.arm(Cut { way: Way::Request, after: 9, how: How::Reset, only: b"" });
        say(&mut near, &mut far, b"12345678").await;
        assert!(!relay.disarm());
        say(&mut near, &mut far, b"9 and more").await;
        let hung_up = async { assert_eq!(rest(&mut near).await.1, How::End) };
        let far_end = async { assert_eq!(rest(&mut far).await.1, How::End) };
        // Whoever holds an end has to let it go.
        let hang_up = tokio::time::timeout(GOODBYE * 5, relay.hang_up());
        let (gone, (), ()) = tokio::join!(hang_up, hung_up, far_end);
        gone.unwrap();
        assert_eq!(relay.breaks(), 0);
    }
}
