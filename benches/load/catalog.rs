//! Ten thousand tools, of which one upstream's sixth is told anew: what that costs the gateway, and
//! whether calls wait for it.

use std::time::Duration;

use crate::client::Client;
use crate::contestant::Contestant;
use crate::facts::Facts;
use crate::job::{Ask, Era, Job, Order, Report};
use crate::mock::changed;
use crate::proc::Role;
use crate::stage::{Setup, Stage};

/// Long enough for a change to be heard of, fetched, merged and kept on disk.
const SETTLE: Duration = Duration::from_secs(2);
/// As long, where the figure itself is of no interest.
const SETTLE_SMOKE: Duration = Duration::from_secs(1);
/// Calls a second while it happens.
const RATE: f64 = 1000.0;

/// Measure it.
///
/// # Errors
/// What went wrong.
pub fn measure(
    stage: &mut Stage,
    load: &mut Role,
    facts: &mut Facts,
    seconds: f64,
    smoke: bool,
) -> Result<(), String> {
    let settle = if smoke { SETTLE_SMOKE } else { SETTLE };
    let setup = Setup::Thousands;
    let cpus = stage.places.proxy.clone();
    let (proxy, routes) = stage.fresh(Contestant::Weir, setup, "weir-catalog", "", &cpus)?;
    let over = |time: Duration| {
        let before = proxy.process.cpu();
        std::thread::sleep(time);
        proxy.process.cpu().saturating_sub(before).as_secs_f64() * 1e3
    };
    std::thread::sleep(settle);
    let idle = over(settle);
    let (mocks, server) = stage.mocks(setup, 0);
    mocks.tell(&server)?;
    let changed_once = over(settle);
    let mut client = Client::new(proxy.addr, &proxy.path, proxy.key.as_deref(), Era::Legacy, 1)?;
    let shows = |client: &mut Client, n: usize| {
        let list = client.raw("tools/list", serde_json::json!({}))?;
        let found = memchr::memmem::find(&list, changed(n).as_bytes()).is_some();
        found.then_some(()).ok_or(format!("change {n} does not show"))
    };
    shows(&mut client, 1)?;
    facts.set("catalog, ms CPU of a change", changed_once - idle);

    let seconds = seconds.max(1.0);
    let mut paced = |mocks: &mut Role, change: bool| -> Result<Report, String> {
        let job = Job {
            routes: routes.clone(),
            key: proxy.key.clone(),
            era: Era::Legacy,
            connections: 16,
            ask: Ask::Call { size: 128, sse: false, delay_ms: 0 },
            rate: Some(RATE),
        };
        load.ask::<_, ()>(&Order::Prepare(job))?;
        if change {
            mocks.tell(&server)?;
        }
        let report: Report = load.ask(&Order::Go(seconds))?;
        facts.errors.extend(report.first_error.clone().map(|e| format!("catalog: {e}")));
        Ok(report)
    };
    let calm = paced(mocks, false)?;
    let busy = paced(mocks, true)?;
    std::thread::sleep(settle);
    shows(&mut client, 2)?;
    facts.set("catalog, longest call at 1,000/s, ms", calm.longest / 1e3);
    facts.set("catalog, longest call at 1,000/s with a change, ms", busy.longest / 1e3);
    Ok(())
}
