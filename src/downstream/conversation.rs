//! Questions to an old client: requests of ours on the stream of the call that caused them, and
//! its responses, which come as messages of their own (2025-11-25 basic/transports, "sending
//! messages to the server").

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::call::heard::{self, Heard};
use crate::call::{Notices, Question, Reply, Word};
use crate::protocol::message::{Frame, Kind, message};
use crate::protocol::meta::{Members, ObjectWriter};
use crate::protocol::older;
use crate::protocol::revision::Revision;

use super::session::Session;

/// The way back to the caller of one call of a session.
pub fn open(session: &Arc<Session>) -> (Notices, heard::Listener) {
    if session.askable.is_nothing() {
        return Notices::channel();
    }
    let (notices, words) = Notices::conversation();
    let (tx, rx) = heard::way();
    // Ends when the call does: then nobody says a word any more.
    tokio::spawn(translate(session.clone(), words, tx));
    (notices, rx)
}

async fn translate(session: Arc<Session>, mut words: mpsc::Receiver<Word>, tx: heard::Teller) {
    while let Some(word) = words.recv().await {
        let said = match word {
            Word::Notice(notice) => tx.send(Heard::Notice(notice)).await,
            Word::Question(question) => ask(&session, question, &tx).await,
            Word::Offer(offer) => tx.send(Heard::Offer(offer)).await,
        };
        // The client's stream is gone. That is no cancellation; but nothing can be asked, and
        // dropping the way back says so to whoever asks.
        if said.is_err() {
            return;
        }
    }
}

async fn ask(session: &Arc<Session>, question: Question, tx: &heard::Teller) -> Result<(), Heard> {
    let told = tx.clone();
    let put = put(session, question, move |notice| {
        let _ = told.try_send(Heard::Notice(notice));
    });
    let Some((id, request)) = put else { return Ok(()) };
    let sent = tx.send(Heard::Notice(request)).await;
    if sent.is_err() {
        session.asked.remove(&id);
    }
    sent
}

/// A question outside of any call, as the request that puts it.
pub fn put_aside(session: &Arc<Session>, question: Question) -> Option<Bytes> {
    let asides = session.asides.clone();
    put(session, question, move |notice| asides.tell(notice)).map(|(_, request)| request)
}

// The question's id and the request; `None` if this client cannot be put it. `tell` takes the notice that it is withdrawn.
fn put(
    session: &Arc<Session>,
    question: Question,
    tell: impl Fn(Bytes) + Send + 'static,
) -> Option<(Bytes, Bytes)> {
    let Question { method, params, mut reply } = question;
    let Some((params, back)) = older::question(&method, params, session.revision) else {
        let _ = reply.send(Reply::Result(DECLINE));
        return None;
    };
    let id = session.question_id();
    let params = fit(&method, params, session.revision, &id);
    let request = message(Some(&id), &method, params.as_deref());
    let (answer_tx, answer) = tokio::sync::oneshot::channel::<Reply>();
    session.asked.insert(id.clone(), answer_tx);
    let (session, asked) = (session.clone(), id.clone());
    tokio::spawn(async move {
        tokio::select! {
            answer = answer => {
                match answer {
                    Ok(Reply::Result(result)) => drop(reply.send(Reply::Result(back.answer(result)))),
                    Ok(error) => drop(reply.send(error)),
                    Err(_) => {}
                }
            }
            // Nobody wants to know any more: the call was cancelled, or the upstream gave up.
            () = reply.closed() => {
                session.asked.remove(&id);
                let params = ObjectWriter::new().raw("requestId", &id).finish();
                tell(message(None, "notifications/cancelled", Some(&params)));
            }
            () = session.ended.cancelled() => { session.asked.remove(&id); }
        }
    });
    Some((asked, request))
}

/// The answer to a form that this client could not show.
const DECLINE: Bytes = Bytes::from_static(br#"{"action":"decline"}"#);

// What the newest revision dropped and an older one needs.
fn fit(method: &str, params: Option<Bytes>, revision: Revision, id: &[u8]) -> Option<Bytes> {
    let raw = params?;
    if method != "elicitation/create" || revision != Revision::R2025_11_25 {
        return Some(raw);
    }
    let Ok(members) = Members::read(&raw) else { return Some(raw) };
    let url = members.get_str("mode").is_some_and(|mode| mode == "url");
    if !url || members.get("elicitationId").is_some() {
        return Some(raw);
    }
    // 2025-11-25 client/elicitation, "url mode": every one has an id.
    let mut out = ObjectWriter::new();
    for (key, value) in &members.0 {
        out.raw(key, value.get().as_bytes());
    }
    out.raw("elicitationId", id);
    Some(out.finish().into())
}

/// A response of the client. One to a question that nobody asked, or a second one, is nothing.
pub fn answered(session: &Session, frame: &Frame) {
    let Some((_, reply)) = frame.id().and_then(|id| session.asked.remove(&id)) else { return };
    let _ = reply.send(match frame.kind() {
        Kind::Result => Reply::Result(frame.outcome()),
        _ => Reply::Error(frame.outcome()),
    });
}
