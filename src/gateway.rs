//! The walk of one call.
//!
//! ```text
//!  call ── admit (quota, bound) ── router: method × view ─┬─ Answer: from memory
//!                                                          └─ Forward(route) ── upstream.send
//! ```
//!
//! Everything it reads is in one [`snapshot::Snapshot`], loaded once; nothing here fans out and
//! nothing here asks which era a peer is of.

pub mod builtin;
pub mod memory;
pub mod router;
pub mod snapshot;
pub mod standing;
pub mod subscriptions;
pub mod why;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use arc_swap::ArcSwap;

use crate::call::{Call, Consumer, Counted, Notices, Terminal};
use crate::config::Config;
use crate::config::secret::Scrubber;
use crate::failure::{Failure, Reason, Refusal};
use crate::identity::Member;
use crate::observe::Observe;
use crate::observe::record::{Outcome, Record};
use crate::protocol::message::Kind;
use crate::protocol::method::ListKind;
use crate::upstream::outbound::Trace;
use crate::upstream::subscriptions::Subscriptions;

use router::Plan;
use snapshot::{Current, Snapshot, take_quota};
use standing::Standing;

/// The heart: answers calls from the newest snapshot.
pub struct Gateway {
    /// The newest snapshot.
    pub current: Current,
    /// Records, metrics, traces.
    pub observe: Arc<Observe>,
    /// Whether there is room for more.
    pub memory: memory::Memory,
    /// Which resources are watched, and who is told.
    pub subscriptions: Arc<Subscriptions>,
    /// Whether the file is in force, and if not, why.
    pub standing: ArcSwap<Standing>,
    in_flight: Arc<AtomicU64>,
    // Of these, what is carried to an upstream.
    carried: Arc<AtomicU64>,
    leaving: AtomicBool,
    draining: AtomicBool,
    drains_since: OnceLock<SystemTime>,
}

impl Gateway {
    /// A gateway that serves `first`.
    pub fn new(
        first: Snapshot,
        observe: Arc<Observe>,
        subscriptions: Arc<Subscriptions>,
    ) -> Gateway {
        Gateway {
            current: Current::new(first),
            observe,
            memory: memory::Memory::default(),
            subscriptions,
            standing: ArcSwap::default(),
            in_flight: Arc::default(),
            carried: Arc::default(),
            leaving: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            drains_since: OnceLock::new(),
        }
    }

    /// Calls being answered.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// From now on clients are asked to go elsewhere; calls that come all the same are answered.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// Whether the gateway is about to stop, or stopping.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// From now on no call is admitted.
    pub fn drain(&self) {
        let _ = self.drains_since.set(SystemTime::now());
        self.draining.store(true, Ordering::Release);
        self.leave();
    }

    /// Whether the gateway is stopping.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Answer one call. Dropping the future cancels it, upstream too.
    pub async fn handle(&self, call: &Call, mut record: Record, notices: &Notices) -> Terminal {
        let snapshot = self.current.load();
        let _count = Counted::new(&self.in_flight);
        match self.walk(&snapshot, call, &mut record, notices).await {
            Ok((terminal, tool_error)) => {
                record.bytes_out(terminal.size());
                self.observe.metrics.notices_dropped(notices.dropped());
                record.finish(match &terminal {
                    _ if tool_error => Outcome::ToolError,
                    Terminal::Answer(frame, _) if frame.kind() == Kind::Error => {
                        Outcome::UpstreamError
                    }
                    Terminal::Error(_) => Outcome::Refused(Reason::InvalidParams),
                    _ => Outcome::Ok,
                });
                terminal
            }
            Err(failure) => {
                if failure.outcome_unknown {
                    record.unknown();
                }
                if failure.reason == Reason::Cancelled {
                    record.finish(Outcome::Cancelled);
                } else if failure.fault {
                    record.cause(&failure.cause);
                    record.finish(Outcome::Fault(failure.reason));
                } else {
                    record.finish(Outcome::Refused(failure.reason));
                }
                told(call, &failure)
            }
        }
    }

    /// The roots of a session's client changed: the upstreams that may ask for them are told.
    pub fn roots_changed(&self, consumer: &Consumer, session: &str) {
        for upstream in self.current.load().upstreams.values() {
            upstream.roots_changed(consumer, session);
        }
    }

    /// Tell a new set of secrets to the log's net.
    pub fn scrub_logs(&self, scrubber: Scrubber) {
        self.observe.scrub(scrubber);
    }

