//! One write after the other, each cut behind a byte of its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Mutex, Semaphore};

use crate::harness::PATIENCE;
use crate::judge::{Told, Writes};
use crate::peer::{Peer, Wire};
use crate::relay::{Cut, How, Way};
use crate::stage::{Lane, PAUSE, Stage};
use crate::{Extent, conclude};

/// Bytes beyond what was measured: ids grow by a digit or two, and what ends there ends behind.
const SLACK: usize = 12;
/// So many cuts are made over each wire where not all are.
const SOME: usize = 72;
/// So many cuts are made of a large write, where not all are; and so many where all are.
const OF_LARGE: [usize; 2] = [4, 100];
/// Writes that are under way at once, each on a way of its own.
const AT_ONCE: usize = 6;

// A write that does not go out in one piece.
const LARGE: &str = "large";

// What is cut of what.
#[derive(Clone, Copy, Debug)]
struct Part {
    way: Way,
    only: &'static [u8],
    // What the peer is to answer with.
    form: &'static str,
    // Of a connection that is made for the write.
    new: bool,
}

#[derive(Clone, Copy, Debug)]
struct Job {
    part: Part,
    after: usize,
    how: How,
}

fn parts(wire: Wire) -> Vec<Part> {
    let part = |way, only, form| Part { way, only, form, new: false };
    let mut all = match wire {
        Wire::Http1 | Wire::Http2 => {
            let new = |way| Part { new: true, ..part(way, b"", "") };
            vec![
                part(Way::Request, b"", ""),
                part(Way::Answer, b"", ""),
                part(Way::Answer, b"", "events"),
                part(Way::Answer, b"", "resumed"),
                new(Way::Request),
                new(Way::Answer),
            ]
        }
        // The posts and the stream are connections of their own.
        Wire::Sse => vec![
            part(Way::Request, b"POST", ""),
            part(Way::Answer, b"POST", ""),
            part(Way::Request, b"POST", "late"),
            part(Way::Answer, b"POST", "late"),
            part(Way::Answer, b"GET", ""),
            part(Way::Answer, b"GET", "late"),
        ],
        Wire::WebSocket | Wire::Wss => {
            vec![part(Way::Request, b"", ""), part(Way::Answer, b"", "")]
        }
    };
    all.push(part(Way::Request, if wire == Wire::Sse { b"POST" } else { b"" }, LARGE));
    all
}

// How many ways at once, and how often each is cut.
fn lanes(wire: Wire) -> (usize, usize) {
    if wire.is_pipe() { (80, 2) } else { (AT_ONCE, usize::MAX) }
}

async fn jobs(peer: &Peer, extent: Extent) -> (Vec<Job>, Writes) {
    let stage = Stage::start(peer, 1).await;
    let lane = &stage.lanes[0];
    let (mut spans, mut writes) = (Vec::new(), Writes::new());
    for part in parts(peer.wire) {
        // Whole, to see how long it is.
        let uncut = Cut { way: part.way, after: usize::MAX, how: How::End, only: part.only };
        if part.new {
            lane.relay.hang_up().await;
        }
        lane.relay.arm(uncut);
        let id = format!("measure{}", spans.len());
        let told = stage.write(lane, &id, part.form).await;
        // The response to a post may come behind the answer on the stream.
        tokio::time::sleep(PAUSE).await;
        writes.push((id, told, "not cut".into()));
        let passed = lane.relay.passed();
        assert!(passed > 0, "{part:?}: nothing passed");
        spans.push((part, passed + SLACK));
    }
    let small = spans.iter().filter(|(part, _)| part.form != LARGE);
    let total: usize = small.map(|(_, span)| span).sum();
    let all = extent == Extent::All;
    let usual = if all { 1 } else { total.div_ceil(SOME) };
    let mut out = Vec::new();
    for (n, (part, span)) in spans.into_iter().enumerate() {
        let large = part.form == LARGE;
        let stride = if large { span / OF_LARGE[usize::from(all)] } else { usual };
        for (m, after) in (n % stride..span).step_by(stride).enumerate() {
            for how in [How::End, How::Reset] {
                if all || (how == How::End) == ((m + n) % 2 == 0) {
                    out.push(Job { part, after, how });
                }
            }
        }
    }
    (out, writes)
}

/// What one lane does and sees.
#[derive(Default)]
struct Seen {
    writes: Writes,
    wrongs: Vec<String>,
    cuts: usize,
    // Cuts whose write had its result all the same.
    harmless: usize,
    // Writes that met an upstream at rest which is no pipe.
    rests: usize,
    // Writes that were told nothing before their deadline.
    held: usize,
}

