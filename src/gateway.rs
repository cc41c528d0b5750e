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
pub mod router;
pub mod snapshot;
pub mod subscriptions;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::call::{Call, Notices, Terminal};
use crate::config::secret::Scrubber;
use crate::failure::{Failure, Reason, Refusal};
use crate::observe::Observe;
use crate::observe::record::{Outcome, Record};
use crate::protocol::message::Kind;
use crate::protocol::method::ListKind;
use crate::upstream::outbound::Trace;
use crate::upstream::subscriptions::Subscriptions;

use router::Plan;
use snapshot::{Current, Snapshot};

/// The heart: answers calls from the newest snapshot.
pub struct Gateway {
    /// The newest snapshot.
    pub current: Current,
    /// Records, metrics, traces.
    pub observe: Arc<Observe>,
    /// Which resources are watched, and who is told.
    pub subscriptions: Arc<Subscriptions>,
    in_flight: AtomicU64,
    draining: AtomicBool,
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
            subscriptions,
            in_flight: AtomicU64::new(0),
            draining: AtomicBool::new(false),
        }
    }

    /// Calls being answered.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// From now on no call is admitted.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the gateway is stopping.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Answer one call. Dropping the future cancels it, upstream too.
    pub async fn handle(&self, call: &Call, mut record: Record, notices: &Notices) -> Terminal {
        let snapshot = self.current.load();
        let _count = Count::new(&self.in_flight);
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
                if failure.fault {
                    record.cause(&failure.cause);
                    record.finish(Outcome::Fault(failure.reason));
                } else {
                    record.finish(Outcome::Refused(failure.reason));
                }
                told(call, &failure)
            }
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
        self.admit(snapshot)?;
        let view = snapshot.view(&call.consumer);
        let plan = router::plan(&view, call, &snapshot.config.gateway).map_err(|unplanned| {
            record.name(&unplanned.name);
            unplanned.refusal
        })?;
        match plan {
            Plan::Answer(terminal) => Ok((terminal, false)),
            Plan::Forward(route, parsed) => {
                record.name(route.exposed());
                snapshot.quota(&call.consumer)?;
                record.route(
                    &snapshot.series(&route),
                    (route.kind() == ListKind::Tools).then(|| &**route.exposed()),
                );
                if &**route.upstream() == builtin::NAME {
                    return builtin::call(self, snapshot, &view, call, route.native())
                        .map_err(Failure::from);
                }
                let Some(upstream) = snapshot.upstreams.get(route.upstream()) else {
                    return Err(Refusal::new(Reason::Retired, "the upstream is gone").into());
                };
                if let Some(refusal) = upstream.refusal() {
                    return Err(refusal.into());
                }
                let (parent, state) = (
                    record.traceparent().map(str::to_owned),
                    record.tracestate().map(str::to_owned),
                );
                let trace = Trace { parent: parent.as_deref(), state: state.as_deref() };
                let (result, sent) = upstream.send(route, &parsed, call, trace, notices).await;
                record.spent(sent.spent.queued, sent.spent.limited, sent.spent.attempts);
                result.map(|terminal| (terminal, sent.tool_error))
            }
        }
    }

    fn admit(&self, snapshot: &Snapshot) -> Result<(), Refusal> {
        if self.is_draining() {
            return Err(Refusal::new(Reason::Draining, "the gateway is stopping"));
        }
        if self.in_flight() > snapshot.config.gateway.max_calls as u64 {
            return Err(Refusal::new(
                Reason::Overloaded,
                "the gateway carries as many calls as it may",
            )
            .retry_after(std::time::Duration::from_secs(1)));
        }
        Ok(())
    }
}

/// How a failure reaches the caller: a tool result that the model reads, or an error.
pub fn told(call: &Call, failure: &Failure) -> Terminal {
    if call.method.name == "tools/call" && failure.reason.as_tool_result() {
        Terminal::Own(failure.to_tool_result().into(), crate::call::Form::Canonical)
    } else {
        Terminal::Error(failure.to_error())
    }
}

struct Count<'a>(&'a AtomicU64);

impl<'a> Count<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Count(count)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
