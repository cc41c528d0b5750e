//! `weir plan`: asks the gateway that runs or, where none answers, finds out by itself.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::header::{CONTENT_TYPE, HOST};
use tokio::net::TcpStream;

use super::{AppError, ServeOptions, adjust, asked, boot};
use crate::admin::plan::{ANSWER_MAX, Planner, Wish};
use crate::catalog::keep;
use crate::catalog::slice::Slice;
use crate::config::problem::{Problem, Problems};
use crate::config::{self, Config};
use crate::control::plan::{self, Asked, Known, Now, Report};

/// How long the gateway may take to accept a connection: it is on this machine or near.
const DIAL_TIME: Duration = Duration::from_secs(3);
/// How long it may take to answer: large catalogs take it some seconds.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// How long a gateway is asked again that makes a plan for somebody else: it makes one at once.
const BUSY_TIME: Duration = Duration::from_secs(30);
/// Between two of these times.
const BUSY_PAUSE: Duration = Duration::from_millis(250);

/// What a gateway with these options makes of a text: what a reload makes of it.
pub(super) fn planner(options: ServeOptions) -> Planner {
    let config = absolute(&options.config);
    Planner {
        config: config.display().to_string(),
        parse: Box::new(move |text, name| parse(&options, text, name)),
    }
}

