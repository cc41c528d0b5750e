//! Can this consumer see and call this tool now, and if not, which part of the gateway decides?
//!
//! It walks the way of a call, in the order of [`super::Gateway`], and asks at each step what the
//! step would say. The words are those of the refusals themselves, and nothing moves: no token is
//! taken, no place, no probe, no count.

mod answer;
mod limits;
mod unseen;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use answer::{Answer, Limit, Refused};

use crate::call::{Call, Consumer, Terminal};
use crate::catalog::freshness::{Freshness, rfc3339};
use crate::catalog::view::{Route, View};
use crate::config::{Program, TransportConfig};
use crate::failure::{Failure, Reason, Refusal};
use crate::guard::{Part, State as Breaker};
use crate::identity::OPERATOR;
use crate::protocol::method::{self, ListKind};
use crate::protocol::revision::Revision;
use crate::upstream::Upstream;
use crate::upstream::condition::State;
use crate::upstream::outlook::{Outlook, Terms};

use super::snapshot::Snapshot;
use super::{Gateway, Room, builtin, router, stopping};

/// Longest name that is looked for and told back; public names have 64 characters.
const NAME_MAX: usize = 256;

/// One question.
struct Case<'a> {
    gateway: &'a Gateway,
    snapshot: &'a Snapshot,
    consumer: Arc<Consumer>,
    view: Arc<View>,
    tool: &'a str,
}

/// The answer for operators.
pub fn of(gateway: &Gateway, consumer: &str, tool: &str) -> Answer {
    let snapshot = gateway.current.load();
    let tool = cut(tool);
    let who = match snapshot.identity.named(consumer) {
        Some(member) => member.consumer.clone(),
        None if consumer == OPERATOR => Arc::new(Consumer { name: OPERATOR.into(), view: None }),
        None => return nobody(&snapshot, cut(consumer), tool),
    };
    let view = snapshot.view(&who);
    Case { gateway, snapshot: &snapshot, consumer: who, view, tool }.answer(true)
}

/// The gateway's own tool: what holds for who calls it. It says no more of a tool than calling it
/// would.
pub(super) fn tool(
    gateway: &Gateway,
    snapshot: &Snapshot,
    view: &Arc<View>,
    call: &Call,
) -> (Terminal, bool) {
    let Some(tool) = builtin::argument(call, "tool") else {
        return (builtin::text("why needs the argument `tool`, a string", true), true);
    };
    let (consumer, view) = (call.consumer.clone(), view.clone());
    let case = Case { gateway, snapshot, consumer, view, tool: cut(&tool) };
    let told = serde_json::to_string_pretty(&case.answer(false)).expect("our own values");
    (builtin::text(&told, false), false)
}

fn cut(text: &str) -> &str {
    text.char_indices().nth(NAME_MAX).map_or(text, |(at, _)| &text[..at])
}

// Whoever shows no key of ours is refused before anything is looked at.
fn nobody(snapshot: &Snapshot, name: &str, tool: &str) -> Answer {
    let names: Vec<_> = snapshot.identity.members().map(|m| &*m.consumer.name).collect();
    let open = snapshot.config.consumers.is_empty();
    let refused = Refused {
        reason: Reason::Unauthenticated.as_str().into(),
        layer: "consumer".into(),
        since: Some(rfc3339(snapshot.configured_at)),
        why: format!("there is no consumer \"{name}\"; there are: {}", names.join(", ")),
        key: Some(format!("consumers.{name}")),
        remedy: if open {
            "ask for \"anonymous\", who everybody is while no consumers are configured".into()
        } else {
            format!("add the section that `weir key new {name}` prints")
        },
        ..Refused::default()
    };
    Answer { consumer: name.into(), tool: tool.into(), refused: Some(refused), ..Answer::default() }
}

