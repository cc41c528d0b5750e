//! One attempt of one call: the right conversation, the request, the answer, and the questions
//! in between.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::call::{Call, Form, Notices, Terminal};
use crate::catalog::view::Route;
use crate::config::UpstreamConfig;
use crate::failure::{Delivery, Fault, Reason};
use crate::guard::{Done, Hedge, Signal};
use crate::protocol::address::Parsed;
use crate::protocol::message::{Frame, Kind};
use crate::protocol::task::{TaskSupport, Tasks};

use super::asking::{ASKS_MAX, Asking};
use super::idempotency::Key;
use super::inbound::{self, Arrived};
use super::lease::{self, Hearing, Held};
use super::link::{Answered, Came, Link, Unanswered};
use super::mirror::{self, Header};
use super::outbound::{self, Trace};
use super::replicas::Trip;
use super::transport::Unasked;
use super::{Upstream, goes_on, large, pages, tasks};

/// What an attempt carries, the same for each.
#[derive(Clone, Copy)]
pub struct Errand<'a> {
    pub config: &'a Arc<UpstreamConfig>,
    pub route: &'a Route,
    pub parsed: &'a Parsed,
    /// The headers that mirror the arguments, as the route's tool was last listed.
    pub mirrored: &'a [Header],
    /// What the upstream knows the call by, if it can.
    pub key: Option<&'a Key>,
    pub trace: Trace<'a>,
    /// That it may be one of two attempts at once, and the number of this one.
    pub hedge: Option<(&'a Hedge, u32)>,
    pub asking: Asking<'a>,
}

impl Errand<'_> {
    /// Whether its caller gets what comes of it while it comes.
    pub fn may_pass(&self) -> bool {
        self.hedge.is_none_or(|(hedge, number)| !hedge.is_beside(number))
    }

    /// What comes now must not happen twice: an attempt beside this one ends.
    pub fn goes_alone(&self) {
        if let Some((hedge, number)) = self.hedge {
            hedge.goes_alone(number);
        }
    }
}

/// Whether a read may be under way twice. Not if its caller can be asked something, so that it
/// would be asked twice or the call has a conversation of its own; nor as one of several rounds;
/// nor what is about a task, or may become one.
pub fn may_be_hedged(call: &Call, route: &Route) -> bool {
    call.askable.is_nothing()
        && !goes_on(call)
        && call.tasks == Tasks::None
        && route.task() != TaskSupport::Required
}

impl Upstream {
    /// Make the attempt beside a slow first one. Its caller hears nothing of it but the answer:
    /// progress of both would go back and forth, and only the first one's is known to go on from
    /// what was told. Nor is a large answer passed on in pieces, for which two would compete.
    pub(super) async fn attempt_beside(
        &self,
        errand: &Errand<'_>,
        number: u32,
        trip: Option<&Trip>,
    ) -> Result<Done<(Terminal, bool)>, Fault> {
        let notices = Notices::none();
        let asking = Asking { notices: &notices, ..errand.asking };
        let hedge = errand.hedge.map(|(hedge, _)| (hedge, number));
        let errand = Errand { hedge, asking, ..*errand };
        match (&self.replicas, trip) {
            // Another one of them, if there is one.
            (Some(replicas), Some(trip)) => replicas.attempt(self, &errand, trip).await,
            _ => attempt(self, &errand).await,
        }
    }
}

/// What a request of a call says besides what its caller said.
#[derive(Default)]
pub struct Extra {
    /// Members of the params.
    pub members: Vec<(&'static str, Bytes)>,
    /// The caller is said to know tasks: for one that does not, they are followed here.
    pub tasks: bool,
}

/// The conversation that carries a call.
pub struct Way {
    main: Arc<Link>,
    held: Option<Held>,
}

impl Way {
    /// What carries it.
    pub fn link(&self) -> &Arc<Link> {
        self.held.as_ref().map_or(&self.main, |held| &held.link)
    }

    /// Where a pipe's questions go.
    pub fn hearing(&self) -> Option<&Hearing> {
        self.held.as_ref().and_then(|held| held.hearing.as_deref())
    }

    /// The call has ended by itself.
    pub fn ended(&self) {
        if let Some(held) = &self.held {
            held.ended(true);
        }
    }

