//! What a configuration would change, found out without changing anything.
//!
//! The judgement is the reload's own (`reload::judge`), the catalogs are built as it
//! builds them; here is only what is known about upstreams that do not run yet, and the comparison
//! of what agents would see ([`changes`]) and of what operators wrote ([`keys`]).

pub mod changes;
pub mod keys;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::diff::{self, AllRunning};
use super::reload::{self, judge};
use crate::catalog::freshness::Freshness;
use crate::catalog::keep;
use crate::catalog::merge::{Catalog, Part};
use crate::catalog::slice::Slice;
use crate::catalog::view::View;
use crate::config::problem::Problems;
use crate::config::{Config, UpstreamConfig};
use crate::gateway::builtin;
use crate::gateway::snapshot::Snapshot;

use changes::{Audience, Seen};

/// What a file is compared with.
pub struct Now {
    /// The configuration in force.
    pub config: Arc<Config>,
    /// What runs under it.
    pub running: AllRunning,
    /// What each offers, as far as that is known.
    pub slices: BTreeMap<Arc<str>, Arc<Slice>>,
    /// The catalog of it, to take over what stays the same.
    pub catalog: Option<Arc<Catalog>>,
}

impl Now {
    /// What runs in this process.
    pub fn of(snapshot: &Snapshot) -> Now {
        let slice = |part: &Part| Some((part.config.name.clone(), part.slice.clone()?));
        Now {
            config: snapshot.config.clone(),
            running: reload::running(snapshot),
            slices: snapshot.catalog.upstreams().filter_map(slice).collect(),
            catalog: Some(snapshot.catalog.clone()),
        }
    }

    /// What `config` would run, with what its folder of state knows of it.
    pub fn as_kept(config: Config) -> Now {
        let slice = |u: &Arc<UpstreamConfig>| {
            let slice = kept(&config, u)?;
            Some((u.name.clone(), slice))
        };
        let slices = config.upstreams.iter().filter(|u| u.enabled).filter_map(slice).collect();
        let running = diff::as_if_running(&config);
        Now { config: Arc::new(config), running, slices, catalog: None }
    }

    /// Nothing: what a first start of `new` would be compared with.
    pub fn nothing(new: &Config) -> Now {
        let config = Config {
            text: "".into(),
            upstreams: vec![],
            views: BTreeMap::default(),
            consumers: vec![],
            ..new.clone()
        };
        Now {
            config: Arc::new(config),
            running: AllRunning::default(),
            slices: BTreeMap::new(),
            catalog: None,
        }
    }
}

fn kept(config: &Config, upstream: &UpstreamConfig) -> Option<Arc<Slice>> {
    let identity = keep::identity(&upstream.transport);
    let kept = keep::look(&config.gateway.state_dir, &upstream.name, &identity, upstream.max_items);
    kept.ok().flatten().map(|kept| Arc::new(kept.slice))
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing would change.
    Unchanged,
    /// It would be applied.
    Applies,
    /// A running gateway would refuse it.
    Refused,
    /// The file has problems.
    Broken,
}

/// Everything that is known about what a file would change. Holds names and sizes, no values.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The file.
    pub file: String,
    /// What it was compared with.
    pub against: String,
    /// Where the gateway that answered reads its own configuration.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub config: String,
    /// What came of it.
    pub verdict: Verdict,
    /// What is wrong with the file, in its order.
    pub problems: Vec<ProblemReport>,
    /// Keys for whose sake a running gateway refuses the whole file.
    pub refused: Vec<String>,
    /// What happens to each upstream, in the order of the file, then those that go.
    pub upstreams: Vec<UpstreamPlan>,
    /// Keys outside the upstreams that differ.
    pub settings: Vec<String>,
    /// What it means for whom.
    pub audiences: Vec<Audience>,
    /// What else is to be said.
    pub notes: Vec<String>,
}

/// One problem of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProblemReport {
    /// From 1; 0 where the file has no place for it.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// The key.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// What happens to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Same process or endpoint, same settings.
    Kept,
    /// Same process or endpoint, with other limits, filters or timeouts.
    Settings,
    /// Made anew; the old one serves until the new one is ready.
    Rebuilt,
    /// Made anew at once: the old one does not serve, or must not any more.
    Replaced,
    /// Started for the first time.
    Started,
    /// Finished.
    Retired,
}

/// How its tools are known that it would have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Known {
    /// It says so now.
    Live,
    /// It said so when it ran last.
    Kept,
    /// It was asked for this plan.
    Asked,
    /// Not before it starts.
    Unknown,
}

/// What happens to one upstream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpstreamPlan {
    /// Its name.
    pub name: String,
    /// What happens.
    pub step: Step,
    /// Which keys of its section differ.
    pub keys: Vec<String>,
    /// How its tools are known; absent for one that goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Known>,
    /// What else is to be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Slices that were fetched for the plan, by the upstream's name.
pub type Asked = BTreeMap<Arc<str>, Arc<Slice>>;

/// The plan for a file that could not be read as a configuration.
pub fn broken(problems: Problems) -> Report {
    let all = problems.all.into_iter().map(|p| ProblemReport {
        line: p.line,
        column: p.column,
        key: p.key,
        message: p.message,
        remedy: p.remedy,
    });
    Report {
        file: problems.file,
        against: String::new(),
        config: String::new(),
        verdict: Verdict::Broken,
        problems: all.collect(),
        refused: vec![],
        upstreams: vec![],
        settings: vec![],
        audiences: vec![],
        notes: vec![],
    }
}