impl Case<'_> {
    fn answer(&self, operator: bool) -> Answer {
        let mut answer = Answer {
            consumer: self.consumer.name.to_string(),
            tool: self.tool.into(),
            ..Answer::default()
        };
        let route = self.view.resolve(ListKind::Tools, self.tool);
        let Some(route) = route else {
            answer.refused = self.draining().or_else(|| Some(self.no_route(operator)));
            return answer;
        };
        answer.visible = true;
        answer.upstream = Some(route.upstream().to_string());
        answer.native = Some(route.native().to_string());
        let own = self.is_own(&route);
        // Asking why is let through by these, and is answered from memory.
        let free = own && &**route.native() == builtin::WHY;
        answer.refused = self.draining().or_else(|| if free { None } else { self.general() });
        if !free {
            answer.limits = self.general_limits(operator);
        }
        if !own {
            self.at_upstream(&route, &mut answer, operator);
        }
        answer.callable = answer.refused.is_none();
        answer
    }

    fn is_own(&self, route: &Route) -> bool {
        &**route.upstream() == builtin::NAME && self.snapshot.config.gateway.builtin
    }

    fn draining(&self) -> Option<Refused> {
        let since = self.gateway.drains_since.get().map(|at| rfc3339(*at));
        self.gateway.is_draining().then(|| Refused {
            since,
            remedy: "ask the gateway that takes its place".into(),
            ..refused(&stopping(), "gateway")
        })
    }

    fn no_route(&self, operator: bool) -> Refused {
        let method = method::find("tools/call", Revision::LATEST).expect("a row of the table");
        let refusal = router::no_route(&self.view, method, self.tool);
        if refusal.reason == Reason::UnknownName {
            if operator {
                return self.unseen();
            }
            let remedy = format!(
                "look for it with {}__search; what this caller may not see is answered like what \
                 does not exist",
                builtin::NAME
            );
            return Refused { remedy, ..refused(&refusal, "name") };
        }
        // Nothing was ever heard of its upstream.
        let upstream = refusal.upstream.as_ref().and_then(|u| self.snapshot.upstreams.get(u));
        let Some(upstream) = upstream else { return refused(&refusal, "catalog") };
        if let Some(own) = upstream.refused() {
            return absent(upstream, &own, operator);
        }
        let since = match self.snapshot.catalog.freshness(&upstream.name) {
            Some(Freshness::Missing { since, .. } | Freshness::Stale { since, .. }) => Some(*since),
            _ => None,
        };
        Refused {
            since: since.map(rfc3339),
            remedy: "it passes by itself once the upstream has answered".into(),
            ..refused(&refusal, "catalog")
        }
    }

    fn under_way(&self) -> (u64, u64) {
        let member = self.snapshot.identity.named(&self.consumer.name);
        let own = member.map_or(0, |m| m.in_flight.load(std::sync::atomic::Ordering::Relaxed));
        (self.gateway.carried(), own)
    }

    // What refuses a call whatever it is for.
    fn general(&self) -> Option<Refused> {
        let max = self.snapshot.config.gateway.max_memory;
        if let Err(refusal) = self.gateway.memory.look(max) {
            return Some(Refused {
                key: Some("gateway.max_memory".into()),
                remedy: "it passes as answers leave; raise gateway.max_memory if it comes often"
                    .into(),
                ..refused(&refusal, "capacity")
            });
        }
        let (all, own) = self.under_way();
        if let Err(refusal) = Room::of(&self.snapshot.config).check(all + 1, own + 1) {
            return Some(Refused {
                key: Some("gateway.max_calls".into()),
                remedy: "it passes as calls end; raise gateway.max_calls if it comes often".into(),
                ..refused(&refusal, "capacity")
            });
        }
        let refusal = self.snapshot.look_at_quota(&self.consumer).err()?;
        let key = format!("consumers.{}.rate", self.consumer.name);
        let remedy = format!("wait, or raise per_second or burst of {key}");
        Some(Refused { key: Some(key), remedy, ..refused(&refusal, "quota") })
    }

    fn at_upstream(&self, route: &Route, answer: &mut Answer, operator: bool) {
        let Some(upstream) = self.snapshot.upstreams.get(route.upstream()) else { return };
        let config = upstream.config();
        let terms = Terms::of(&config, route);
        let outlook = upstream.outlook(route);
        answer.read_only = Some(terms.read_only);
        answer.call_timeout_ms = Some(terms.timeout.as_millis() as u64);
        let hedged = terms.hedge_after.filter(|_| terms.read_only);
        answer.hedge_after_ms = hedged.map(|after| after.as_millis() as u64);
        if answer.refused.is_none() {
            answer.refused = match &outlook.refused {
                Some(refusal) => Some(absent(upstream, refusal, operator)),
                None => by_guard(&config.name, &terms, &outlook),
            };
        }
        answer.notes = self.notes(route, &outlook);
        answer.limits.extend(limits::upstream(&config, &terms, &outlook.guard));
    }

    fn notes(&self, route: &Route, outlook: &Outlook) -> Vec<String> {
        let name = route.upstream();
        let mut out = Vec::new();
        if let Some(Freshness::Stale { since, why }) = self.snapshot.catalog.freshness(name) {
            out.push(format!(
                "{name} is listed as it was last seen, since {}: {why}",
                rfc3339(*since)
            ));
        }
        if outlook.refused.is_some() || outlook.guard.refused.is_some() {
            return out;
        }
        let condition = &outlook.condition;
        if condition.state == State::Starting {
            out.push(format!(
                "{name} is starting since {}: a call waits for it within its time",
                condition.since_text()
            ));
        }
        if outlook.guard.guard.breaker.state != Breaker::Closed {
            out.push(format!("the breaker of {name} lets this call through as a probe"));
        }
        if outlook.guard.crowded {
            out.push(format!("all places of {name} are taken: a call waits for one"));
        }
        let wait = outlook.guard.wait;
        if !wait.is_zero() {
            out.push(format!("a call waits {:.1} s for a token", wait.as_secs_f64()));
        }
        out
    }
}