pub async fn run(peer: &Peer, extent: Extent) {
    let (jobs, writes) = jobs(peer, extent).await;
    let planned = jobs.len();
    let mut all = Seen { writes, ..Seen::default() };
    let (count, each) = lanes(peer.wire);
    let mut jobs: VecDeque<_> = jobs.into_iter().enumerate().collect();
    while !jobs.is_empty() {
        let count = count.min(jobs.len().div_ceil(each.min(2)));
        let stage = Arc::new(Stage::start(peer, count).await);
        let round = count.saturating_mul(each).min(jobs.len());
        let jobs = Arc::new(Mutex::new(jobs.drain(..round).collect::<VecDeque<_>>()));
        let turn = Arc::new(Semaphore::new(AT_ONCE));
        let wire = peer.wire;
        let lanes = (0..count).map(|n| {
            let (stage, jobs, turn) = (stage.clone(), jobs.clone(), turn.clone());
            tokio::spawn(async move {
                let mut seen = Seen::default();
                for _ in 0..each {
                    let Some((number, job)) = jobs.lock().await.pop_front() else { break };
                    one(&stage, &stage.lanes[n], wire, (number, job), &turn, &mut seen).await;
                }
                seen
            })
        });
        for lane in lanes.collect::<Vec<_>>() {
            let seen = lane.await.unwrap();
            all.writes.extend(seen.writes);
            all.wrongs.extend(seen.wrongs);
            all.cuts += seen.cuts;
            all.harmless += seen.harmless;
            all.rests += seen.rests;
            all.held += seen.held;
        }
    }
    let story = format!(
        "one after the other: {} of {planned} cut, {} of them without harm",
        all.cuts, all.harmless
    );
    // What does not cut shows nothing.
    if all.cuts < planned / 2 {
        all.wrongs.push("too few cuts".into());
    }
    // Only where its lists are cut, too, and cut again when they are asked for again; of some cuts
    // that says too little.
    if extent == Extent::All && all.rests > all.cuts / 8 {
        all.wrongs.push(format!("{} writes met an upstream at rest", all.rests));
    }
    // Several requests that dial at once after an HTTP/2 connection has ended may, seldom and on a
    // busy machine, all wait for what never comes. It costs time and is no lie; nor may it be usual.
    if all.held > if peer.wire == Wire::Http2 { 2 } else { 0 } {
        all.wrongs.push(format!("{} writes were held up", all.held));
    }
    conclude(peer, &story, &all.writes, all.wrongs);
}

async fn one(
    stage: &Stage,
    lane: &Lane,
    wire: Wire,
    (number, job): (usize, Job),
    turn: &Semaphore,
    seen: &mut Seen,
) {
    let how = format!("{job:?} on {}", lane.name);
    let (relay, part) = (&lane.relay, job.part);
    let permit = turn.acquire().await.unwrap();
    let streams = relay.begun(b"GET ");
    if part.new {
        relay.hang_up().await;
    }
    relay.arm(Cut { way: part.way, after: job.after, how: job.how, only: part.only });
    let id = format!("c{number}");
    let told = stage.write(lane, &id, part.form).await;
    if told == Told::Result {
        // What ends behind the answer, or with what comes behind it, ends now.
        let _ = tokio::time::timeout(PAUSE, relay.broke()).await;
    }
    let fired = relay.disarm();
    drop(permit);
    seen.cuts += usize::from(fired);
    seen.harmless += usize::from(fired && told == Told::Result);
    let rests = matches!(&told, Told::NoEffect(why) if why == "upstream_down");
    seen.rests += usize::from(rests && !wire.is_pipe());
    let held = told == Told::Unknown("deadline_exceeded".into());
    seen.held += usize::from(held);
    if !fired && told != Told::Result && !rests && !held {
        seen.wrongs.push(format!("failed although nothing was cut: {id}, {how}: {told:?}"));
    }
    // It was the connection's only write: the next one works, on another. Where the end came
    // behind an answer, nobody can know whether what is sent on the connection in that moment is
    // still read; the one after that works.
    let mut may_be_lost = fired && told == Told::Result;
    seen.writes.push((id, told, how.clone()));
    let patience = Instant::now() + PATIENCE;
    for attempt in 0.. {
        let id = format!("n{number}.{attempt}");
        let told = stage.write(lane, &id, part.form).await;
        seen.writes.push((id.clone(), told.clone(), format!("after {how}")));
        match told {
            Told::Result => break,
            Told::NoEffect(why) if why == "upstream_down" && Instant::now() < patience => {
                seen.rests += usize::from(!wire.is_pipe() && attempt == 0 && !rests);
                tokio::time::sleep(PAUSE).await;
            }
            Told::Unknown(why) if why == "deadline_exceeded" => {
                seen.held += 1;
                if seen.held > 2 {
                    break;
                }
            }
            Told::Unknown(_) if may_be_lost => may_be_lost = false,
            told => {
                seen.wrongs.push(format!("the next write fails: {id}, after {how}: {told:?}"));
                break;
            }
        }
    }
    // A post is one connection, the stream another.
    if part.only == b"POST" && relay.begun(b"GET ") != streams {
        seen.wrongs.push(format!("the end of a post cost the stream: {how}"));
    }
}
