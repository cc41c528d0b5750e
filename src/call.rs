//! What travels through the heart: the call, the notices it causes, its terminal.

pub mod heard;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::failure::Fault;
use crate::protocol::capability::Askable;
use crate::protocol::error::ErrorObject;
use crate::protocol::message::{Frame, Kind};
use crate::protocol::meta::RequestMeta;
use crate::protocol::method::Method;
use crate::protocol::prepared::Prepared;
use crate::protocol::revision::Revision;
use crate::protocol::task::Tasks;

use heard::Heard;

/// Who calls. Made only by `identity`, so there is no work for nobody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Consumer {
    /// The name in the configuration; `anonymous` when none are configured.
    pub name: Arc<str>,
    /// The view in the configuration; `None`: everything.
    pub view: Option<Arc<str>>,
}

/// Headers `mcp-param-…` of a caller that its tool does not define: names in lower case, values as
/// they came. An upstream may know what we don't.
pub type Strays = Box<[(Box<str>, Box<str>)]>;

/// The task that a request names.
#[derive(Clone, Debug)]
pub struct TaskName {
    /// Public name of the tool that runs in it: whoever may call that may have the task.
    pub tool: Box<str>,
    /// The upstream's id.
    pub native: Box<str>,
    /// The caller's id.
    pub public: Box<str>,
    /// Whose conversation it runs in, if that is not everybody's: another one may have a task of
    /// the same id.
    pub owner: Option<Box<str>>,
}

impl TaskName {
    /// Whether what is told in a conversation of `owner` is of this task.
    pub fn is_told_by(&self, owner: Option<&str>) -> bool {
        self.owner.as_deref() == owner
    }
}

/// What a round of a call leaves for the next one.
#[derive(Clone, Debug, Default)]
pub struct Earlier {
    /// Whose conversation it was in, if that is not everybody's.
    pub owner: Option<Box<str>>,
    /// The key by which the upstream knows the call again.
    pub key: Option<Box<str>>,
}

/// One downstream request in canonical form.
pub struct Call {
    /// Who calls.
    pub consumer: Arc<Consumer>,
    /// Its row in the method table.
    pub method: &'static Method,
    /// The message as it came.
    pub frame: Frame,
    /// What its `_meta` says, or what the old client's handshake said, put in the same words.
    pub meta: RequestMeta,
    /// In which words the caller wants what is kept prepared in both.
    pub form: Form,
    /// What the caller can be asked while the call runs.
    pub askable: Askable,
    /// Its headers that mirror nothing we know of.
    pub strays: Strays,
    /// What the caller makes of it if a call becomes a task.
    pub tasks: Tasks,
    /// The task that it names, for the methods that name one.
    pub task: Option<TaskName>,
    /// See [`TaskName::owner`], once the call has become a task.
    pub owner: OnceLock<Arc<str>>,
    /// What an earlier round of it left (2026-07-28 basic/patterns/mrtr).
    pub earlier: Option<Box<Earlier>>,
    /// The key by which its upstream knows it again, once it has one.
    pub key: OnceLock<Box<str>>,
    /// The caller's session, if it has one: a conversation with an upstream may belong to it.
    pub session: Option<Arc<str>>,
    /// Where notices for the caller go that belong to none of its calls, if it has such a way.
    pub asides: Option<Arc<Asides>>,
    /// The caller's revision; for the record, and for nobody to branch on between the edges.
    pub revision: Revision,
}

/// In which words a result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The newest revision's: has `resultType`, and cache hints where they belong.
    Canonical,
    /// An old revision's: lacks them. Left so until the edge knows whether they are needed.
    Plain,
}

/// The one outcome of a call.
pub enum Terminal {
    /// A result or an error that came from an upstream or the catalog. The frame's id is not
    /// the caller's; the edge puts that in.
    Answer(Frame, Form),
    /// The raw `result` that we made ourselves.
    Own(Bytes, Form),
    /// A result that is kept ready, in the caller's own words.
    Prepared(Prepared),
    /// The error that we made ourselves.
    Error(ErrorObject),
    /// The caller has got it while it came: see [`Offer`].
    Passed(Passed),
}

