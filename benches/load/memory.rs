//! What the gateway's memory does: with idle sessions, over rounds of them, and while one large
//! answer passes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::contestant::Contestant;
use crate::facts::Facts;
use crate::job::{Order, Report};
use crate::proc::Role;
use crate::stage::{Setup, Stage};

/// How long things settle before memory is read.
const SETTLE: Duration = Duration::from_millis(500);
/// After the last session of the last round.
const REST: Duration = Duration::from_secs(5);
/// How often memory is read while the large answer passes.
const LOOK: Duration = Duration::from_millis(2);
/// Bytes of text of the large answer.
const LARGE: usize = 64 << 20;

/// Memory after the start, and of each idle session with a stream.
///
/// # Errors
/// What went wrong.
pub fn sessions(
    stage: &Stage,
    load: &mut Role,
    facts: &mut Facts,
    smoke: bool,
) -> Result<(), String> {
    let count = if smoke { 1_000 } else { 10_000 };
    let (proxy, routes) =
        stage.fresh(Contestant::Weir, Setup::Six, "weir-sessions", "", &stage.places.proxy)?;
    std::thread::sleep(SETTLE);
    let before = proxy.process.rss();
    facts.set("RSS after start, MiB", before as f64 / 1024.0);
    let open = Order::Open { route: routes[0].clone(), key: proxy.key.clone(), sessions: count };
    load.ask::<_, ()>(&open)?;
    std::thread::sleep(SETTLE);
    let with = proxy.process.rss();
    facts.set("sessions held", f64::from(count as u32));
    facts.set("RSS with sessions, MiB", with as f64 / 1024.0);
    facts.set("KiB per idle session", with.saturating_sub(before) as f64 / count as f64);
    load.ask::<_, ()>(&Order::End)
}

/// Memory over rounds of sessions that are opened and ended.
///
/// # Errors
/// What went wrong.
pub fn rounds(
    stage: &Stage,
    load: &mut Role,
    facts: &mut Facts,
    smoke: bool,
) -> Result<(), String> {
    let (rounds, count) = if smoke { (4, 200) } else { (10, 1_000) };
    let (proxy, routes) =
        stage.fresh(Contestant::Weir, Setup::Six, "weir-rounds", "", &stage.places.proxy)?;
    std::thread::sleep(SETTLE);
    let before = proxy.process.rss() as f64;
    let mut after = Vec::new();
    for _ in 0..rounds {
        let open =
            Order::Open { route: routes[0].clone(), key: proxy.key.clone(), sessions: count };
        load.ask::<_, ()>(&open)?;
        load.ask::<_, ()>(&Order::End)?;
        std::thread::sleep(SETTLE);
        after.push(proxy.process.rss() as f64);
    }
    std::thread::sleep(if smoke { SETTLE } else { REST });
    let end = proxy.process.rss() as f64;
    let shown: Vec<String> = after.iter().map(|kib| format!("{:.1}", kib / 1024.0)).collect();
    facts.notes.push(format!(
        "RSS before, after each of {rounds} rounds of {count} sessions, and 5 s later, MiB: {:.1}; {}; {:.1}",
        before / 1024.0,
        shown.join(", "),
        end / 1024.0
    ));
    let last = after.last().copied().unwrap_or(before);
    facts.set(
        "RSS of the last round / of the second",
        last / after.get(1).copied().unwrap_or(before),
    );
    facts.set("RSS 5 s after the sessions / before", end / before);
    Ok(())
}

/// How much memory one large answer takes while it is read slowly.
///
/// # Errors
/// What went wrong.
pub fn large(stage: &Stage, load: &mut Role, facts: &mut Facts) -> Result<(), String> {
    let (proxy, routes) =
        stage.fresh(Contestant::Weir, Setup::One, "weir-large", "", &stage.places.proxy)?;
    std::thread::sleep(SETTLE);
    let before = proxy.process.rss();
    let (most, over) = (AtomicU64::new(before), AtomicBool::new(false));
    let order = Order::Large {
        route: routes[0].clone(),
        key: proxy.key.clone(),
        size: LARGE,
        pace: 64 << 20,
    };
    let read: Result<Report, String> = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(proxy.process.rss_alone(), Ordering::Relaxed);
                std::thread::sleep(LOOK);
            }
        });
        let read = load.ask(&order);
        over.store(true, Ordering::Relaxed);
        read
    });
    let growth = most.into_inner().saturating_sub(before);
    facts.set("RSS growth of a 64 MiB answer, MiB", growth as f64 / 1024.0);
    let report = read?;
    facts.set("64 MiB answer, s", report.seconds);
    facts.errors.extend(report.first_error.map(|e| format!("large: {e}")));
    Ok(())
}
