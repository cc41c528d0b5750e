//! Every revision over every transport in front of every revision over every transport, feature by
//! feature. What comes out is `docs/MATRIX.md`, which `UPDATE_MATRIX=1` writes anew.
//!
//! One gateway has all upstreams. Each caller meets all of them, all callers at once; those over
//! standard input and output have a gateway each, over the same upstreams.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../harness/mod.rs"]
mod harness;

mod axes;
mod caller;
mod doors;
mod features;
mod peer;
mod sdks;
mod table;
mod text;
mod ways;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use axes::{Carrier, Endpoint, Feature};
use caller::Caller;
use features::{Lists, Mark, Marks};
use harness::{PATIENCE, Weir};
use peer::{OTHER, Peer, WATCHED};
use ways::Place;

/// Items on one page of what the gateway lists: fewer than there are of any kind.
const PAGE_SIZE: usize = 25;
/// The gateway's settings.
const GATEWAY: &str = "page_size = 25\nlist_changed_debounce = \"50ms\"\nmax_calls = 4000";

/// One test at a time: each starts as many processes as a small machine likes to run.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Marks by caller and upstream.
type Cells = HashMap<(String, String), Marks>;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_revision_over_every_transport_meets_every_other() {
    let _turn = TURN.lock().await;
    let peers: Vec<Arc<Peer>> = Endpoint::all().into_iter().map(Peer::new).collect();
    let sections = join_all(peers.iter().map(doors::open)).await.concat();
    let weir = Weir::start(GATEWAY, &sections);
    let names: Vec<String> = peers.iter().map(|p| p.at.name()).collect();
    weir.ready(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;

    let callers = join_all(Endpoint::all().into_iter().map(|at| connect(at, &weir, &sections)));
    let callers: Vec<Arc<Caller>> = callers.await.into_iter().map(Arc::new).collect();
    let mut cells = Cells::new();
    let called = callers.iter().enumerate().map(|(n, c)| {
        let (caller, peers) = (c.clone(), peers.clone());
        tokio::spawn(async move { call_all(n, &caller, &peers).await })
    });
    for (caller, marks) in callers.iter().zip(join_all(called).await) {
        for (peer, marks) in peers.iter().zip(marks.unwrap()) {
            cells.insert((caller.at.name(), peer.at.name()), marks);
        }
    }
    tell(&callers, &peers, &mut cells).await;

    let mut wrong: Vec<String> = Vec::new();
    for ((caller, peer), marks) in &cells {
        for (feature, mark) in marks {
            if let Mark::Fails(text) = mark {
                let text: String = text.chars().take(600).collect();
                wrong.push(format!("{caller} -> {peer}, {}: {text}", feature.title()));
            }
        }
    }
    for peer in &peers {
        wrong.extend(peer.faults().into_iter().map(|f| format!("{} saw {f}", peer.at.name())));
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(cells.len(), 324);
    table::compare(&cells);
}

// One that works, once all upstreams are there.
async fn connect(at: Endpoint, weir: &Weir, sections: &str) -> Caller {
    let dir = weir.dir.path().join(at.name());
    let config = dir.join("upstreams.toml");
    if at.carrier == Carrier::Stdio {
        std::fs::create_dir_all(&dir).unwrap();
        let (dir, admin) = (dir.display(), "[admin]\nlisten = \"off\"");
        let own = format!("state_dir = \"{dir}/state\"\ncache_dir = \"{dir}/cache\"");
        std::fs::write(&config, format!("[gateway]\n{own}\n{GATEWAY}\n{admin}\n{sections}"))
            .unwrap();
    }
    Caller::connect(at, &Place { url: weir.url.clone(), config, key: None }).await
}

// Whether a caller watches the resource that only some watch.
fn watches_other(n: usize) -> bool {
    n.is_multiple_of(2)
}

async fn call_all(n: usize, caller: &Caller, peers: &[Arc<Peer>]) -> Vec<Marks> {
    let end = Instant::now() + PATIENCE;
    let lists = loop {
        let lists = Lists::read(caller).await;
        match lists {
            Ok(lists) if peers.iter().all(|p| lists.has(p)) => break lists,
            // A page that changed while it was read is asked for again.
            _ => assert!(Instant::now() < end, "{}: {:?}", caller.at, lists.err()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let mut quiet = Vec::new();
    for peer in peers {
        quiet.push(features::quiet(caller, peer).await);
    }
    if let Err(text) = features::set_level(caller).await {
        quiet.fill(Err(text));
    }
    if let Err(text) = features::watch(caller, peers, watches_other(n)).await {
        quiet.fill(Err(text));
    }
    let mut all: Vec<Marks> = vec![Vec::new(); peers.len()];
    // Each begins with another upstream, so that not all are at the same.
    for i in (0..peers.len()).map(|i| (i + n) % peers.len()) {
        all[i] = features::cell(caller, &peers[i], &lists, &quiet[i]).await;
    }
    all
}

// Each upstream tells of changes, and all callers are told.
async fn tell(callers: &[Arc<Caller>], peers: &[Arc<Peer>], cells: &mut Cells) {
    let gateways = |callers: Vec<&Arc<Caller>>| {
        let own = callers.iter().filter(|c| c.at.carrier == Carrier::Stdio).count();
        own + usize::from(own < callers.len())
    };
    let some = callers.iter().enumerate().filter(|(n, _)| watches_other(*n)).map(|(_, c)| c);
    let (all, some) = (gateways(callers.iter().collect()), gateways(some.collect()));
    let end = Instant::now() + PATIENCE;
    for peer in peers {
        while peer.watchers(WATCHED) < all || peer.watchers(OTHER) < some {
            let watched = (peer.watchers(WATCHED), peer.watchers(OTHER));
            assert!(
                Instant::now() < end,
                "{} is watched by {watched:?} of {:?}",
                peer.at,
                (all, some)
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        peer.announce_update(OTHER);
        peer.announce_update(WATCHED);
    }
    for (n, caller) in callers.iter().enumerate() {
        for peer in peers {
            let mark = features::changed_resources(caller, peer, watches_other(n)).await;
            let cell = cells.get_mut(&(caller.at.name(), peer.at.name())).unwrap();
            cell.push((Feature::Subscription, mark));
        }
    }
    for peer in peers {
        let before: Vec<usize> = callers.iter().map(|c| features::told(c)).collect();
        peer.announce_tool();
        let told = callers.iter().zip(before);
        let told = told.map(|(caller, before)| features::changed_lists(caller, peer, before));
        for (caller, mark) in callers.iter().zip(join_all(told).await) {
            let cell = cells.get_mut(&(caller.at.name(), peer.at.name())).unwrap();
            cell.push((Feature::ListChanged, mark));
        }
    }
}
