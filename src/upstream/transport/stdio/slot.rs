//! Where one request waits for its answer.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::call::NOTICES_MAX;
use crate::failure::{Delivery, Fault, Reason};
use crate::protocol::message::Frame;
use crate::upstream::transport::OnNotice;

/// One request under way. The reader fills it and never waits; the caller empties it.
#[derive(Default)]
pub(super) struct Slot {
    state: Mutex<State>,
    woken: Notify,
}

#[derive(Default)]
struct State {
    phase: Phase,
    notices: VecDeque<Frame>,
    answer: Option<Result<Frame, Fault>>,
}

/// How far the message has come.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No byte of it was written.
    #[default]
    Queued,
    /// Its writing was begun.
    Sent,
    /// No byte of it was written and none will be.
    Withdrawn,
}

impl Slot {
    /// The writer is about to write; `false`: it must not.
    pub(super) fn begin(&self) -> bool {
        let mut state = self.lock();
        let go = state.phase == Phase::Queued;
        if go {
            state.phase = Phase::Sent;
        }
        go
    }

    /// The writer could not write a single byte after all.
    pub(super) fn unsend(&self) {
        self.lock().phase = Phase::Withdrawn;
    }

    /// The caller is gone. Whether the upstream may have heard of the request.
    pub(super) fn withdraw(&self) -> bool {
        let mut state = self.lock();
        if state.phase == Phase::Queued {
            state.phase = Phase::Withdrawn;
        }
        state.phase == Phase::Sent
    }

    /// Whether an answer can be meant for it.
    pub(super) fn is_sent(&self) -> bool {
        self.lock().phase == Phase::Sent
    }

    /// Hand over a notice; `false`: too many wait already.
    pub(super) fn notice(&self, frame: Frame) -> bool {
        let mut state = self.lock();
        if state.notices.len() >= NOTICES_MAX {
            return false;
        }
        state.notices.push_back(frame);
        drop(state);
        self.woken.notify_one();
        true
    }

    /// Hand over the outcome; the first one counts.
    pub(super) fn answer(&self, outcome: Result<Frame, Fault>) {
        let mut state = self.lock();
        state.answer.get_or_insert(outcome);
        drop(state);
        self.woken.notify_one();
    }

    /// The connection is gone.
    pub(super) fn fail(&self, lost: &Lost) {
        let sent = self.withdraw();
        self.answer(Err(lost.fault(sent)));
    }

    /// Wait for the outcome, handing over notices as they come, each before the outcome.
    pub(super) async fn outcome(&self, on_notice: OnNotice<'_>) -> Result<Frame, Fault> {
        loop {
            let (notices, answer) = {
                let mut state = self.lock();
                (std::mem::take(&mut state.notices), state.answer.take())
            };
            notices.into_iter().for_each(on_notice);
            if let Some(answer) = answer {
                return answer;
            }
            self.woken.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there is no connection any more.
#[derive(Clone)]
pub(super) struct Lost {
    pub(super) reason: Reason,
    /// For the agent.
    pub(super) text: String,
    /// For the log, besides the text.
    pub(super) cause: String,
    /// The program never ran: what was written was read by nobody.
    pub(super) never_ran: bool,
}

impl Lost {
    pub(super) fn new(text: &str) -> Lost {
        Lost {
            reason: Reason::ConnectionLost,
            text: text.to_owned(),
            cause: String::new(),
            never_ran: false,
        }
    }

    /// As the fault of a request that was or was not begun to be sent.
    pub(super) fn fault(&self, sent: bool) -> Fault {
        let delivery = if sent && !self.never_ran { Delivery::Unknown } else { Delivery::NotSent };
        let fault = Fault::new(self.reason, delivery, self.text.clone());
        if self.cause.is_empty() { fault } else { fault.because(&self.cause) }
    }
}
