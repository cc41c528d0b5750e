//! `POST /plan`: what a configuration would change here, by the reload's own judgement. It changes
//! nothing and tells no more than `/status` and `/metrics` do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Request, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::{Body, json, text};
use crate::aside::aside;
use crate::catalog::keep;
use crate::config::Config;
use crate::config::problem::Problems;
use crate::control::plan::{self, Asked, Now};
use crate::downstream::Edge;

/// Largest request: a file, and the catalogs of a few upstreams that were asked for it.
const WISH_MAX: usize = 32 * 1024 * 1024;
/// Largest answer that a client reads: tens of thousands of names for tens of consumers.
pub const ANSWER_MAX: usize = 64 * 1024 * 1024;
/// How long a request may take to arrive.
const WISH_TIME: Duration = Duration::from_secs(30);
/// Plans at once: each takes memory for the whole catalog a second time.
static PLACES: Semaphore = Semaphore::const_new(1);

/// What is asked.
#[derive(Default, Serialize, Deserialize)]
pub struct Wish {
    /// What to call the file.
    pub file: String,
    /// Its text.
    pub text: String,
    /// Catalogs of upstreams that do not run here, as they are kept on disk, by name.
    #[serde(default)]
    pub known: BTreeMap<String, String>,
}

/// Reads a text as the next reload would: with this process's environment and command line.
type Parse = Box<dyn Fn(&str, &str) -> Result<Config, Problems> + Send + Sync>;

/// What this gateway makes of a text.
pub struct Planner {
    /// Where it reads its own.
    pub config: String,
    /// Its way of reading.
    pub parse: Parse,
}

pub(super) async fn answer(
    edge: &Edge,
    planner: &Arc<Planner>,
    request: Request<Incoming>,
) -> Response<Body> {
    // A page in a browser can post to this machine, but not so without asking first.
    let is_json = |value: &hyper::header::HeaderValue| {
        value.to_str().is_ok_and(|v| v.trim().eq_ignore_ascii_case("application/json"))
    };
    if !request.headers().get(CONTENT_TYPE).is_some_and(is_json) {
        return text(415, "send the plan's wish as application/json\n");
    }
    let Ok(_place) = PLACES.try_acquire() else {
        return text(503, "another plan is being made\n");
    };
    let read = Limited::new(request.into_body(), WISH_MAX).collect();
    let body = match tokio::time::timeout(WISH_TIME, read).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return text(413, "the wish is too large, or ended early\n"),
        Err(_) => return text(408, "the wish did not arrive in time\n"),
    };
    let Ok(wish) = serde_json::from_slice::<Wish>(&body) else {
        return text(400, "that is no wish for a plan\n");
    };
    let report = aside(|| make(edge, planner, &wish));
    json(200, &report)
}

fn make(edge: &Edge, planner: &Planner, wish: &Wish) -> plan::Report {
    let mut report = match (planner.parse)(&wish.text, &wish.file) {
        Err(problems) => plan::broken(problems),
        Ok(new) => {
            let now = Now::of(&edge.gateway.current.load());
            let (asked, notes) = asked(&new, wish);
            let mut report = plan::make(&wish.file, &now, &new, &asked);
            report.notes = notes;
            report
        }
    };
    let last_good = edge.gateway.standing.load().last_good.is_some();
    report.against.push_str("the gateway that runs");
    if last_good {
        report.against.push_str(", on its last good configuration");
    }
    report.config.clone_from(&planner.config);
    report
}

fn asked(new: &Config, wish: &Wish) -> (Asked, Vec<String>) {
    let (mut asked, mut notes) = (Asked::new(), Vec::new());
    for c in &new.upstreams {
        let Some(text) = wish.known.get(&*c.name) else { continue };
        let text = Bytes::copy_from_slice(text.as_bytes());
        match keep::from_text(&text, &keep::identity(&c.transport), c.max_items) {
            Ok(slice) => {
                asked.insert(c.name.clone(), Arc::new(slice));
            }
            Err(why) => notes.push(format!("what {} said is of no use: {why}", c.name)),
        }
    }
    (asked, notes)
}
