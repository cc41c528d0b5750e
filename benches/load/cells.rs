//! The cells under load: what each asks, of whom, and what one round of it comes to.

use std::time::Duration;

use crate::contestant::{Contestant, name};
use crate::job::{Ask, Era, Job, Order, Report, Route};
use crate::proc::{self, Role};
use crate::stage::{Setup, Stage};

/// One cell.
#[derive(Clone)]
pub struct Cell {
    /// Its name.
    pub name: &'static str,
    /// The upstreams.
    pub setup: Setup,
    /// What the client speaks.
    pub client: Era,
    /// How many connections.
    pub connections: usize,
    /// Calls a second; `None`: closed loop.
    pub rate: Option<f64>,
    /// What is asked.
    pub what: What,
    /// Who takes part besides the gateway and other gateways.
    pub plain: bool,
}

/// What a cell asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Calls with so many bytes in the answer.
    Call(usize),
    /// The same, answered as an event stream.
    Events(usize),
    /// Lists.
    List,
}

/// All of them, in the order of the table.
pub fn all() -> Vec<Cell> {
    use Era::{Legacy, Modern};
    let cell = |name, setup, what| Cell {
        name,
        setup,
        client: Legacy,
        connections: 64,
        rate: None,
        what,
        plain: true,
    };
    let small = What::Call(128);
    let list = |name, setup| Cell { connections: 16, ..cell(name, setup, What::List) };
    vec![
        cell("call-1", Setup::One, small),
        cell("call-6", Setup::Six, small),
        cell("call-600", Setup::Hundreds, small),
        cell("call-64k", Setup::Six, What::Call(64 << 10)),
        cell("call-sse", Setup::Six, What::Events(128)),
        Cell { client: Modern, ..cell("modern-modern", Setup::SixModern, small) },
        Cell { plain: false, ..cell("legacy-modern", Setup::SixModern, small) },
        Cell { client: Modern, plain: false, ..cell("modern-legacy", Setup::Six, small) },
        Cell { connections: 1, ..cell("c1", Setup::Six, small) },
        Cell { connections: 256, ..cell("c256", Setup::Six, small) },
        Cell { connections: 16, rate: Some(1000.0), ..cell("paced", Setup::Six, small) },
        list("list-60", Setup::Six),
        list("list-600", Setup::Hundreds),
        Cell { connections: 4, ..cell("list-10000", Setup::Thousands, What::List) },
    ]
}

impl Cell {
    /// Who takes part in it.
    pub fn contestants(&self, peers: usize, has_nginx: bool) -> Vec<Contestant> {
        let mut out = Vec::new();
        if self.plain && self.what != What::List {
            out.push(Contestant::Direct);
        }
        if self.plain && has_nginx {
            out.push(Contestant::Nginx);
        }
        out.push(Contestant::Weir);
        out.extend((0..peers).map(Contestant::Peer));
        out
    }
}

/// What a round of a cell came to.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// What the load role saw.
    pub report: Report,
    /// CPU of the proxy's processes per call in µs; `None` without a proxy.
    pub cpu: Option<f64>,
    /// The share of the proxy's processor that others took meanwhile.
    pub noise: f64,
}

/// Run a cell once.
///
/// # Errors
/// What went wrong before anything was measured.
pub fn run(
    stage: &mut Stage,
    load: &mut Role,
    cell: &Cell,
    who: Contestant,
    seconds: f64,
) -> Result<Sample, String> {
    let list = cell.what == What::List;
    let routes = if list && who == Contestant::Nginx {
        vec![file(stage, cell)?]
    } else {
        stage.routes(who, cell.setup, cell.client)?
    };
    let routes = if list { routes[..1].to_vec() } else { routes };
    let tools = cell.setup.tools();
    let ask = match cell.what {
        What::Call(size) => Ask::Call { size, sse: false, delay_ms: 0 },
        What::Events(size) => Ask::Call { size, sse: true, delay_ms: 0 },
        What::List if who == Contestant::Nginx => Ask::File { tools },
        What::List => Ask::List { tools },
    };
    let job = Job {
        routes,
        key: stage.key(who, cell.setup),
        era: cell.client,
        connections: cell.connections,
        ask,
        rate: cell.rate,
    };
    load.ask::<_, ()>(&Order::Prepare(job)).map_err(|e| format!("{}: {e}", name(who)))?;
    let used = |stage: &Stage| stage.up(who, cell.setup).map(|p| p.process.cpu());
    let core = stage.places.proxy.first().copied();
    let taken = || core.map_or(Duration::ZERO, proc::busy);
    let (taken_before, before) = (taken(), used(stage));
    let report: Report = load.ask(&Order::Go(seconds))?;
    let (after, taken_after) = (used(stage), taken());
    let cpu = after.zip(before).map(|(a, b)| a.saturating_sub(b));
    let others = (taken_after - taken_before).saturating_sub(cpu.unwrap_or_default());
    let per_call =
        cpu.filter(|_| report.calls > 0).map(|c| c.as_secs_f64() * 1e6 / report.calls as f64);
    let noise = others.as_secs_f64() / report.seconds.max(1e-9);
    Ok(Sample { cpu: per_call, noise, report })
}

// The gateway's own list, as a file for nginx to serve: the same bytes from the same disk cache.
fn file(stage: &mut Stage, cell: &Cell) -> Result<Route, String> {
    let routes = stage.routes(Contestant::Weir, cell.setup, cell.client)?;
    let addr = stage.proxy(Contestant::Nginx, cell.setup)?.addr;
    let dir = stage.dir.join("nginx-one/lists");
    let path = dir.join(format!("{}.json", cell.setup.name()));
    if !path.exists() {
        let key = stage.key(Contestant::Weir, cell.setup);
        let home = &routes[0];
        let client =
            crate::client::Client::new(home.addr, &home.path, key.as_deref(), cell.client, 1);
        let body = client?.raw("tools/list", serde_json::json!({}))?;
        std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
        std::fs::write(&path, body).map_err(|e| e.to_string())?;
    }
    let path = format!("/lists/{}.json", cell.setup.name());
    Ok(Route { addr, path, tool: String::new(), upstream: String::new() })
}
