//! Two callers at the same upstreams at the same time: everything that an upstream says carries
//! the word of whom it is for, over every transport, and nothing crosses.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../matrix/axes.rs"]
#[allow(dead_code)]
mod axes;
#[path = "../matrix/caller.rs"]
#[allow(dead_code)]
mod caller;
#[path = "../matrix/doors.rs"]
mod doors;
#[path = "../harness/mod.rs"]
mod harness;
mod peer;
mod side;
#[path = "../matrix/text.rs"]
#[allow(dead_code)]
mod text;
#[path = "../matrix/ways.rs"]
mod ways;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use weirkeeper::config::secret::{ConsumerKey, Secret, new_key};
use weirkeeper::protocol::revision::Revision;

use axes::{Carrier, Endpoint};
use harness::{PATIENCE, Weir};
use peer::Peer;
use side::Side;

const OLD: Revision = Revision::R2025_11_25;
const NEW: Revision = Revision::R2026_07_28;

const fn over(revision: Revision, carrier: Carrier) -> Endpoint {
    Endpoint { revision, carrier }
}

/// An upstream for each transport, of each of the two newest revisions that it carries.
const UPSTREAMS: [Endpoint; 7] = [
    over(OLD, Carrier::Stdio),
    over(OLD, Carrier::Http),
    over(OLD, Carrier::Sse),
    over(OLD, Carrier::WebSocket),
    over(NEW, Carrier::Stdio),
    over(NEW, Carrier::Http),
    over(NEW, Carrier::WebSocket),
];

/// Settings under which hundreds of calls at once are nothing out of the ordinary.
const GATEWAY: &str = "list_changed_debounce = \"50ms\"\nmax_calls = 4000";

/// One gateway at a time.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A gateway, its upstreams, and the keys of two consumers.
struct World {
    weir: Weir,
    peers: Vec<Arc<Peer>>,
    keys: [Secret; 2],
    isolation: &'static str,
    _turn: tokio::sync::MutexGuard<'static, ()>,
}