// Refused for what the upstream's operators say, or for how it is.
fn absent(upstream: &Upstream, refusal: &Refusal, operator: bool) -> Refused {
    let (name, condition) = (&upstream.name, upstream.condition());
    let at = |key: &str| Some(format!("upstreams.{name}.{key}"));
    let cause = operator && !condition.cause.is_empty();
    let known = Refused {
        since: Some(rfc3339(condition.since)),
        cause: cause.then(|| condition.cause.to_string()),
        ..refused(refusal, "connection")
    };
    match refusal.reason {
        Reason::Maintenance | Reason::UpstreamDraining => Refused {
            layer: "maintenance".into(),
            since: upstream.upkeep().map(|term| rfc3339(term.since)),
            cause: None,
            key: at("state"),
            remedy: match refusal.until {
                Some(_) => format!("wait; or set upstreams.{name}.state = \"active\""),
                None => format!("set upstreams.{name}.state = \"active\", or take it out"),
            },
            ..known
        },
        Reason::Dormant => Refused {
            layer: "credential".into(),
            key: Some(format!("upstreams.{name}")),
            remedy: "put what is missing there: a file is read again at a reload (SIGHUP), a \
                     variable when the gateway is started again"
                .into(),
            ..known
        },
        Reason::UpstreamDown => Refused {
            key: at(match &upstream.config().transport {
                TransportConfig::Http(_) => "url",
                TransportConfig::Stdio(s) => match &s.program {
                    Program::Command(_) => "command",
                    Program::Package(_) => "package",
                },
            }),
            remedy: "it is tried again by itself; mend the server or how it is reached".into(),
            ..known
        },
        _ => Refused { remedy: "ask again: the configuration just changed".into(), ..known },
    }
}

// Refused for a limit of the upstream.
fn by_guard(name: &str, terms: &Terms<'_>, outlook: &Outlook) -> Option<Refused> {
    let (part, refusal) = outlook.guard.refused.as_ref()?;
    let age = outlook.guard.age.and_then(|age| SystemTime::now().checked_sub(age));
    let at = |key: &str| format!("upstreams.{name}.{key}");
    let (layer, key, remedy) = match part {
        Part::Breaker => {
            let (why, key) = (&outlook.guard.guard.breaker.why, at("breaker.open_for"));
            let why =
                why.as_ref().map_or_else(|| "a probe is under way".into(), ToString::to_string);
            ("breaker", key, format!("it tries again by itself; it opened because {why}"))
        }
        Part::Concurrency => {
            let remedy = "it passes as calls end; raise concurrency.max or concurrency.queue";
            ("concurrency", at("concurrency"), remedy.into())
        }
        Part::Rate | Part::ToolRate if refusal.reason == Reason::Throttled => {
            let key = at("throttle.pause_max");
            let remedy =
                format!("wait: the server asked for it; {key} is the longest that is obeyed");
            ("throttle", key, remedy)
        }
        Part::Rate => ("rate", at("rate"), "wait, or raise per_second, burst or max_wait".into()),
        Part::ToolRate => {
            let pattern = terms.rule.map_or("", |rule| &rule.pattern);
            let key = at(&format!("tools.{pattern:?}.rate"));
            ("tool_rate", key, "wait, or raise per_second, burst or max_wait".into())
        }
    };
    Some(Refused { since: age.map(rfc3339), key: Some(key), remedy, ..refused(refusal, layer) })
}

// As the caller is told it.
fn refused(refusal: &Refusal, layer: &str) -> Refused {
    let failure = Failure::from(refusal.clone());
    let after = failure.data()["retryAfterMs"].as_u64();
    let opens = match (refusal.until, after) {
        (Some(until), _) => Some(until),
        (None, Some(ms)) => SystemTime::now().checked_add(Duration::from_millis(ms)),
        (None, None) => None,
    };
    Refused {
        reason: refusal.reason.as_str().into(),
        layer: layer.into(),
        why: refusal.text.clone(),
        retry_after_ms: after,
        opens_at: opens.map(rfc3339),
        ..Refused::default()
    }
}
