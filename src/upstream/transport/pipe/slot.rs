//! Where one request waits for its answer.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::call::NOTICES_MAX;
use crate::failure::{Delivery, Fault, Reason};
use crate::protocol::message::Frame;
use crate::upstream::transport::OnNotice;

/// One request under way. The reader fills it and never waits; the caller empties it.
#[derive(Default)]
pub struct Slot {
    state: Mutex<State>,
    woken: Notify,
    over: CancellationToken,
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
    pub fn begin(&self) -> bool {
        let mut state = self.lock();
        let go = state.phase == Phase::Queued;
        if go {
            state.phase = Phase::Sent;
        }
        go
    }

    /// The writer could not write a single byte after all.
    pub fn unsend(&self) {
        self.lock().phase = Phase::Withdrawn;
    }

    /// The caller is gone. Whether the upstream may have heard of the request.
    pub fn withdraw(&self) -> bool {
        let mut state = self.lock();
        if state.phase == Phase::Queued {
            state.phase = Phase::Withdrawn;
        }
        state.phase == Phase::Sent
    }

    /// Whether an answer can be meant for it.
    pub fn is_sent(&self) -> bool {
        self.lock().phase == Phase::Sent
    }

    /// Hand over a notice; `false`: too many wait already.
    pub fn notice(&self, frame: Frame) -> bool {
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
    pub fn answer(&self, outcome: Result<Frame, Fault>) {
        let mut state = self.lock();
        state.answer.get_or_insert(outcome);
        drop(state);
        self.woken.notify_one();
        self.over.cancel();
    }

    /// Nobody waits any more.
    pub fn abandon(&self) {
        self.over.cancel();
    }

    /// Resolves when the outcome is there, or nobody waits for it.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }

    /// The connection is gone.
    pub fn fail(&self, lost: &Lost) {
        let sent = self.withdraw();
        self.answer(Err(lost.fault(sent)));
    }

    /// Wait for the outcome, handing over notices as they come, each before the outcome.
    pub async fn outcome(&self, on_notice: OnNotice<'_>) -> Result<Frame, Fault> {
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
pub struct Lost {
    pub reason: Reason,
    /// For the agent.
    pub text: String,
    /// For the log, besides the text.
    pub cause: String,
    /// The program never ran: what was written was read by nobody.
    pub never_ran: bool,
}

impl Lost {
    pub fn new(text: &str) -> Lost {
        Lost {
            reason: Reason::ConnectionLost,
            text: text.to_owned(),
            cause: String::new(),
            never_ran: false,
        }
    }

    /// A message is larger than may be kept, and what comes behind it cannot be told from it. The
    /// upstream has done its work by then.
    pub fn too_large(max: usize) -> Lost {
        let text = format!(
            "the upstream sent a message larger than {max} bytes (max_message), which ended its connection"
        );
        Lost { reason: Reason::TooLarge, ..Lost::new(&text) }
    }

    /// As the fault of a request that was or was not begun to be sent.
    pub fn fault(&self, sent: bool) -> Fault {
        let delivery = if sent && !self.never_ran { Delivery::Unknown } else { Delivery::NotSent };
        let fault = Fault::new(self.reason, delivery, self.text.clone());
        if self.cause.is_empty() { fault } else { fault.because(&self.cause) }
    }
}
