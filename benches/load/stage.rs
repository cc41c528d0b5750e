//! What stands up while it is measured: the mock servers, and of each contestant one instance for
//! each arrangement of them.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::contestant::{self, Contestant};
use crate::job::{Era, Mock, Route};
use crate::proc::{Places, Process, Role};

/// How long a contestant may take until all tools are there.
const START_TIME: Duration = Duration::from_secs(30);

/// An arrangement of upstreams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setup {
    /// One with ten tools.
    One,
    /// Six with ten tools each.
    Six,
    /// The same, of the newest revision.
    SixModern,
    /// Six with a hundred tools each.
    Hundreds,
    /// Ten thousand tools over six.
    Thousands,
    /// One child over stdio; it stands up with who starts it.
    Stdio,
}

impl Setup {
    /// All over HTTP.
    pub const ALL: [Setup; 5] =
        [Setup::One, Setup::Six, Setup::SixModern, Setup::Hundreds, Setup::Thousands];

    /// Its name in paths.
    pub fn name(self) -> &'static str {
        match self {
            Setup::One => "one",
            Setup::Six => "six",
            Setup::SixModern => "six-modern",
            Setup::Hundreds => "hundreds",
            Setup::Thousands => "thousands",
            Setup::Stdio => "stdio",
        }
    }

    /// Its servers.
    pub fn mocks(self) -> Vec<Mock> {
        let (servers, tools) = match self {
            Setup::One | Setup::Stdio => (1, 10),
            Setup::Six | Setup::SixModern => (6, 60),
            Setup::Hundreds => (6, 600),
            Setup::Thousands => (6, 10_000),
        };
        let era = if self == Setup::SixModern { Era::Modern } else { Era::Legacy };
        (0..servers)
            .map(|n| {
                let tools = tools * (n + 1) / servers - tools * n / servers;
                Mock { name: format!("u{n}"), tools, era }
            })
            .collect()
    }

    /// How many tools there are.
    pub fn tools(self) -> usize {
        self.mocks().iter().map(|m| m.tools).sum()
    }
}

/// A proxy that runs.
pub struct Proxy {
    /// It.
    pub process: Process,
    /// Where it listens.
    pub addr: SocketAddr,
    /// The path of its endpoint.
    pub path: String,
    /// The key it wants.
    pub key: Option<String>,
}

/// Everything that stands up.
pub struct Stage {
    /// A folder for configurations, gone at the end.
    pub dir: PathBuf,
    /// Who runs where.
    pub places: Places,
    /// Of each setup, the mock servers' addresses.
    pub upstreams: BTreeMap<Setup, Vec<SocketAddr>>,
    proxies: BTreeMap<(Contestant, Setup), Proxy>,
    routes: BTreeMap<(Contestant, Setup, bool), Vec<Route>>,
    // The last, so that proxies end before what they talk to.
    upstream: Role,
}

impl Stage {
    /// Start the mock servers.
    ///
    /// # Errors
    /// What went wrong.
    pub fn new(places: Places) -> Result<Stage, String> {
        let dir = std::env::temp_dir().join(format!("weir-load-{}", std::process::id()));
        fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
        let mocks: Vec<Vec<Mock>> = Setup::ALL.iter().map(|s| s.mocks()).collect();
        let flat = serde_json::to_string(&mocks.concat()).map_err(|e| e.to_string())?;
        let mut upstream = Role::start("upstream", &[flat], &places.others)?;
        let mut ports = upstream.hear::<Vec<u16>>()?.into_iter();
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let upstreams = Setup::ALL
            .iter()
            .zip(&mocks)
            .map(|(setup, mocks)| (*setup, ports.by_ref().take(mocks.len()).map(address).collect()))
            .collect();
        let (proxies, routes) = (BTreeMap::new(), BTreeMap::new());
        Ok(Stage { dir, places, upstreams, proxies, routes, upstream })
    }

    /// Where calls of a contestant go, one route for each tool. It is started if it is not up.
    ///
    /// # Errors
    /// What went wrong.
    pub fn routes(
        &mut self,
        who: Contestant,
        setup: Setup,
        era: Era,
    ) -> Result<Vec<Route>, String> {
        let key = (who, setup, era == Era::Modern);
        if let Some(known) = self.routes.get(&key) {
            return Ok(known.clone());
        }
        let ends: Vec<(SocketAddr, String)> = match who {
            Contestant::Direct => {
                self.upstreams[&setup].iter().map(|a| (*a, "/mcp".to_owned())).collect()
            }
            Contestant::Nginx => {
                let addr = self.proxy(who, setup)?.addr;
                let path = |n| format!("/{}/{n}/mcp", setup.name());
                (0..self.upstreams[&setup].len()).map(|n| (addr, path(n))).collect()
            }
            _ => {
                let proxy = self.proxy(who, setup)?;
                vec![(proxy.addr, proxy.path.clone())]
            }
        };
        let bearer = self.key(who, setup);
        let routes = all_routes(&ends, bearer.as_deref(), era, setup.tools())
            .map_err(|e| format!("{}: {e}", contestant::name(who)))?;
        self.routes.insert(key, routes.clone());
        Ok(routes)
    }

