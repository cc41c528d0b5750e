//! What `weir check` finds besides problems of the file itself: what the file names and this
//! machine lacks, doors that stand open, patterns that describe nothing.
//!
//! None of it keeps the gateway from starting: an upstream that lacks something is down with its
//! reason, and the others serve.

use std::path::Path;
use std::sync::Arc;

use crate::config::problem::{Problem, Step, locate};
use crate::config::{
    Config, Patterns, Program, StdioConfig, TransportConfig, UpstreamConfig, matches,
};
use crate::gateway::builtin;
use crate::gateway::snapshot::Snapshot;
use crate::package;
use crate::protocol::method::ListKind;
use crate::shim::NotFound;
use crate::upstream::transport::stdio;

/// What was found, in the order of the file.
pub struct Findings {
    file: String,
    text: String,
    all: Vec<(Problem, Weight)>,
}

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weight {
    /// Something cannot work as it is.
    Problem,
    /// Somebody should look at it.
    Warning,
}

impl Findings {
    /// What this machine lacks, and what stands open. `path` is where the configuration was read.
    pub fn of(config: &Config, path: &Path) -> Findings {
        let mut found = Findings {
            file: path.display().to_string(),
            // Only for the places: without it the findings are told without line.
            text: std::fs::read_to_string(path).unwrap_or_default(),
            all: vec![],
        };
        if let Some(open) = open_admin(config) {
            found.add(&["admin", "listen"], None, Weight::Warning, open, OPEN_REMEDY.into());
        }
        for upstream in config.upstreams.iter().filter(|u| u.enabled) {
            found.files(upstream);
            if let TransportConfig::Stdio(child) = &upstream.transport {
                found.child(config, upstream, child);
            }
        }
        found
    }

    /// Add the patterns that describe nothing of what the upstreams offer, as far as that is
    /// known: an upstream that is not ready may have what they are for.
    pub fn add_idle_patterns(&mut self, snapshot: &Snapshot) {
        for upstream in snapshot.config.upstreams.iter().filter(|u| u.enabled) {
            let Some(own) = offered(snapshot, &upstream.name) else { continue };
            let all: Vec<&str> = own.iter().map(|(_, name)| &**name).collect();
            let at = ["upstreams", &*upstream.name];
            self.idle(&at, &upstream.filter, &all, "matches nothing that it offers");
            for rule in &upstream.tools {
                let tools = own.iter().filter(|(kind, _)| *kind == ListKind::Tools);
                if !tools.into_iter().any(|(_, name)| matches(&rule.pattern, name)) {
                    let at = ["upstreams", &upstream.name, "tools", &rule.pattern];
                    self.add(&at, None, Weight::Warning, IDLE_RULE.into(), IDLE_REMEDY.into());
                }
            }
        }
        for (name, rule) in &snapshot.config.views {
            let every = || snapshot.config.upstreams.iter().map(|u| u.name.clone());
            let seen = rule.upstreams.clone().unwrap_or_else(|| every().collect());
            let known = |name: &Arc<str>| &**name == builtin::NAME || is_ready(snapshot, name);
            if !seen.iter().all(known) {
                continue;
            }
            let builtin = rule.upstreams.is_none().then(|| builtin::NAME.into());
            let public: Vec<Arc<str>> = seen
                .iter()
                .cloned()
                .chain(builtin)
                .flat_map(|u| ListKind::ALL.map(|kind| snapshot.catalog.exposed_names(&u, kind)))
                .flatten()
                .collect();
            let public: Vec<&str> = public.iter().map(|name| &**name).collect();
            let what = "matches no public name of what its upstreams offer";
            self.idle(&["views", name], &rule.patterns, &public, what);
        }
    }

    /// How many of them mean that something cannot work.
    pub fn problems(&self) -> usize {
        self.all.iter().filter(|(_, weight)| *weight == Weight::Problem).count()
    }

    /// How many only want to be looked at.
    pub fn warnings(&self) -> usize {
        self.all.len() - self.problems()
    }

    /// As people read them, one after the other; empty if there is none.
    pub fn told(&self) -> String {
        let mut all: Vec<_> = self.all.iter().collect();
        all.sort_by_key(|(problem, _)| (problem.line, problem.column));
        let told = all.into_iter().map(|(problem, weight)| {
            problem.told(&self.file, if *weight == Weight::Warning { "warning: " } else { "" })
        });
        told.collect::<Vec<_>>().join("\n")
    }

    fn add(
        &mut self,
        key: &[&str],
        item: Option<&str>,
        weight: Weight,
        message: String,
        remedy: String,
    ) {
        let steps = key.iter().map(|k| Step::Key(k)).chain(item.map(Step::Item));
        let (line, column) = locate(&self.text, steps);
        let key = key.iter().map(|k| bare(k)).collect::<Vec<_>>().join(".");
        self.all.push((Problem { line, column, key, message, remedy }, weight));
    }