impl World {
    async fn new(isolation: &'static str) -> World {
        let turn = TURN.lock().await;
        let shared = isolation == "shared";
        let peers: Vec<_> = UPSTREAMS.into_iter().map(|at| Peer::new(at, shared)).collect();
        let mut toml = String::new();
        for peer in &peers {
            let section = doors::open(peer).await.replace("isolation = \"consumer\"\n", "");
            writeln!(toml, "{section}isolation = \"{isolation}\"").unwrap();
        }
        let keys = [new_key(), new_key()];
        let digest = |n: usize| ConsumerKey::of(keys[n].expose()).to_text();
        // The second consumer never sees the first of the changing tools.
        let denied: Vec<_> = peers.iter().map(|p| format!("\"{}__fresh\"", p.name())).collect();
        write!(
            toml,
            "[consumers.px]\nkey = {:?}\n[consumers.sales]\nkey = {:?}\nview = \"few\"\n\
             [views.few]\ndeny = [{}]\n",
            digest(0),
            digest(1),
            denied.join(",")
        )
        .unwrap();
        let weir = Weir::start(GATEWAY, &toml);
        let names: Vec<String> = peers.iter().map(|p| p.name()).collect();
        weir.ready(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        World { weir, peers, keys, isolation, _turn: turn }
    }

    // Two callers, and whose they are.
    async fn pair(&self, ends: [Endpoint; 2], consumers: [usize; 2]) -> [Side; 2] {
        let key = |n: usize| self.keys[consumers[n]].expose().to_owned();
        let url = self.weir.url.clone();
        let first = Side::connect("alpha", "debug", ends[0], url.clone(), key(0));
        let second = Side::connect("bravo", "error", ends[1], url, key(1));
        let (first, second) = tokio::join!(first, second);
        [first, second]
    }

    /// All that upstreams can say, to two callers at once.
    async fn play(&self, ends: [Endpoint; 2], consumers: [usize; 2]) {
        let mut sides = self.pair(ends, consumers).await;
        // Tasks come first: a listen request names them.
        for side in &mut sides {
            side.begin(&self.peers).await;
        }
        let foreign = [sides[1].tasks(), sides[0].tasks()];
        let distinct = consumers[0] != consumers[1];
        for (side, foreign) in sides.iter().zip(&foreign) {
            side.watch(&self.peers, if distinct { foreign } else { &[] }).await;
        }
        self.until("watched", |peer| {
            peer.watchers("file:///alpha") > 0 && peer.watchers("file:///bravo") > 0
        })
        .await;
        let ends = sides.iter().map(|side| side.rounds(&self.peers, self.isolation == "shared"));
        let calling = join_all(ends);
        tokio::pin!(calling);
        loop {
            tokio::select! {
                _ = &mut calling => break,
                () = tokio::time::sleep(Duration::from_millis(40)) => self.tell(),
            }
        }
        for _ in 0..5 {
            self.tell();
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        for (side, foreign) in sides.iter().zip(&foreign) {
            side.heard_its_own(&self.peers).await;
            if distinct {
                side.cannot_name(foreign).await;
            }
        }
        if self.isolation == "session" {
            self.roots(&sides).await;
        }
        if distinct {
            self.lists(&sides).await;
        }
        sides[0].heard_nothing_of("bravo");
        sides[1].heard_nothing_of("alpha");
        let faults: Vec<_> = self.peers.iter().flat_map(|peer| peer.faults()).collect();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    // What belongs to no call: of resources, of tasks, and what nobody may hear.
    fn tell(&self) {
        for peer in &self.peers {
            for uri in ["file:///alpha", "file:///bravo"] {
                peer.update(uri);
            }
            peer.tell_tasks();
            peer.stray();
        }
    }

    // Each session answers for its own conversation, outside of any call.
    async fn roots(&self, sides: &[Side]) {
        let old: Vec<&Side> = sides.iter().filter(|s| !s.is_modern()).collect();
        for side in &old {
            side.roots_changed().await;
        }
        for side in &old {
            self.until("asked for roots", |peer| {
                peer.at.is_modern() || peer.rooted().iter().any(|r| r.contains(side.name))
            })
            .await;
        }
    }

    // One side sees a tool that changed, the other does not; then both see one.
    async fn lists(&self, sides: &[Side; 2]) {
        let before = sides[1].lists_told();
        for peer in &self.peers {
            peer.change(0);
        }
        sides[0].sees(&self.peers, "fresh", 0).await;
        assert_eq!(sides[1].lists_told(), before, "told of a tool that it does not see");
        for peer in &self.peers {
            peer.change(1);
        }
        for side in sides {
            side.sees(&self.peers, "plain", 1).await;
        }
        assert!(sides[1].lists_told() > before);
    }

    async fn until(&self, what: &str, ok: impl Fn(&Peer) -> bool) {
        let end = Instant::now() + PATIENCE;
        while let Some(peer) = self.peers.iter().find(|peer| !ok(peer)) {
            assert!(Instant::now() < end, "{what}: not {}", peer.at);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

const HTTP_OLD: Endpoint = over(OLD, Carrier::Http);
const HTTP_NEW: Endpoint = over(NEW, Carrier::Http);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_sessions_hear_each_its_own() {
    let world = World::new("session").await;
    world.play([HTTP_OLD, HTTP_NEW], [0, 1]).await;
    world.play([HTTP_OLD, HTTP_OLD], [0, 1]).await;
    // Two sessions of one consumer are two.
    world.play([HTTP_OLD, HTTP_OLD], [0, 0]).await;
    for peer in &world.peers {
        if !peer.at.is_modern() && peer.at.carrier != Carrier::Http {
            assert_eq!(peer.mixed(), [], "{}: a conversation of two sessions", peer.at);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_consumers_hear_each_its_own() {
    let world = World::new("consumer").await;
    world.play([HTTP_NEW, HTTP_OLD], [0, 1]).await;
    world.play([HTTP_NEW, HTTP_NEW], [0, 1]).await;
    world.play([over(OLD, Carrier::WebSocket), over(OLD, Carrier::Stdio)], [0, 1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn in_one_conversation_for_all_nobody_is_asked() {
    let world = World::new("shared").await;
    world.play([HTTP_OLD, HTTP_NEW], [0, 1]).await;
}