    // The order of the steps is the design: each is one line that names its module.
    async fn walk(
        &self,
        snapshot: &Arc<Snapshot>,
        call: &Call,
        record: &mut Record,
        notices: &Notices,
    ) -> Result<(Terminal, bool), Failure> {
        if self.is_draining() {
            return Err(stopping().into());
        }
        let member = snapshot.identity.named(&call.consumer.name);
        let view = snapshot.view_of(&call.consumer, member);
        let plan = router::plan(&view, call, &snapshot.config.gateway).map_err(|unplanned| {
            record.name(&unplanned.name);
            let Some(name) = &unplanned.refusal.upstream else { return unplanned.refusal };
            if let Some(series) = snapshot.series.get(name) {
                record.upstream(series);
            }
            // What is known of the upstream itself says more.
            let own = snapshot.upstreams.get(name).and_then(|upstream| upstream.refusal(call));
            own.unwrap_or(unplanned.refusal)
        })?;
        match plan {
            Plan::Answer(terminal) => Ok((terminal, false)),
            Plan::Forward(route, parsed) => {
                record.named(route.exposed());
                let own = &**route.upstream() == builtin::NAME && snapshot.config.gateway.builtin;
                if own && &**route.native() == builtin::WHY {
                    // Asking why costs nothing: who is refused below can still ask.
                    record.route(&snapshot.series(&route), Some(&**route.exposed()));
                    return Ok(why::tool(self, snapshot, &view, call));
                }
                let _carried = self.admit(snapshot, call, member)?;
                take_quota(member)?;
                record.route(
                    &snapshot.series(&route),
                    (route.kind() == ListKind::Tools).then(|| &**route.exposed()),
                );
                if own {
                    return builtin::call(self, snapshot, &view, call, route.native())
                        .map_err(Failure::from);
                }
                let Some(upstream) = snapshot.upstreams.get(route.upstream()) else {
                    return Err(Refusal::new(Reason::Retired, "the upstream is gone").into());
                };
                if let Some(refusal) = upstream.refusal(call) {
                    return Err(refusal.into());
                }
                let (parent, state) = (
                    record.traceparent().map(str::to_owned),
                    record.tracestate().map(str::to_owned),
                );
                let trace = Trace { parent: parent.as_deref(), state: state.as_deref() };
                let (result, sent) = upstream.send(route, &parsed, call, trace, notices).await;
                record.spent(sent.spent.queued, sent.spent.limited, sent.spent.attempts);
                record.bytes_out(sent.passed);
                result.map(|terminal| (terminal, sent.tool_error))
            }
        }
    }

    // Only what is carried counts: answers from memory are there also for who is refused here. One
    // consumer of several gets half at most, so that the others are served whatever it does.
    fn admit(
        &self,
        snapshot: &Snapshot,
        call: &Call,
        member: Option<&Member>,
    ) -> Result<Carried, Refusal> {
        let size = call.frame.bytes().len();
        self.memory.admit(size as u64, snapshot.config.gateway.max_memory)?;
        let all = Counted::new(&self.carried);
        let own = match member {
            Some(member) => Counted::new(&member.in_flight),
            None => Counted::new(&Arc::default()),
        };
        let room = Room::of(&snapshot.config);
        room.check(all.now, own.now)?;
        Ok(Carried { _all: all, _own: own })
    }

    /// Calls that are carried to an upstream now.
    fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

/// How many calls may be carried at once.
struct Room {
    max: u64,
    // Of them, by one consumer.
    share: u64,
}

impl Room {
    fn of(config: &Config) -> Room {
        let max = config.gateway.max_calls;
        let alone = config.consumers.len() <= 1;
        let share = if alone { max } else { max.div_ceil(2) };
        Room { max: max as u64, share: share as u64 }
    }

    // Whether so many, the one that asks among them, may be.
    fn check(&self, all: u64, own: u64) -> Result<(), Refusal> {
        if all <= self.max && own <= self.share {
            return Ok(());
        }
        let text = if all > self.max {
            "the gateway carries as many calls as it may"
        } else {
            "as many calls of this consumer are under way as may be"
        };
        Err(Refusal::new(Reason::Overloaded, text).retry_after(std::time::Duration::from_secs(1)))
    }
}

fn stopping() -> Refusal {
    Refusal::new(Reason::Draining, "the gateway is stopping")
}

struct Carried {
    _all: Counted,
    _own: Counted,
}

/// How a failure reaches the caller: a tool result that the model reads, or an error.
#[cold]
pub fn told(call: &Call, failure: &Failure) -> Terminal {
    if call.method.name == "tools/call" && failure.reason.as_tool_result() {
        Terminal::Own(failure.to_tool_result().into(), crate::call::Form::Canonical)
    } else {
        Terminal::Error(failure.to_error())
    }
}
