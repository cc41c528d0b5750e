//! A modern host's stream of notices, which outlives the gateway that began it
//! (2026-07-28 basic/patterns/subscriptions).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;

use crate::failure::Failure;
use crate::protocol::message::{Frame, Kind, message};
use crate::protocol::meta::{Members, ObjectWriter, RequestMeta, key};
use crate::protocol::splice::{Splice, range_of};

use super::carry::Patience;
use super::{Bridge, words};

const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";

/// Pause before a stream that had begun is opened again.
const REOPEN: Duration = Duration::from_millis(250);
/// Longest such pause; it goes on for as long as the gateway is away.
const REOPEN_MAX: Duration = Duration::from_secs(5);
/// A stream that lived so long was no failed attempt.
const SETTLED: Duration = Duration::from_secs(5);

impl Bridge {
    /// Listen until the host has enough, or the gateway says no. A stream that had begun is opened
    /// again when it ends, and the host is told once that what it listens for may have changed.
    pub async fn listen(
        &self,
        frame: &Frame,
        meta: &RequestMeta,
        id: &Bytes,
    ) -> Result<Frame, Failure> {
        let headers = self.tools.headers(frame, meta);
        let mut patience = Patience::new(self);
        let (mut pause, mut had_begun) = (REOPEN, false);
        loop {
            let (opened, begun) = (Instant::now(), AtomicBool::new(false));
            let hear = |_, notice: Frame| {
                if notice.method() == ACKNOWLEDGED {
                    self.rose();
                    begun.store(true, Ordering::Relaxed);
                    if had_begun {
                        return missed(frame, id).into_iter().for_each(|m| self.tell(m));
                    }
                }
                self.tell(renamed(&notice, notice.params().as_ref(), id));
            };
            let answer = self.once(self.mint(), frame, &headers, false, &hear).await;
            let begun = begun.load(Ordering::Relaxed);
            match answer {
                // The gateway stops; another takes its place.
                Ok(answer) if begun && answer.frame.kind() == Kind::Result => {}
                Ok(answer) => {
                    let renamed = renamed(&answer.frame, Some(&answer.frame.outcome()), id);
                    return Ok(Frame::scan(renamed).unwrap_or(answer.frame));
                }
                Err(error) => {
                    let status = error.status();
                    let failed = (error.into_fault(), status);
                    if !begun && !had_begun {
                        // Nothing is lost by asking again.
                        if patience.again(self, &failed, true).await {
                            continue;
                        }
                        return Err(words::failure(failed.0, status, true));
                    }
                    self.fell(&failed.0, status);
                    if matches!(status, Some(400..=407)) {
                        return Err(words::failure(failed.0, status, true));
                    }
                }
            }
            had_begun |= begun;
            pause = if opened.elapsed() > SETTLED { REOPEN } else { (pause * 2).min(REOPEN_MAX) };
            tokio::time::sleep(pause).await;
        }
    }
}

// What the host listens for, as if all of it had changed.
fn missed(frame: &Frame, id: &Bytes) -> Vec<Bytes> {
    let params = frame.params().unwrap_or_default();
    let wish: Value = serde_json::from_slice(&params).unwrap_or_default();
    let wish = &wish["notifications"];
    let meta = ObjectWriter::new().raw(key::SUBSCRIPTION_ID, id).finish();
    let lists = [
        ("toolsListChanged", "notifications/tools/list_changed"),
        ("promptsListChanged", "notifications/prompts/list_changed"),
        ("resourcesListChanged", "notifications/resources/list_changed"),
    ];
    let mut out = Vec::new();
    for (_, method) in lists.into_iter().filter(|(kind, _)| wish[kind] == true) {
        let params = ObjectWriter::new().raw("_meta", &meta).finish();
        out.push(message(None, method, Some(&params)));
    }
    for uri in wish["resourceSubscriptions"].as_array().into_iter().flatten() {
        let params = ObjectWriter::new().value("uri", uri).raw("_meta", &meta).finish();
        out.push(message(None, "notifications/resources/updated", Some(&params)));
    }
    out
}

// The message with the host's id of the request in `_meta` of its `part`, which the gateway knows
// by one of ours.
fn renamed(frame: &Frame, part: Option<&Bytes>, id: &Bytes) -> Bytes {
    let mut splice = Splice::new();
    let members = Members::read(part.map_or(b"", |p| p)).unwrap_or_default();
    if let Some(meta) = members.get("_meta") {
        let meta = Members::read(meta.get().as_bytes()).unwrap_or_default();
        if let Some(theirs) = meta.get(key::SUBSCRIPTION_ID) {
            splice.replace(range_of(frame.bytes(), theirs.get().as_bytes()), id.to_vec());
        }
    }
    splice.apply(frame.bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn notices_name_the_request_as_the_host_does_and_keep_the_rest() {
        let text = r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"a:1","n":1.0,"_meta":{"io.modelcontextprotocol/subscriptionId": 17,"x":1e2}}}"#;
        let frame = Frame::scan(text.into()).unwrap();
        let told = renamed(&frame, frame.params().as_ref(), &"\"l-1\"".into());
        assert_eq!(told, text.replace("17", "\"l-1\""));
        let bare = r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;
        let frame = Frame::scan(bare.into()).unwrap();
        assert_eq!(renamed(&frame, frame.params().as_ref(), &"1".into()), bare);
    }

    #[test]
    fn all_that_was_wished_for_may_have_changed() {
        let text = r#"{"jsonrpc":"2.0","id":1.0,"method":"subscriptions/listen","params":{"notifications":
            {"toolsListChanged":true,"promptsListChanged":false,"resourceSubscriptions":["a:1"]}}}"#;
        let frame = Frame::scan(text.into()).unwrap();
        let told: Vec<_> = missed(&frame, &frame.id().unwrap())
            .iter()
            .map(|m| String::from_utf8_lossy(m).into_owned())
            .collect();
        insta::assert_snapshot!(told.join("\n"), @r#"
        {"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":1.0}}}
        {"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"a:1","_meta":{"io.modelcontextprotocol/subscriptionId":1.0}}}
        "#);
    }
}