    fn idle(&mut self, at: &[&str], patterns: &Patterns, names: &[&str], what: &str) {
        for (key, list) in [("allow", &patterns.allow), ("deny", &patterns.deny)] {
            for pattern in list.iter().filter(|p| !names.iter().any(|name| matches(p, name))) {
                let at = [at, &[key]].concat();
                let message = format!("{pattern:?} {what}");
                self.add(&at, Some(pattern), Weight::Warning, message, IDLE_REMEDY.into());
            }
        }
    }

    // `file:` references without a file. They make the upstream dormant, as variables that are not
    // set do; but a path is more often a slip of the hand.
    fn files(&mut self, upstream: &UpstreamConfig) {
        let mut told: Vec<&str> = vec![];
        for (key, template) in upstream.templates() {
            let Some(path) = template.written().strip_prefix("file:") else { continue };
            // A reference that was resolved no longer says what was written.
            if template.expose() != template.written() || told.contains(&path) {
                continue;
            }
            told.push(path);
            let why = match std::fs::metadata(path) {
                Err(e) => format!("file {path} cannot be read ({})", e.kind()),
                Ok(meta) if meta.len() == 0 => format!("file {path} is empty"),
                Ok(_) => format!("file {path} cannot be read"),
            };
            let key: Vec<&str> =
                ["upstreams", &upstream.name].into_iter().chain(key.iter().copied()).collect();
            let remedy = "put it there, readable for the gateway; until then it is dormant";
            self.add(&key, None, Weight::Warning, why, remedy.into());
        }
    }

    fn child(&mut self, config: &Config, upstream: &UpstreamConfig, child: &StdioConfig) {
        // Without its credential nothing of it is started.
        let weight = if upstream.dormant.is_none() { Weight::Problem } else { Weight::Warning };
        let at = |key| ["upstreams", &*upstream.name, key];
        match &child.program {
            Program::Command(command) => {
                if let Err(missing) = stdio::find_program(child, command) {
                    let (what, remedy) = lacking(&missing, child);
                    self.add(&at("command"), None, weight, what, remedy);
                }
            }
            Program::Package(spec) => {
                if let Some(missing) = package::lacks(spec, &config.gateway.cache_dir) {
                    let remedy = "packages are installed by it once, at the first start".into();
                    self.add(&at("package"), None, weight, missing.to_string(), remedy);
                }
            }
        }
        if let Some(cwd) = &child.cwd
            && !cwd.is_dir()
        {
            let what = if cwd.exists() { "is no directory" } else { "does not exist" };
            let remedy = "make it, or leave cwd out: then it gets an empty one of its own";
            self.add(&at("cwd"), None, weight, format!("{} {what}", cwd.display()), remedy.into());
        }
    }
}

const IDLE_RULE: &str = "matches no tool that it offers";
const IDLE_REMEDY: &str = "mend it, or remove it; `weir catalog` shows the names that there are";
const OPEN_REMEDY: &str =
    "listen on 127.0.0.1, or see to it that only your monitoring reaches this address";

/// The sentence about an admin listener that others can reach.
pub fn open_admin(config: &Config) -> Option<String> {
    let address = config.admin.listen.filter(|a| !a.ip().is_loopback())?;
    Some(format!(
        "{address} is no loopback address, and the admin listener has no authentication: whoever \
         reaches it reads /status and /metrics"
    ))
}

fn lacking(missing: &NotFound, child: &StdioConfig) -> (String, String) {
    match missing {
        NotFound::OnPath(name) => {
            let path = stdio::search_path(child);
            let path = path.as_ref().map_or("empty".into(), |p| p.to_string_lossy());
            let what = format!("{name:?} is in no directory of its PATH, which is {path}");
            (what, "install it, or write its whole path, from /".into())
        }
        NotFound::AtPath(path) => {
            (format!("{path} does not exist"), "install it there, or mend the path".into())
        }
        NotFound::NotExecutable(path) => {
            (format!("{path} is no executable file"), format!("make it one: chmod +x {path}"))
        }
    }
}

fn is_ready(snapshot: &Snapshot, name: &str) -> bool {
    snapshot.upstreams.get(name).is_some_and(|u| u.is_ready())
}

// Its own names, if it has just said them itself.
fn offered(snapshot: &Snapshot, upstream: &str) -> Option<Vec<(ListKind, Arc<str>)>> {
    let part = snapshot.catalog.upstreams().find(|p| &*p.config.name == upstream)?;
    let slice = part.slice.as_ref().filter(|_| is_ready(snapshot, upstream))?;
    let of = |kind| slice.list(kind).items.iter().map(move |item| (kind, item.key.clone()));
    Some(ListKind::ALL.into_iter().flat_map(of).collect())
}

fn bare(key: &str) -> String {
    let plain = !key.is_empty()
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if plain { key.to_owned() } else { format!("{key:?}") }
}