    /// The mock servers, and what one of a setup is called there.
    pub fn mocks(&mut self, setup: Setup, server: usize) -> (&mut Role, String) {
        let before = Setup::ALL.iter().take_while(|s| **s != setup);
        let before: usize = before.map(|s| s.mocks().len()).sum();
        (&mut self.upstream, (before + server).to_string())
    }

    /// End all contestants; the mock servers stay.
    pub fn clear(&mut self) {
        self.routes.clear();
        self.proxies.clear();
    }

    /// The key that a contestant wants.
    pub fn key(&self, who: Contestant, setup: Setup) -> Option<String> {
        self.proxies.get(&(who, setup)).and_then(|p| p.key.clone())
    }

    /// A contestant, started if it is not up.
    ///
    /// # Errors
    /// What went wrong.
    pub fn proxy(&mut self, who: Contestant, setup: Setup) -> Result<&Proxy, String> {
        // One nginx is in front of all setups.
        let place = if who == Contestant::Nginx { Setup::One } else { setup };
        if !self.proxies.contains_key(&(who, place)) {
            let folder = format!("{}-{}", contestant::name(who), place.name());
            let proxy = self.start(who, place, &folder, "", &self.places.proxy)?;
            self.proxies.insert((who, place), proxy);
        }
        Ok(&self.proxies[&(who, place)])
    }

    /// A contestant that is up already.
    pub fn up(&self, who: Contestant, setup: Setup) -> Option<&Proxy> {
        let place = if who == Contestant::Nginx { Setup::One } else { setup };
        self.proxies.get(&(who, place))
    }

    /// A new instance of a contestant that shows all tools, and its tools.
    ///
    /// # Errors
    /// What went wrong.
    pub fn fresh(
        &self,
        who: Contestant,
        setup: Setup,
        folder: &str,
        more: &str,
        cpus: &[usize],
    ) -> Result<(Proxy, Vec<Route>), String> {
        let proxy = self.start(who, setup, folder, more, cpus)?;
        let ends = [(proxy.addr, proxy.path.clone())];
        let routes = all_routes(&ends, proxy.key.as_deref(), Era::Legacy, setup.tools());
        let routes = routes.map_err(|e| format!("{folder}: {e}"))?;
        Ok((proxy, routes))
    }

    /// A new instance of a contestant, with its files in the folder `name`. `more` is added to
    /// weir's configuration.
    ///
    /// # Errors
    /// What went wrong.
    pub fn start(
        &self,
        who: Contestant,
        setup: Setup,
        name: &str,
        more: &str,
        cpus: &[usize],
    ) -> Result<Proxy, String> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
        let port = free_port()?;
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let launch = contestant::launch(who, setup, port, &dir, &self.upstreams, more)?;
        let log = contestant::log(&dir)?;
        let mut command = Command::new(&launch.command[0]);
        command.args(&launch.command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.envs(launch.env);
        let mut process = Process::start(name, &mut command, cpus)?;
        let end = Instant::now() + START_TIME;
        while launch.wait && std::net::TcpStream::connect(addr).is_err() {
            if process.has_ended() || Instant::now() > end {
                return Err(format!("{name} does not listen; {}", why(&dir)));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(Proxy { process, addr, path: launch.path, key: launch.key })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.proxies.clear();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

// Once all tools are there.
fn all_routes(
    ends: &[(SocketAddr, String)],
    key: Option<&str>,
    era: Era,
    tools: usize,
) -> Result<Vec<Route>, String> {
    let end = Instant::now() + START_TIME;
    loop {
        let found: Result<Vec<_>, String> =
            ends.iter().map(|(a, p)| routes_at(*a, p, key, era)).collect();
        match found.map(|all| all.concat()) {
            Ok(routes) if routes.len() == tools => return Ok(routes),
            got if Instant::now() > end => {
                let got = got.map(|all| format!("{} tools", all.len()));
                return Err(format!("{got:?} of {tools}"));
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn routes_at(
    addr: SocketAddr,
    path: &str,
    key: Option<&str>,
    era: Era,
) -> Result<Vec<Route>, String> {
    Client::new(addr, path, key, era, 1)?.routes()
}

// Its last words, if they were kept.
fn why(dir: &Path) -> String {
    let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
    let last: Vec<&str> = log.lines().rev().take(5).collect();
    if last.is_empty() { "LOAD_LOG=1 keeps its log".to_owned() } else { last.join("\n") }
}

/// A port that was free just now.
///
/// # Errors
/// What the system says.
pub fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    listener.map(|a| a.port()).map_err(|e| e.to_string())
}
