//! What tasks of old upstreams want to know, for callers of the newest revision: such an upstream
//! asks live, on the stream of `tasks/result` (2025-11-25 basic/utilities/tasks, "input required");
//! the caller reads the questions in `tasks/get` and answers with `tasks/update`
//! (`io.modelcontextprotocol/tasks`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use crate::call::ANSWER_TIME;
use crate::protocol::error::{ErrorObject, INTERNAL_ERROR};
use crate::protocol::message::{Frame, Kind, message, response};
use crate::protocol::meta::{Members, ObjectWriter, cancelled_id};
use crate::protocol::task;
use crate::seal::random_name;

use super::asking::ASKS_MAX;
use super::errand::Way;
use super::link::Link;
use super::transport::Unasked;

/// Most tasks of one upstream whose questions are open: each holds a request there.
const TASKS_MAX: usize = 64;

/// And of one consumer.
const TASKS_OF_ONE_MAX: usize = 16;

/// How long a question that a task has may take to come once its stream is open.
const COMING: Duration = Duration::from_millis(500);

/// The tasks of one upstream that want to know something.
#[derive(Default)]
pub struct Inputs {
    open: Mutex<HashMap<Key, Arc<Waiting>>>,
}

// The task in its conversation: another one may have a task of the same id.
type Key = (usize, Box<str>);

// Not used again while the conversation is held.
fn key(link: &Arc<Link>, task: &str) -> Key {
    (Arc::as_ptr(link) as usize, task.into())
}

/// What one task wants to know.
struct Waiting {
    link: Arc<Link>,
    consumer: Arc<str>,
    asked: Mutex<Vec<(String, Frame)>>,
    more: Notify,
}

impl Inputs {
    /// Whether somebody listens to this task's questions.
    pub fn hears(&self, link: &Arc<Link>, task: &str) -> bool {
        self.open.lock().expect("no panic while held").contains_key(&key(link, task))
    }

    /// Listen to this task's questions over `way` until it has a result, or nobody answers.
    /// Too many at once: not at all.
    pub fn hear(self: &Arc<Self>, task: &str, consumer: &Arc<str>, way: Way) {
        let mut open = self.open.lock().expect("no panic while held");
        let key = key(way.link(), task);
        let of_one = open.values().filter(|waiting| waiting.consumer == *consumer).count();
        if open.len() >= TASKS_MAX || of_one >= TASKS_OF_ONE_MAX || open.contains_key(&key) {
            return;
        }
        // Who gives up waiting does not give up the task.
        way.ended();
        let waiting = Arc::new(Waiting {
            link: way.link().clone(),
            consumer: consumer.clone(),
            asked: Mutex::default(),
            more: Notify::new(),
        });
        open.insert(key.clone(), waiting.clone());
        let (inputs, task) = (Arc::downgrade(self), Box::<str>::from(task));
        tokio::spawn(async move {
            let _ = tokio::time::timeout(ANSWER_TIME, waiting.hear(&task, &way)).await;
            if let Some(inputs) = inputs.upgrade() {
                inputs.open.lock().expect("no panic while held").remove(&key);
            }
        });
    }

    /// The raw `inputRequests` of a task, waited for a moment; `None` if there are none.
    pub async fn requests(&self, link: &Arc<Link>, task: &str) -> Option<Bytes> {
        let key = key(link, task);
        let waiting = self.open.lock().expect("no panic while held").get(&key).cloned()?;
        let asked = async {
            loop {
                let more = waiting.more.notified();
                if let Some(requests) = waiting.requests() {
                    return requests;
                }
                more.await;
            }
        };
        tokio::time::timeout(COMING, asked).await.ok()
    }

    /// Hand on the answers in raw `inputResponses`. What nobody asked, or what was answered
    /// before, is nothing. Whether anybody here listens to the task.
    pub async fn answer(&self, link: &Arc<Link>, task: &str, responses: &[u8]) -> bool {
        let key = key(link, task);
        let waiting = self.open.lock().expect("no panic while held").get(&key).cloned();
        let (Some(waiting), Ok(responses)) = (waiting, Members::read(responses)) else {
            return false;
        };
        let mut answers = Vec::new();
        waiting.asked.lock().expect("no panic while held").retain(|(key, question)| {
            let Some(raw) = responses.get(key) else { return true };
            let id = question.id().unwrap_or_default();
            answers.push(response(&id, Kind::Result, raw.get().as_bytes()));
            false
        });
        for answer in answers {
            let _ = waiting.link.notify(answer).await;
        }
        true
    }
}

impl Waiting {
    fn requests(&self) -> Option<Bytes> {
        let asked = self.asked.lock().expect("no panic while held");
        if asked.is_empty() {
            return None;
        }
        let mut out = ObjectWriter::new();
        for (key, question) in asked.iter() {
            let mut request = ObjectWriter::new();
            request.value("method", &question.method());
            if let Some(params) = question.params() {
                request.raw("params", &task::related(&params, None));
            }
            out.raw(key, &request.finish());
        }
        Some(out.finish().into())
    }

    async fn hear(&self, task: &str, way: &Way) {
        let link = &self.link;
        let (asks, mut asked) = mpsc::channel::<Unasked>(ASKS_MAX);
        if let Some(hearing) = way.hearing() {
            hearing.begin(asks.clone());
        }
        let id = link.mint();
        let params = ObjectWriter::new().value("taskId", &task).finish();
        let request = message(Some(id.to_string().as_bytes()), "tasks/result", Some(&params));
        let end = link.exchange(id, "tasks/result", None, request, &|_| {}, Some(&asks));
        tokio::pin!(end);
        loop {
            let said = tokio::select! {
                _ = &mut end => return,
                said = asked.recv() => said,
            };
            match said {
                Some(Unasked::Request(question)) => self.ask(task, question).await,
                Some(Unasked::Notification(frame))
                    if frame.method() == "notifications/cancelled" =>
                {
                    let id = cancelled_id(&frame);
                    let mut asked = self.asked.lock().expect("no panic while held");
                    asked.retain(|(_, question)| question.id() != id);
                }
                Some(Unasked::Notification(_)) | None => {}
            }
        }
    }

    async fn ask(&self, task: &str, question: Frame) {
        let id = question.id().unwrap_or_default();
        let refuse = |code, text| {
            let error = ErrorObject::new(code, text).to_raw();
            response(&id, Kind::Error, error.get().as_bytes())
        };
        if question.method() == "ping" {
            let _ = self.link.notify(response(&id, Kind::Result, b"{}")).await;
            return;
        }
        let params = question.params();
        let of = params.as_ref().and_then(|params| task::related_id(params));
        let refused = match self.link.askable.allows(question.method(), params.as_deref()) {
            Err((code, text)) => Some(refuse(code, text)),
            Ok(()) if of.is_some_and(|of| of != task) => {
                Some(refuse(INTERNAL_ERROR, "this task is asked for with tasks/result"))
            }
            Ok(()) if self.asked.lock().expect("no panic while held").len() >= ASKS_MAX => {
                Some(refuse(INTERNAL_ERROR, "too many questions at once"))
            }
            Ok(()) => None,
        };
        if let Some(refused) = refused {
            let _ = self.link.notify(refused).await;
            return;
        }
        // Never the same twice while the task lives, whichever gateway hears it.
        let key = random_name().into_string();
        self.asked.lock().expect("no panic while held").push((key, question));
        self.more.notify_waiters();
    }
}