    /// It has not, after all.
    pub fn goes_on(&self) {
        if let Some(held) = &self.held {
            held.ended(false);
        }
    }
}

/// Make one attempt.
pub async fn attempt(
    upstream: &Upstream,
    errand: &Errand<'_>,
) -> Result<Done<(Terminal, bool)>, Fault> {
    let Asking { call, .. } = errand.asking;
    // What most calls never come to has its state on the heap, or each call would carry the room.
    if call.task.is_some() {
        return Box::pin(tasks::attempt(upstream, errand)).await;
    }
    let mut headers = errand.mirrored.to_vec();
    let mut extra = tasks::extra(errand);
    let own = extra.members.len();
    let (mut arrived, mut way) = once(upstream, errand, &mut headers, &extra).await?;
    if let Some(key) = errand.key {
        key.answered();
    }
    let mut rounds = 0;
    // What the upstream did with answers that it has, nobody knows.
    let unknown = |fault| Fault { delivery: Delivery::Unknown, ..fault };
    let unanswered = |rounds, fault| if rounds > 1 { unknown(fault) } else { fault };
    loop {
        // A caller of the newest revision makes the rounds itself.
        if arrived.asks && call.form == Form::Plain {
            rounds += 1;
            let answers = Box::pin(errand.asking.round(rounds, &arrived.terminal)).await;
            extra.members.truncate(own);
            extra.members.extend(answers.map_err(|fault| unanswered(rounds, fault))?);
        } else if let Some(pages) = pages::to_show(call, &arrived.terminal) {
            rounds += 1;
            let visits = upstream.pages.visits(&arrived.terminal, way.link().owner.as_ref());
            let shown = Box::pin(errand.asking.show(rounds, &pages)).await;
            shown.map_err(|fault| unanswered(rounds, fault))?;
            let _aside = errand.asking.guard.asking(errand.asking.deadline);
            Box::pin(visits).await;
        } else if !extra.tasks && tasks::wants_tasks(call, &arrived) {
            extra.tasks = true;
        } else {
            break;
        }
        errand.goes_alone();
        // Not a repetition: the upstream asked for this request (2026-07-28 basic/patterns/mrtr;
        // 2025-11-25 client/elicitation, "URL elicitation required error"). The first request of
        // the call did arrive: what never left now is no proof any more that nothing was done,
        // and the questions must not be asked again.
        (arrived, way) = once(upstream, errand, &mut headers, &extra).await.map_err(unknown)?;
    }
    if let Some(owner) = &way.link().owner {
        let _ = call.owner.set(owner.clone());
    }
    // Once there is a task, nothing that goes wrong with it proves that nothing was done.
    let task = tasks::created(call, way.link(), &arrived.terminal, own > 0).map_err(unknown)?;
    if let Some(task) = task {
        upstream.uses.task();
        let became = Box::pin(tasks::became(upstream, errand, &way, arrived, task));
        arrived = became.await.map_err(unknown)?;
    }
    if let Some(other) = pages::unshown(call, &arrived.terminal) {
        arrived.terminal = other;
    }
    upstream.pages.wanted(call, &arrived.terminal, way.link().owner.as_ref());
    Ok(Done { value: (arrived.terminal, arrived.tool_error), signal: arrived.signal })
}

/// The conversation for a call. `turn`: the upstream may ask something because of it, so on a pipe
/// it takes its turn.
pub async fn way(upstream: &Upstream, errand: &Errand<'_>, turn: bool) -> Result<Way, Fault> {
    let main = upstream.link(errand.asking.deadline).await?;
    let held = if lease::needed(&main, errand.config, errand.asking.call, errand.route.task()) {
        let Errand { config, asking, .. } = errand;
        let taken = upstream.leases.take(&upstream.connector, config, &main, *asking, turn);
        Some(Box::pin(taken).await?)
    } else {
        None
    };
    Ok(Way { main, held })
}

async fn once(
    upstream: &Upstream,
    errand: &Errand<'_>,
    headers: &mut Vec<Header>,
    extra: &Extra,
) -> Result<(Arrived, Way), Fault> {
    let mut renewed = false;
    let mut remade = false;
    loop {
        let way = way(upstream, errand, true).await?;
        let link = way.link();
        let carried = carry(upstream, &way, errand, headers, extra).await;
        way.ended();
        // Nobody there: that is for all to know, before the next calls find it out one by one. A
        // pipe tells its end itself; but where messages are posted, it may not notice.
        if let Err(fault) = &carried
            && (fault.reason == Reason::ConnectFailed
                || fault.reason == Reason::ConnectionLost && !way.main.wire.is_pipe())
        {
            way.main.doubt();
        }
        match carried {
            // The session had ended before the request was looked at. Renewing it is our own
            // affair: it takes no retry, and the caller notices nothing.
            Err(fault) if fault.delivery == Delivery::NotSent && link.is_lost() && !renewed => {
                renewed = true;
            }
            // The upstream says that it did not act on the request, so it may be made anew, once,
            // if the tool's newest schema asks for other headers (2026-07-28
            // basic/transports/streamable-http). A write too: this is no repetition of anything.
            Err(fault)
                if fault.reason == Reason::HeaderMismatch
                    && fault.delivery == Delivery::Refused
                    && !remade =>
            {
                remade = true;
                match Box::pin(mirror::remade(upstream, errand, headers)).await {
                    Some(other) => *headers = other,
                    None => return Err(fault),
                }
            }
            // Again in a new session: then it was not the session, and nothing is proved.
            Err(fault) if link.is_lost() && renewed && fault.delivery == Delivery::NotSent => {
                return Err(Fault { delivery: Delivery::Refused, ..fault });
            }
            arrived => return arrived.map(|arrived| (arrived, way)),
        }
    }
}

/// Send the request once and take the answer.
pub async fn carry(
    upstream: &Upstream,
    way: &Way,
    errand: &Errand<'_>,
    headers: &[Header],
    extra: &Extra,
) -> Result<Arrived, Fault> {
    let link = way.link();
    let Errand { route, parsed, key, trace, asking, .. } = *errand;
    let Asking { call, notices, deadline, guard, .. } = asking;
    if let Some(level) = &call.meta.log_level
        && let Some(rank) = inbound::LOG_LEVELS.iter().position(|l| **l == **level)
    {
        Box::pin(link.want_logs(rank, level)).await;
    }
    if let Some(key) = key {
        key.leaves_on(link)?;
    }
    let id = link.mint();
    let revision = link.agreed.revision;
    let message = outbound::build(call, parsed, route.native(), revision, id, trace, extra, key);
    let method = call.method.name;
    let name = match (&call.task, method) {
        (Some(task), _) => Some(&*task.native),
        (None, "tools/call" | "prompts/get" | "resources/read") => Some(&**route.native()),
        _ => None,
    };
    let on_notice = |frame: Frame| {
        if frame.method() == "notifications/progress" {
            deadline.extend();
        }
        match inbound::notice(call, &link.upstream, &frame) {
            Some(message) => notices.send(message),
            // Changes are told on any stream; what finds no room is told again by the next one.
            None => {
                upstream.heard(link, frame);
            }
        }
    };
    let pieces = large::may_be(errand, extra);
    let headers = (headers, key.and_then(Key::header));
    let answered = if link.askable.is_nothing() {
        link.exchange_with(id, method, name, headers, message, &on_notice, None, pieces).await
    } else {
        let (asks, asked) = mpsc::channel::<Unasked>(ASKS_MAX);
        if let Some(hearing) = way.hearing() {
            hearing.begin(asks.clone());
        }
        let exchange =
            link.exchange_with(id, method, name, headers, message, &on_notice, Some(&asks), pieces);
        let served = Box::pin(asking.serve(link, asked));
        tokio::select! {
            biased;
            answered = exchange => answered,
            () = served => unreachable!("it ends with the call"),
        }
    };
    let answered = match answered {
        Ok(Came::Answered(answered)) => answered,
        // In a box, so that the calls that need it not, which are most, carry no room for it.
        Ok(Came::Large(large)) => match Box::pin(large::pass(large, errand, link.era(), id)).await?
        {
            large::Outcome::Whole(frame) => Answered::whole(frame),
            large::Outcome::Passed(arrived) => {
                if arrived.signal == Signal::Broken(Reason::ConnectionLost) {
                    way.main.doubt();
                }
                return Ok(arrived);
            }
        },
        Err(Unanswered { fault, status }) => {
            // An ended session (2025-11-25 basic/transports, "session management"): a new one is
            // made. The server said that it did not look at the request.
            if status == Some(404) && link.agreed.session.is_some() {
                link.lost();
                return Err(Fault { delivery: Delivery::NotSent, ..fault });
            }
            return Err(fault);
        }
    };
    if let Some(fault) = session_is_gone(link, &answered) {
        link.lost();
        return Err(fault);
    }
    if let Some(fault) = mirror::refused(link, method, &answered) {
        return Err(fault);
    }
    inbound::accept(call, guard, route, link.era(), answered.frame)
}

/// The code that the SDKs give the error of a session they do not know.
const SESSION_NOT_FOUND: i64 = -32001;

// Whether an error says that the session is gone and the request was not looked at (2025-11-25
// basic/transports, "session management"). One that names our request is the upstream's own
// answer, whatever it speaks of: tools have sessions too.
fn session_is_gone(link: &Link, answered: &Answered) -> Option<Fault> {
    let error = &answered.frame;
    if error.kind() != Kind::Error || link.agreed.session.is_none() {
        return None;
    }
    let lost = |delivery| {
        let text = "the upstream no longer knows the session";
        Some(Fault::new(Reason::ConnectionLost, delivery, text))
    };
    let nameless = error.id().is_none_or(|id| *id == *b"null");
    match answered.status {
        404 if nameless => lost(Delivery::NotSent),
        // Not proof enough to repeat a write, but enough to make a new session.
        404 if error.error_code() == Some(SESSION_NOT_FOUND) => lost(Delivery::Refused),
        400 if nameless && speaks_of_session(error) => lost(Delivery::Refused),
        _ => None,
    }
}

fn speaks_of_session(error: &Frame) -> bool {
    String::from_utf8_lossy(&error.outcome()).to_lowercase().contains("session")
}
