//! What tasks of old upstreams want to know, for callers of the newest revision: such an upstream
//! asks live, on the stream of `tasks/result` (2025-11-25 basic/utilities/tasks, "input required");
//! the caller reads the questions in `tasks/get` and answers with `tasks/update`
//! (`io.modelcontextprotocol/tasks`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use crate::call::ANSWER_TIME;
use crate::protocol::error::{ErrorObject, INTERNAL_ERROR};
use crate::protocol::message::{Frame, Kind, message, response};
use crate::protocol::meta::{Members, ObjectWriter, cancelled_id};
use crate::protocol::task;

use super::asking::ASKS_MAX;
use super::errand::Way;
use super::link::Link;
use super::transport::Unasked;

/// Most tasks of one upstream whose questions are open: each holds a request there.
const TASKS_MAX: usize = 64;

/// How long a question that a task has may take to come once its stream is open.
const COMING: Duration = Duration::from_millis(500);

/// The tasks of one upstream that want to know something.
#[derive(Default)]
pub struct Inputs {
    open: Mutex<HashMap<Box<str>, Arc<Waiting>>>,
    keys: AtomicU64,
}

/// What one task wants to know.
struct Waiting {
    link: Arc<Link>,
    asked: Mutex<Vec<(String, Frame)>>,
    more: Notify,
}

impl Inputs {
    /// Whether somebody listens to this task's questions.
    pub fn hears(&self, task: &str) -> bool {
        self.open.lock().expect("no panic while held").contains_key(task)
    }

    /// Listen to this task's questions over `way` until it has a result, or nobody answers.
    /// Too many at once: not at all.
    pub fn hear(self: &Arc<Self>, task: &str, way: Way) {
        let mut open = self.open.lock().expect("no panic while held");
        if open.len() >= TASKS_MAX || open.contains_key(task) {
            return;
        }
        let waiting = Arc::new(Waiting {
            link: way.link().clone(),
            asked: Mutex::default(),
            more: Notify::new(),
        });
        open.insert(task.into(), waiting.clone());
        let (inputs, task) = (Arc::downgrade(self), Box::<str>::from(task));
        tokio::spawn(async move {
            let heard = waiting.hear(&task, &way, &inputs);
            let ended = tokio::time::timeout(ANSWER_TIME, heard).await.is_ok();
            if ended {
                way.ended();
            }
            if let Some(inputs) = inputs.upgrade() {
                inputs.open.lock().expect("no panic while held").remove(&task);
            }
        });
    }

    /// The raw `inputRequests` of a task, waited for a moment; `None` if there are none.
    pub async fn requests(&self, task: &str) -> Option<Bytes> {
        let waiting = self.open.lock().expect("no panic while held").get(task).cloned()?;
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
    /// before, is nothing.
    pub async fn answer(&self, task: &str, responses: &[u8]) {
        let waiting = self.open.lock().expect("no panic while held").get(task).cloned();
        let (Some(waiting), Ok(responses)) = (waiting, Members::read(responses)) else { return };
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

    async fn hear(&self, task: &str, way: &Way, inputs: &Weak<Inputs>) {
        let link = &self.link;
        let (asks, mut asked) = mpsc::channel::<Unasked>(ASKS_MAX);
        if let Some(hearing) = way.hearing() {
            hearing.begin(asks.clone());
        }
        way.goes_on();
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
                Some(Unasked::Request(question)) => self.ask(question, inputs).await,
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

    async fn ask(&self, question: Frame, inputs: &Weak<Inputs>) {
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
        let refused = match self.link.askable.allows(question.method(), params.as_deref()) {
            Err((code, text)) => Some(refuse(code, text)),
            Ok(()) if self.asked.lock().expect("no panic while held").len() >= ASKS_MAX => {
                Some(refuse(INTERNAL_ERROR, "too many questions at once"))
            }
            Ok(()) => None,
        };
        if let Some(refused) = refused {
            let _ = self.link.notify(refused).await;
            return;
        }
        // Never the same twice while the task lives, whoever hears it.
        let Some(inputs) = inputs.upgrade() else { return };
        let key = format!("q{}", inputs.keys.fetch_add(1, Ordering::Relaxed));
        self.asked.lock().expect("no panic while held").push((key, question));
        self.more.notify_waiters();
    }
}