/// An answer that was passed on in pieces.
pub struct Passed {
    /// So many bytes.
    pub bytes: usize,
    /// Why it was broken off, if it was.
    pub broken: Option<Fault>,
}

impl Terminal {
    /// Its size in bytes, as far as it was not made by us.
    pub fn size(&self) -> usize {
        match self {
            Terminal::Answer(frame, _) => frame.bytes().len(),
            Terminal::Own(result, _) => result.len(),
            Terminal::Prepared(prepared) => prepared.result().len(),
            Terminal::Error(error) => error.message.len(),
            Terminal::Passed(passed) => passed.bytes,
        }
    }

    /// Whether it is an error response (not a tool result with `isError`).
    pub fn is_error(&self) -> bool {
        match self {
            Terminal::Answer(frame, _) => frame.kind() == Kind::Error,
            Terminal::Own(..) | Terminal::Prepared(_) | Terminal::Passed(_) => false,
            Terminal::Error(_) => true,
        }
    }
}

/// One of those that are counted, until it is dropped.
pub struct Counted {
    count: Arc<AtomicU64>,
    /// How many there were with it when it came.
    pub now: u64,
}

impl Counted {
    /// One more.
    pub fn new(count: &Arc<AtomicU64>) -> Counted {
        Counted { now: count.fetch_add(1, Ordering::AcqRel) + 1, count: count.clone() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Most notices that wait for a slow client before the oldest kind of loss sets in: further ones
/// are dropped and counted. A call's progress is a handful; 256 rides out a stalled client.
pub const NOTICES_MAX: usize = 256;

/// Words that wait for a session's client outside of its calls. It may have no stream open for
/// them; then the newest are kept.
#[derive(Default)]
pub struct Asides {
    waiting: Mutex<VecDeque<Word>>,
    more: Notify,
}

/// Most of them that wait: each is about a page that a person has open.
const ASIDES_MAX: usize = 32;

impl Asides {
    /// Hand over one complete notification message. Never waits.
    pub fn tell(&self, message: Bytes) {
        self.push(Word::Notice(message));
    }

    /// Ask the client. `None`: it gave no answer within [`ANSWER_TIME`]. Dropping the future takes
    /// the question back.
    pub async fn ask(&self, method: &str, params: Option<Bytes>) -> Option<Reply> {
        let (reply, answer) = oneshot::channel();
        self.push(Word::Question(Question { method: method.into(), params, reply }));
        tokio::time::timeout(ANSWER_TIME, answer).await.ok()?.ok()
    }

    fn push(&self, word: Word) {
        let mut waiting = self.waiting.lock().expect("no panic while held");
        if waiting.len() >= ASIDES_MAX {
            waiting.pop_front();
        }
        waiting.push_back(word);
        self.more.notify_one();
    }

    /// The next one. Safe to drop and call again.
    pub async fn next(&self) -> Word {
        loop {
            let first = self.waiting.lock().expect("no panic while held").pop_front();
            match first {
                Some(word) => return word,
                None => self.more.notified().await,
            }
        }
    }
}

/// How long a caller is given for an answer. A person may have to look something up; a question
/// that is open for longer is forgotten, and upstreams give up sooner than that.
pub const ANSWER_TIME: Duration = Duration::from_secs(600);

/// A question to the caller of a running call, in the words of the newest revision
/// (2026-07-28 basic/patterns/mrtr).
#[derive(Debug)]
pub struct Question {
    /// `elicitation/create`, `sampling/createMessage` or `roots/list`.
    pub method: Box<str>,
    /// Raw params, if there are any.
    pub params: Option<Bytes>,
    /// Where the answer goes; closed when nobody waits for it any more.
    pub reply: oneshot::Sender<Reply>,
}

/// A caller's answer.
#[derive(Debug)]
pub enum Reply {
    /// The raw `result`.
    Result(Bytes),
    /// The raw `error`.
    Error(Bytes),
}

/// What comes back to a caller before the terminal.
#[derive(Debug)]
pub enum Word {
    /// A whole notification message.
    Notice(Bytes),
    /// A question.
    Question(Question),
    /// The answer comes, if the caller takes it in pieces.
    Offer(Offer),
}

/// An answer that is too large to be kept, offered to its caller while it comes. Whoever drops the
/// offer declines it, and gets the answer as a whole.
#[derive(Debug)]
pub struct Offer(oneshot::Sender<mpsc::Sender<Piece>>);

/// What an answer comes in. Its way that ends without [`Piece::End`] was broken off.
#[derive(Debug)]
pub enum Piece {
    /// Some of its bytes.
    Bytes(Bytes),
    /// That was all of it.
    End,
}

/// Pieces that wait for a slow client; its upstream waits behind them.
const PIECES_MAX: usize = 2;

/// How long an offer stands. Who may take it is at the call's side and answers at once; who does
/// not is behind with what was said before.
const OFFER_TIME: Duration = Duration::from_secs(1);

impl Offer {
    /// Take it. `None`: it was taken back.
    pub fn take(self) -> Option<mpsc::Receiver<Piece>> {
        let (tx, rx) = mpsc::channel(PIECES_MAX);
        self.0.send(tx).ok().map(|()| rx)
    }
}

#[derive(Clone)]
enum Way {
    None,
    Notices(heard::Teller),
    // And how many words found no room.
    Words(mpsc::Sender<Word>, Arc<AtomicU64>),
}

/// Where the notices of one call go while it runs, and its questions if its caller can be asked.
/// Cloning shares the way.
#[derive(Clone)]
pub struct Notices(Way);

impl Notices {
    /// A way to a client, and its end.
    pub fn channel() -> (Notices, heard::Listener) {
        let (teller, listener) = heard::way();
        (Notices(Way::Notices(teller)), listener)
    }

    /// A way to a client that can be asked, and its end.
    pub fn conversation() -> (Notices, mpsc::Receiver<Word>) {
        let (tx, rx) = mpsc::channel(NOTICES_MAX);
        (Notices(Way::Words(tx, Arc::default())), rx)
    }

    /// Nobody listens.
    pub fn none() -> Notices {
        Notices(Way::None)
    }

    /// Hand over one complete notification message, canonical. Never waits: a client that does
    /// not read must not hold up the upstream's reader, which others share.
    pub fn send(&self, message: Bytes) {
        match &self.0 {
            Way::None => {}
            Way::Notices(teller) => teller.tell(Heard::Notice(message)),
            Way::Words(tx, dropped) => {
                if tx.try_send(Word::Notice(message)).is_err() {
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Ask the caller. `None`: it cannot be asked, is gone, or gave no answer within
    /// [`ANSWER_TIME`]. Dropping the future takes the question back.
    pub async fn ask(&self, method: &str, params: Option<Bytes>) -> Option<Reply> {
        let Way::Words(tx, _) = &self.0 else { return None };
        let (reply, answer) = oneshot::channel();
        let question = Question { method: method.into(), params, reply };
        let asked = async {
            tx.send(Word::Question(question)).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(ANSWER_TIME, asked).await.ok().flatten()
    }

    /// Offer the answer in pieces; where they go, if it is taken.
    pub async fn offer(&self) -> Option<mpsc::Sender<Piece>> {
        let (reply, mut answer) = oneshot::channel();
        let sent = match &self.0 {
            Way::None => false,
            Way::Notices(teller) => teller.try_send(Heard::Offer(Offer(reply))).is_ok(),
            Way::Words(tx, _) => tx.try_send(Word::Offer(Offer(reply))).is_ok(),
        };
        if !sent {
            return None;
        }
        match tokio::time::timeout(OFFER_TIME, &mut answer).await {
            Ok(taken) => taken.ok(),
            Err(_) => {
                // It may be taken just now.
                answer.close();
                answer.try_recv().ok()
            }
        }
    }

    /// How many were dropped.
    pub fn dropped(&self) -> u64 {
        match &self.0 {
            Way::None => 0,
            Way::Notices(teller) => teller.dropped(),
            Way::Words(_, dropped) => dropped.load(Ordering::Relaxed),
        }
    }
}