/// Find out what `new` would change.
pub fn make(file: &str, now: &Now, new: &Config, asked: &Asked) -> Report {
    let plan = diff::upstreams(&now.config, &now.running, new);
    let (verdict, refused) = match judge(&now.config, &now.running, new) {
        reload::Verdict::Unchanged => (Verdict::Unchanged, vec![]),
        reload::Verdict::Refused(fixed) => (Verdict::Refused, fixed),
        reload::Verdict::Applies(_) => (Verdict::Applies, vec![]),
    };
    let written = keys::changed(&now.config.text, &new.text);
    let mut upstreams = Vec::new();
    let mut unknown = BTreeSet::new();
    let mut after = Vec::new();
    for c in new.upstreams.iter().filter(|u| u.enabled) {
        let (slice, known) = offer(now, &plan, new, c, asked);
        if slice.is_none() {
            unknown.insert(c.name.clone());
        }
        after.push(part(c, slice));
        upstreams.push(step(now, &plan, c, &written, known));
    }
    for name in plan.retire.iter().filter(|name| !plan.build.contains(*name)) {
        upstreams.push(UpstreamPlan {
            name: name.to_string(),
            step: Step::Retired,
            keys: vec![],
            tools: None,
            note: None,
        });
    }
    let before = now
        .config
        .upstreams
        .iter()
        .filter_map(|c| Some((c, now.running.get(&c.name)?)))
        .map(|(c, running)| part(&running.serving, now.slices.get(&c.name).cloned()))
        .collect();
    let own = builtin::slice();
    let before = seen(&now.config, before, &own, now.catalog.as_deref());
    let after = seen(new, after, &own, before.catalog());
    Report {
        file: file.to_owned(),
        against: String::new(),
        config: String::new(),
        verdict,
        problems: vec![],
        refused: refused.into_iter().map(str::to_owned).collect(),
        upstreams,
        settings: match verdict {
            // "30s" for "30000ms": written in another way.
            Verdict::Unchanged => vec![],
            _ => keys::outside_upstreams(&written),
        },
        audiences: changes::audiences(&before, &after, &unknown),
        notes: vec![],
    }
}

fn part(config: &Arc<UpstreamConfig>, slice: Option<Arc<Slice>>) -> Part {
    Part { config: config.clone(), slice, freshness: Freshness::Live }
}

fn seen(config: &Config, mut parts: Vec<Part>, own: &Arc<Slice>, prev: Option<&Catalog>) -> Seen {
    parts.extend(diff::builtin_part(config, own));
    let catalog = Arc::new(Catalog::build(0, parts, prev));
    let mut views = BTreeMap::new();
    views.insert(None, View::new(&catalog, None));
    for (name, rule) in &config.views {
        views.insert(Some(name.clone()), View::new(&catalog, Some(rule)));
    }
    let consumers = config.consumers.iter().map(|c| (c.name.clone(), c.view.clone())).collect();
    Seen { views, consumers }
}

// What an upstream would offer, and how that is known.
fn offer(
    now: &Now,
    plan: &diff::Plan,
    new: &Config,
    c: &Arc<UpstreamConfig>,
    asked: &Asked,
) -> (Option<Arc<Slice>>, Known) {
    let awaited = plan.awaited.contains(&c.name);
    if plan.keep.contains(&c.name) && !awaited {
        return match now.slices.get(&c.name) {
            Some(slice) => (Some(slice.clone()), Known::Live),
            None => (None, Known::Unknown),
        };
    }
    if let Some(slice) = asked.get(&c.name) {
        return (Some(slice.clone()), Known::Asked);
    }
    // The same server, with another credential or under another name, has the same tools.
    let identity = keep::identity(&c.transport);
    let same = |name: &Arc<str>| {
        let running = now.running.get(name)?;
        let same = keep::identity(&running.serving.transport) == identity;
        now.slices.get(name).filter(|_| same).cloned()
    };
    let running = same(&c.name).or_else(|| now.running.keys().find_map(same));
    match running.or_else(|| kept(new, c)) {
        Some(slice) => (Some(slice), Known::Kept),
        None => (None, Known::Unknown),
    }
}

fn step(
    now: &Now,
    plan: &diff::Plan,
    c: &UpstreamConfig,
    written: &keys::Changed,
    known: Known,
) -> UpstreamPlan {
    let name = &c.name;
    let step = if plan.keep.contains(name) {
        if plan.settings.contains(name) { Step::Settings } else { Step::Kept }
    } else if plan.beside.contains(name) {
        Step::Rebuilt
    } else if plan.retire.contains(name) {
        Step::Replaced
    } else {
        Step::Started
    };
    let in_force = now.config.upstreams.iter().find(|o| o.name == *name);
    let mut keys = match step {
        Step::Settings | Step::Rebuilt | Step::Replaced => keys::of_upstream(written, name),
        Step::Kept | Step::Started | Step::Retired => vec![],
    };
    if let Some(old) = in_force.filter(|_| step != Step::Started) {
        keys.extend(keys::resolved(old, c));
    }
    let tried_again = step == Step::Rebuilt && keys.is_empty();
    let note = match &c.dormant {
        Some(why) => Some(format!("dormant: {why}")),
        None if plan.awaited.contains(name) => Some("its new form is on trial already".into()),
        None if tried_again => Some("it was given up before and is tried again".into()),
        None => None,
    };
    UpstreamPlan { name: name.to_string(), step, keys, tools: Some(known), note }
}
