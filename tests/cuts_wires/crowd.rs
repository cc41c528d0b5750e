//! Several callers at once on the ways that are cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::conclude;
use crate::harness::PATIENCE;
use crate::judge::{Told, Writes};
use crate::peer::{Peer, Wire};
use crate::relay::{Cut, How, Way};
use crate::stage::{Lane, PAUSE, Stage};

/// Callers on each way.
const CALLERS: usize = 4;
/// Bytes of a connection with several callers that pass before it is cut: some messages.
const BYTES: usize = 2000;
/// So many results show that a way works.
const GOING: usize = 3 * CALLERS;
/// So many goodbyes are said.
const GOODBYES: usize = 24;

// How many ways, and how often each is cut.
fn extent(wire: Wire) -> (usize, usize) {
    if wire.is_pipe() { (8, 3) } else { (2, 24) }
}

/// One lane: what its callers were told, and how many results there have been.
struct Place {
    writes: std::sync::Mutex<Writes>,
    results: AtomicUsize,
    over: AtomicBool,
}

impl Place {
    fn new() -> Arc<Place> {
        let writes = std::sync::Mutex::default();
        Arc::new(Place { writes, results: AtomicUsize::new(0), over: AtomicBool::new(false) })
    }

    // Callers who go on until it is over.
    fn callers(
        self: &Arc<Self>,
        stage: &Arc<Stage>,
        lane: usize,
        prefix: &'static str,
    ) -> tokio::task::JoinSet<()> {
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..CALLERS {
            let (place, stage) = (self.clone(), stage.clone());
            let forms = ["", "events", "late", "resumed"];
            callers.spawn(async move {
                for n in 0.. {
                    if place.over.load(Ordering::SeqCst) {
                        return;
                    }
                    let id = format!("{prefix}{lane}.{caller}.{n}");
                    let form = forms[(caller + n) % forms.len()];
                    let told = stage.write(&stage.lanes[lane], &id, form).await;
                    match told {
                        Told::Result => drop(place.results.fetch_add(1, Ordering::SeqCst)),
                        _ => tokio::time::sleep(PAUSE).await,
                    }
                    let writes = &mut *place.writes.lock().unwrap();
                    writes.push((id, told, format!("{form:?} on up{lane}")));
                }
            });
        }
        callers
    }

    fn results(&self) -> usize {
        self.results.load(Ordering::SeqCst)
    }

    // New results come; `false`: none do.
    async fn goes_on(&self) -> bool {
        let (before, end) = (self.results(), Instant::now() + PATIENCE);
        while self.results() < before + GOING {
            if Instant::now() > end {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        true
    }
}

// A byte somewhere, the same each time.
fn cut(n: usize) -> Cut {
    let after = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let way = if n.is_multiple_of(2) { Way::Request } else { Way::Answer };
    let how = if (n / 2).is_multiple_of(2) { How::End } else { How::Reset };
    Cut { way, after: after % BYTES, how, only: b"" }
}

async fn cut_often(
    lane: &Lane,
    number: usize,
    times: usize,
    place: &Place,
    wrongs: &mut Vec<String>,
) {
    for n in 0..times {
        let cut = cut(number * times + n);
        lane.relay.arm(cut);
        if tokio::time::timeout(PATIENCE, lane.relay.broke()).await.is_err() {
            wrongs.push(format!("never cut: {cut:?} on {}", lane.name));
        }
        if !place.goes_on().await {
            wrongs.push(format!("nothing works after {cut:?} on {}", lane.name));
            return;
        }
    }
}

pub async fn run(peer: &Peer) {
    let (lanes, times) = extent(peer.wire);
    let stage = Arc::new(Stage::start(peer, lanes).await);
    let mut all = Vec::new();
    for number in 0..lanes {
        let stage = stage.clone();
        all.push(tokio::spawn(async move {
            let (place, mut wrongs) = (Place::new(), Vec::new());
            let callers = place.callers(&stage, number, "w");
            let lane = &stage.lanes[number];
            cut_often(lane, number, times, &place, &mut wrongs).await;
            place.over.store(true, Ordering::SeqCst);
            callers.join_all().await;
            let writes = std::mem::take(&mut *place.writes.lock().unwrap());
            (writes, wrongs, lane.relay.breaks())
        }));
    }
    let (mut writes, mut wrongs, mut cuts) = (Writes::new(), Vec::new(), 0);
    for lane in all {
        let (its, wrong, breaks) = lane.await.unwrap();
        let lost = its.iter().filter(|(_, told, _)| matches!(told, Told::Unknown(_))).count();
        let spared = its.iter().filter(|(_, told, _)| matches!(told, Told::NoEffect(_))).count();
        // One connection of HTTP/1.1 carries one write, any other at most each caller's.
        let most = if peer.wire == Wire::Http1 { breaks } else { breaks * CALLERS };
        if lost > most || (spared > breaks && !peer.wire.is_pipe()) {
            wrongs.push(format!("{breaks} cuts cost {lost} writes, and {spared} were not sent"));
        }
        writes.extend(its);
        wrongs.extend(wrong);
        cuts += breaks;
    }
    conclude(peer, &format!("{CALLERS} callers on each of {lanes}: {cuts} cuts"), &writes, wrongs);
}

/// The server ends its connections in good order while callers are at it.
pub async fn goodbyes(peer: &Peer) {
    let stage = Arc::new(Stage::start(peer, 1).await);
    let place = Place::new();
    let callers = place.callers(&stage, 0, "g");
    let mut wrongs = Vec::new();
    for _ in 0..GOODBYES {
        peer.say_goodbye();
        if !place.goes_on().await {
            wrongs.push("nothing works after a goodbye".into());
            break;
        }
    }
    place.over.store(true, Ordering::SeqCst);
    callers.join_all().await;
    let writes = std::mem::take(&mut *place.writes.lock().unwrap());
    let connections = stage.lanes[0].relay.begun(b"");
    if connections < GOODBYES / 2 {
        wrongs.push(format!("only {connections} connections: nobody took the goodbyes"));
    }
    // What is sent while the goodbye is on its way may be lost, over HTTP/1.1 with its connection,
    // over HTTP/2 as a stream that the server does not look at any more.
    let failed = writes.iter().filter(|(_, told, _)| *told != Told::Result).count();
    let most = if peer.wire == Wire::Http1 { connections } else { GOODBYES * CALLERS };
    if failed > most.min(writes.len() / 4) {
        wrongs.push(format!("{failed} of {} writes failed", writes.len()));
    }
    conclude(peer, &format!("{GOODBYES} goodbyes, {connections} connections"), &writes, wrongs);
}