fn parse(options: &ServeOptions, text: &str, name: &str) -> Result<Config, Problems> {
    let mut config = config::parse_here(text, Path::new(name))?;
    adjust(options, &mut config).map_err(|message| {
        let (key, remedy) = (String::new(), String::new());
        let all = vec![Problem { line: 0, column: 0, key, message, remedy }];
        Problems { file: name.to_owned(), all }
    })?;
    Ok(config)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// What `file` would change, or the configuration itself if none is named.
pub async fn plan(
    options: ServeOptions,
    file: Option<PathBuf>,
    connect: bool,
    admin: Option<SocketAddr>,
) -> Result<Report, AppError> {
    let file = file.unwrap_or_else(|| options.config.clone());
    let name = file.display().to_string();
    let text = match config::read_text(&file) {
        Ok(text) => text,
        Err(problems) => return Ok(plan::broken(problems)),
    };
    let source = Source { options, name, text, admin };
    let (mut report, place) = source.report(None, &Asked::new()).await?;
    let unknown: Vec<&str> = report
        .upstreams
        .iter()
        .filter(|u| u.tools == Some(Known::Unknown))
        .map(|u| u.name.as_str())
        .collect();
    if connect && !unknown.is_empty() {
        let (asked, notes) = source.ask(&unknown).await?;
        if !asked.is_empty() {
            report = source.report(Some(place), &asked).await?.0;
        }
        report.notes.extend(notes);
    }
    Ok(report)
}

/// Whom a report came from.
#[derive(Clone)]
enum Place {
    Running(SocketAddr),
    Here(Vec<String>),
}

/// Why a gateway gave no report.
#[derive(Debug)]
enum NoReport {
    /// It is there and makes other plans.
    Busy,
    /// Nobody is there, or nobody who knows plans, or not for us.
    Other(String),
}

impl NoReport {
    // Asking elsewhere instead would compare with something that does not run.
    fn told(self, at: SocketAddr) -> String {
        match self {
            NoReport::Busy => format!(
                "the gateway at {at} has been busy with other plans for {} s; try again",
                BUSY_TIME.as_secs()
            ),
            NoReport::Other(why) => format!("no plan from the gateway at {at}: {why}"),
        }
    }
}

impl From<String> for NoReport {
    fn from(why: String) -> NoReport {
        NoReport::Other(why)
    }
}

struct Source {
    options: ServeOptions,
    name: String,
    text: String,
    admin: Option<SocketAddr>,
}

impl Source {
    async fn report(
        &self,
        place: Option<Place>,
        asked: &Asked,
    ) -> Result<(Report, Place), AppError> {
        let place = match place {
            Some(place) => place,
            None => self.find().await?,
        };
        let report = match &place {
            Place::Running(at) => self.from(*at, asked).await?,
            Place::Here(tried) => self.here(tried, asked),
        };
        Ok((report, place))
    }

    // The gateway that serves our configuration, if it answers.
    async fn find(&self) -> Result<Place, AppError> {
        if let Some(at) = self.admin {
            self.from(at, &Asked::new()).await?;
            return Ok(Place::Running(at));
        }
        let mut tried = Vec::new();
        for at in self.candidates() {
            // Whose it is shows before it is told anything: the file may hold credentials.
            let nothing = Wish { file: self.name.clone(), ..Wish::default() };
            match posted(at, &nothing, BUSY_TIME).await {
                Ok(report) if Path::new(&report.config) == absolute(&self.options.config) => {
                    return Ok(Place::Running(at));
                }
                Ok(report) => {
                    tried.push(format!("the gateway at {at} serves {}", report.config));
                }
                Err(NoReport::Other(why)) => tried.push(format!("{at}: {why}")),
                Err(busy @ NoReport::Busy) => return Err(AppError::Start(busy.told(at))),
            }
        }
        Ok(Place::Here(tried))
    }

    // Where it may listen: as what it runs says, which the last good one is a copy of, then as the
    // file says that it reads next.
    fn candidates(&self) -> Vec<SocketAddr> {
        let kept = self.last_good();
        let file = boot_read(&self.options);
        let mut out: Vec<SocketAddr> = Vec::new();
        for config in kept.iter().chain(&file) {
            let Some(at) = config.admin.listen.filter(|at| at.port() != 0) else { continue };
            let at = asked::reachable(at);
            if !out.contains(&at) {
                out.push(at);
            }
        }
        out
    }

    fn last_good(&self) -> Option<Config> {
        let place = boot::place(&self.options, Path::new(""));
        parse(&self.options, &place.load().ok()?, &place.path().display().to_string()).ok()
    }

    // Compared with what was good last, in this process.
    fn here(&self, tried: &[String], asked: &Asked) -> Report {
        let new = match parse(&self.options, &self.text, &self.name) {
            Ok(new) => new,
            Err(problems) => return plan::broken(problems),
        };
        let (now, against) = match self.last_good() {
            Some(config) => {
                (Now::as_kept(config), "the last good configuration and the catalogs kept with it")
            }
            None => (Now::nothing(&new), "nothing: no last good configuration is kept"),
        };
        let mut report = plan::make(&self.name, &now, &new, asked);
        let tried = match tried {
            [] => "no gateway was asked, since admin.listen names no address".to_owned(),
            tried => format!("no gateway answered ({})", tried.join("; ")),
        };
        report.against.push_str(against);
        report.notes.push(format!("{tried}; references are resolved as this command sees them"));
        report
    }

    async fn from(&self, at: SocketAddr, asked: &Asked) -> Result<Report, AppError> {
        let new = (!asked.is_empty()).then(|| parse(&self.options, &self.text, &self.name));
        let identity = |name: &str| {
            let config = new.as_ref()?.as_ref().ok()?;
            let upstream = config.upstreams.iter().find(|u| &*u.name == name)?;
            Some(keep::identity(&upstream.transport))
        };
        let known = asked.iter().filter_map(|(name, slice)| {
            let text = keep::to_text(&identity(name)?, slice);
            Some((name.to_string(), String::from_utf8_lossy(&text).into_owned()))
        });
        let wish =
            Wish { file: self.name.clone(), text: self.text.clone(), known: known.collect() };
        posted(at, &wish, BUSY_TIME).await.map_err(|why| AppError::Start(why.told(at)))
    }

    // Start these upstreams here, as a gateway would, and see what they offer.
    async fn ask(&self, names: &[&str]) -> Result<(Asked, Vec<String>), AppError> {
        let problems = |p: Problems| AppError::Config(p.to_string());
        let mut config = parse(&self.options, &self.text, &self.name).map_err(problems)?;
        config.upstreams.retain(|u| u.enabled && names.contains(&&*u.name));
        let state = Folder::new().map_err(|e| AppError::Start(e.to_string()))?;
        config.gateway.state_dir = state.0.clone();
        let running = super::quiet_with(config)?;
        running.settled().await;
        let snapshot = running.edge.gateway.current.load();
        let mut asked = Asked::new();
        let mut notes = Vec::new();
        for part in snapshot.catalog.upstreams() {
            let name = &part.config.name;
            let Some(upstream) = snapshot.upstreams.get(name) else { continue };
            let slice: Option<&Arc<Slice>> = part.slice.as_ref().filter(|_| upstream.is_ready());
            if let Some(slice) = slice {
                asked.insert(name.clone(), slice.clone());
            } else {
                let now = upstream.condition();
                let why = if now.cause.is_empty() { now.why } else { now.cause };
                notes.push(format!("{name} could not be asked: {}: {why}", now.state.as_str()));
            }
        }
        drop(snapshot);
        running.stop().await;
        Ok((asked, notes))
    }
}

fn boot_read(options: &ServeOptions) -> Option<Config> {
    super::read(options).ok().map(|(config, _)| config)
}

/// A folder of our own that goes when we do.
struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Folder> {
        use std::os::unix::fs::DirBuilderExt as _;
        let mut chance = [0u8; 8];
        getrandom::fill(&mut chance).expect("the operating system gives random bytes");
        let name = format!("weir-plan-{:016x}", u64::from_ne_bytes(chance));
        let path = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn posted(at: SocketAddr, wish: &Wish, patience: Duration) -> Result<Report, NoReport> {
    let body = Bytes::from(serde_json::to_vec(wish).map_err(|e| e.to_string())?);
    let end = tokio::time::Instant::now() + patience;
    loop {
        let answer = tokio::time::timeout(ANSWER_TIME, post(at, body.clone())).await;
        match answer.map_err(|_| format!("no answer within {ANSWER_TIME:?}"))? {
            Err(NoReport::Busy) if tokio::time::Instant::now() < end => {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            answer => {
                return serde_json::from_slice(&answer?)
                    .map_err(|_| "it does not know plans".to_owned().into());
            }
        }
    }
}

async fn post(at: SocketAddr, body: Bytes) -> Result<Bytes, NoReport> {
    let dial = tokio::time::timeout(DIAL_TIME, TcpStream::connect(at)).await;
    let stream = dial.map_err(|_| "it does not answer".to_owned())?.map_err(|e| e.to_string())?;
    let request = Request::post("/plan")
        .header(HOST, at.to_string())
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|e| e.to_string())?;
    let (status, body) = asked::exchange(stream, request, ANSWER_MAX).await?;
    match status {
        200 => Ok(body),
        503 => Err(NoReport::Busy),
        404 | 405 => Err("it does not know plans".to_owned().into()),
        _ => Err(format!("{status}: {}", String::from_utf8_lossy(&body).trim()).into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_gateway_that_stays_busy_is_told_as_such() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let busy = tokio::spawn(async move {
            for asked in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut some = [0; 4096];
                let _ = stream.read(&mut some).await;
                let no = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
                let _ = stream.write_all(no).await;
                if asked == 1 {
                    return;
                }
            }
        });
        // It is asked again for a while; one that is gone by then is another matter.
        let wish = Wish::default();
        let gave_up = posted(at, &wish, Duration::ZERO).await.unwrap_err();
        assert!(matches!(gave_up, NoReport::Busy), "{gave_up:?}");
        assert!(gave_up.told(at).ends_with("busy with other plans for 30 s; try again"));
        let gone = posted(at, &wish, BUSY_TIME).await.unwrap_err();
        assert!(matches!(gone, NoReport::Other(_)), "{gone:?}");
        busy.await.unwrap();
    }
}
