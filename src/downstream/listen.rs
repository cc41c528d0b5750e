//! Streams of notices: `subscriptions/listen` and the GET stream of old sessions.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::call::Consumer;
use crate::gateway::subscriptions::{Changes, Topic};
use crate::protocol::message::{Frame, Kind, message, response};
use crate::protocol::meta::{Members, ObjectWriter, key};
use crate::protocol::sse;

use super::{Edge, Slot};

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
#[allow(clippy::struct_field_names)]
struct Filter {
    #[serde(default)]
    tools_list_changed: bool,
    #[serde(default)]
    prompts_list_changed: bool,
    #[serde(default)]
    resources_list_changed: bool,
}

/// Which topics a listen request wishes for; an error text if it says nothing readable.
pub fn wished(frame: &Frame) -> Result<Vec<Topic>, String> {
    let params = frame.params().ok_or("params.notifications is missing")?;
    let members = Members::read(&params).map_err(|e| format!("params: {e}"))?;
    let raw = members.get("notifications").ok_or("params.notifications is missing")?;
    let filter: Filter =
        serde_json::from_str(raw.get()).map_err(|e| format!("params.notifications: {e}"))?;
    Ok(Topic::ALL
        .into_iter()
        .filter(|t| match t {
            Topic::Tools => filter.tools_list_changed,
            Topic::Prompts => filter.prompts_list_changed,
            Topic::Resources => filter.resources_list_changed,
        })
        .collect())
}

/// `_meta` that names the listen request with its id's own text (2026-07-28
/// basic/patterns/subscriptions).
fn meta(id: &[u8]) -> Vec<u8> {
    ObjectWriter::new().raw(key::SUBSCRIPTION_ID, id).finish()
}

/// The first message of a listen stream: what is honoured of the wish.
pub fn acknowledgement(id: &[u8], topics: &[Topic]) -> Bytes {
    let mut honoured = ObjectWriter::new();
    for topic in topics {
        honoured.raw(topic.filter_key(), b"true");
    }
    let params = ObjectWriter::new()
        .raw("notifications", &honoured.finish())
        .raw("_meta", &meta(id))
        .finish();
    message(None, "notifications/subscriptions/acknowledged", Some(&params))
}

/// The last message of a listen stream that we end.
pub fn farewell(id: &[u8]) -> Bytes {
    let result =
        ObjectWriter::new().value("resultType", &"complete").raw("_meta", &meta(id)).finish();
    response(id, Kind::Result, &result)
}

/// A change as a listener of this id hears it.
pub fn change(topic: Topic, id: Option<&[u8]>) -> Bytes {
    let params = id.map(|id| ObjectWriter::new().raw("_meta", &meta(id)).finish());
    message(None, topic.method(), params.as_deref())
}

/// Who listens, to what.
pub struct Listener {
    /// Whose view counts.
    pub consumer: Arc<Consumer>,
    /// The raw id of the listen request; `None` on the GET stream of an old session.
    pub id: Option<Bytes>,
    /// What is told.
    pub topics: Vec<Topic>,
    /// Ends the stream: the session ended, or a newer stream took over.
    pub ends: Vec<CancellationToken>,
    /// Its place among the streams.
    pub slot: Slot,
}

impl Listener {
    /// Write the stream as events until the gateway stops or the stream is ended.
    pub async fn events(self, edge: Arc<Edge>, tx: mpsc::Sender<Bytes>) {
        let _slot = self.slot;
        let mut changes = Changes::of(&edge.gateway, &self.consumer);
        if let Some(id) = &self.id {
            let ack = acknowledgement(id, &self.topics);
            if tx.send(sse::event(&ack)).await.is_err() {
                return;
            }
        } else if tx.send(sse::comment("open")).await.is_err() {
            return;
        }
        let every = edge.gateway.current.load().config.gateway.keep_alive;
        let mut tick = tokio::time::interval(every);
        tick.reset();
        let ended = async {
            let mut waits: Vec<_> =
                self.ends.iter().map(|t| Box::pin(t.clone().cancelled_owned())).collect();
            std::future::poll_fn(|cx| {
                use std::future::Future as _;
                if waits.iter_mut().any(|w| w.as_mut().poll(cx).is_ready()) {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            })
            .await;
        };
        tokio::pin!(ended);
        loop {
            tokio::select! {
                topics = changes.next() => {
                    for topic in topics.into_iter().filter(|t| self.topics.contains(t)) {
                        let event = sse::event(&change(topic, self.id.as_deref()));
                        if tx.send(event).await.is_err() {
                            return;
                        }
                    }
                }
                _ = tick.tick() => {
                    if tx.send(sse::comment("")).await.is_err() {
                        return;
                    }
                }
                () = edge.stop.cancelled() => {
                    if let Some(id) = &self.id {
                        let _ = tx.send(sse::event(&farewell(id))).await;
                    }
                    return;
                }
                () = &mut ended => return,
            }
        }
    }
}
