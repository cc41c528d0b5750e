//! Tasks: calls whose result is fetched later. There are two dialects: the experimental feature
//! of 2025-11-25 (basic/utilities/tasks) and the extension of the newest revision
//! (`io.modelcontextprotocol/tasks`). What they say of a task is the same; the words differ.

use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::form::strip_members;
use super::meta::{Members, ObjectWriter, at};
use super::splice::{Splice, range_of};
use super::walk;

/// The extension's name, a key of `capabilities.extensions`.
pub const EXTENSION: &str = "io.modelcontextprotocol/tasks";

/// The `_meta` key that says which task a message of 2025-11-25 belongs to.
const RELATED: &str = "io.modelcontextprotocol/related-task";

/// Whether a tool of 2025-11-25 runs as a task (`execution.taskSupport`).
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub enum TaskSupport {
    /// Never.
    #[default]
    Forbidden,
    /// As the caller likes.
    Optional,
    /// Always.
    Required,
}

impl TaskSupport {
    /// Read a tool's raw `execution` object; what cannot be read forbids.
    pub fn read(execution: &str) -> TaskSupport {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Execution {
            task_support: String,
        }
        match serde_json::from_str::<Execution>(execution).as_ref().map(|e| &*e.task_support) {
            Ok("optional") => TaskSupport::Optional,
            Ok("required") => TaskSupport::Required,
            _ => TaskSupport::Forbidden,
        }
    }
}

/// What a caller makes of a task that its call becomes.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub enum Tasks {
    /// It wants the result.
    #[default]
    None,
    /// It asked for a task (2025-11-25, `params.task`).
    Asked,
    /// It takes one if it gets one (the extension).
    Welcome,
}

/// Whether raw `capabilities` hold this extension.
pub fn has_extension(capabilities: &[u8], extension: &str) -> bool {
    if !walk::may_hold(capabilities, "extensions") {
        return false;
    }
    let Ok(all) = Members::read(capabilities) else { return false };
    let held = all.get("extensions").map_or("", |e| e.get());
    Members::read(held.as_bytes())
        .is_ok_and(|held| held.get(extension).is_some_and(|e| e.get().starts_with('{')))
}

/// Raw `capabilities` with the tasks extension declared besides.
pub fn with_extension(capabilities: &[u8]) -> Vec<u8> {
    if has_extension(capabilities, EXTENSION) {
        return capabilities.to_vec();
    }
    let all = Members::read(capabilities).unwrap_or_default();
    let mut out = ObjectWriter::new();
    let mut extensions = ObjectWriter::new();
    for (key, value) in &all.0 {
        if key == "extensions" {
            let held = Members::read(value.get().as_bytes()).unwrap_or_default();
            for (key, value) in &held.0 {
                extensions.raw(key, value.get().as_bytes());
            }
        } else {
            out.raw(key, value.get().as_bytes());
        }
    }
    out.raw("extensions", &extensions.raw(EXTENSION, b"{}").finish()).finish()
}

/// How a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Under way.
    Working,
    /// It wants to know something.
    InputRequired,
    /// Done, with a result.
    Completed,
    /// Done, without.
    Failed,
    /// Given up.
    Cancelled,
}

/// What is read of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glance {
    /// The upstream's id of it.
    pub id: String,
    /// How it is.
    pub status: Status,
    /// How long to wait before asking again, in milliseconds, if it says so.
    pub poll_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    task_id: String,
    status: String,
    #[serde(default)]
    poll_interval: Option<f64>,
    #[serde(default)]
    poll_interval_ms: Option<f64>,
}

impl Glance {
    /// Read a task in either dialect; `None` if it is none, or has a status that nobody knows.
    pub fn read(raw: &[u8]) -> Option<Glance> {
        let shape: Shape = serde_json::from_slice(raw).ok()?;
        let status = match &*shape.status {
            "working" => Status::Working,
            "input_required" => Status::InputRequired,
            "completed" => Status::Completed,
            "failed" => Status::Failed,
            "cancelled" => Status::Cancelled,
            _ => return None,
        };
        let poll = shape.poll_interval_ms.or(shape.poll_interval);
        Some(Glance { id: shape.task_id, status, poll_ms: poll.map(|ms| ms.max(0.0) as u64) })
    }

    /// Whether it will not change any more.
    pub fn is_over(&self) -> bool {
        matches!(self.status, Status::Completed | Status::Failed | Status::Cancelled)
    }
}

/// The raw task in the result of the call that made it: the extension's whole result, or the
/// member `task` of 2025-11-25.
pub fn created(result: &Bytes, is_modern: bool) -> Option<Bytes> {
    if is_modern {
        return Some(result.clone());
    }
    let members = Members::read(result).ok()?;
    let task = members.get("task")?;
    Some(result.slice(range_of(result, task.get().as_bytes())))
}

/// Where the task's id stands in the result of the call that made it, quotes included, and what
/// it says: in the extension's words, or in those of 2025-11-25. In the latter a result may have a
/// member `task` of its own, so it must be known that a task was asked for.
pub fn created_id(result: &[u8], is_modern: bool) -> Option<(Range<usize>, String)> {
    let members = Members::read(result).ok()?;
    let id_in = |of: &Members<'_>| {
        let id = of.get_str("taskId")?.into_owned();
        Some((range_of(result, of.get("taskId")?.get().as_bytes()), id))
    };
    if is_modern {
        members.get("resultType").filter(|t| t.get() == "\"task\"")?;
        return id_in(&members);
    }
    id_in(&Members::read(members.get("task")?.get().as_bytes()).ok()?)
}

/// The result of the call that made a task, in the extension's words.
pub fn created_in_extension(result: &Bytes) -> Option<Bytes> {
    let members = Members::read(result).ok()?;
    let task = Members::read(members.get("task")?.get().as_bytes()).ok()?;
    let mut out = ObjectWriter::new();
    out.value("resultType", &"task");
    renamed(&task, &mut out);
    for (key, value) in members.0.iter().filter(|(key, _)| key != "task") {
        out.raw(key, value.get().as_bytes());
    }
    Some(out.finish().into())
}

/// What says how a task of 2025-11-25 is, in the extension's words (`notifications/tasks`).
pub fn news_in_extension(task: &[u8]) -> Option<Vec<u8>> {
    let mut out = ObjectWriter::new();
    renamed(&Members::read(task).ok()?, &mut out);
    Some(out.finish())
}

/// A task of 2025-11-25 in the extension's words, with what came of it.
pub fn in_extension(
    task: &[u8],
    came: Option<(&str, &[u8])>,
    status: Option<&str>,
) -> Option<Bytes> {
    let mut task = Members::read(task).ok()?;
    let said = status.map(|s| serde_json::value::to_raw_value(s).expect("a word serialises"));
    if let Some(said) = &said {
        for (key, value) in &mut task.0 {
            if key == "status" {
                *value = said;
            }
        }
    }
    let mut out = ObjectWriter::new();
    out.value("resultType", &"complete");
    renamed(&task, &mut out);
    if let Some((key, raw)) = came {
        out.raw(key, raw);
    }
    Some(out.finish().into())
}

fn renamed(task: &Members<'_>, out: &mut ObjectWriter) {
    for (key, value) in &task.0 {
        let key = match &**key {
            "ttl" => "ttlMs",
            "pollInterval" => "pollIntervalMs",
            "resultType" => continue,
            other => other,
        };
        out.raw(key, value.get().as_bytes());
    }
    // The extension wants it; without it nothing limits the task's life.
    if task.get("ttl").is_none() && task.get("ttlMs").is_none() {
        out.raw("ttlMs", b"null");
    }
}

/// What the top-level `taskId` says.
pub fn id_of(raw: &[u8]) -> Option<String> {
    Members::read(raw).ok()?.get_str("taskId").map(std::borrow::Cow::into_owned)
}

/// The edit that puts another id in the place of the top-level `taskId`.
pub fn id_edit(raw: &[u8], id: &str) -> Option<(Range<usize>, Vec<u8>)> {
    let members = Members::read(raw).ok()?;
    let place = range_of(raw, members.get("taskId")?.get().as_bytes());
    Some((place, serde_json::to_vec(id).expect("a string serialises")))
}

/// The task that a message's params, or a result, belong to.
pub fn related_id(raw: &[u8]) -> Option<String> {
    memchr::memmem::find(raw, RELATED.as_bytes())?;
    let id = at(raw, &["_meta", RELATED, "taskId"])?;
    serde_json::from_str(id.get()).ok()
}

/// A message's params, or a result, with `to` as the task that they belong to, or with none.
/// Shared if they name none.
pub fn related(raw: &Bytes, to: Option<&str>) -> Bytes {
    let edit = || {
        memchr::memmem::find(raw, RELATED.as_bytes())?;
        let members = Members::read(raw).ok()?;
        let meta: &RawValue = members.get("_meta")?;
        let at = range_of(raw, meta.get().as_bytes()).start;
        let inner = Members::read(meta.get().as_bytes()).ok()?;
        let related = inner.get(RELATED)?;
        let mut splice = Splice::new();
        if let Some(to) = to {
            let place = range_of(meta.get().as_bytes(), related.get().as_bytes()).start + at;
            let (range, with) = id_edit(related.get().as_bytes(), to)?;
            splice.replace(range.start + place..range.end + place, with);
        } else {
            for cut in strip_members(meta.get().as_bytes(), &[RELATED]) {
                splice.replace(cut.start + at..cut.end + at, b"".as_slice());
            }
        }
        Some(splice.apply(raw))
    };
    edit().unwrap_or_else(|| raw.clone())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[test]
    fn a_task_is_read_in_both_dialects() {
        let old = r#"{"taskId":"t\n1","status":"working","ttl":60000,"pollInterval":500}"#;
        let new = r#"{"resultType":"task","taskId":"t\n1","status":"working","ttlMs":60000,"pollIntervalMs":500}"#;
        let glance = Glance::read(old.as_bytes()).unwrap();
        assert_eq!(glance, Glance::read(new.as_bytes()).unwrap());
        assert_eq!((&*glance.id, glance.poll_ms, glance.is_over()), ("t\n1", Some(500), false));
        assert!(Glance::read(br#"{"taskId":"t","status":"resting"}"#).is_none());
        let made = format!(r#"{{"task":{old},"_meta":{{"a":1.0}}}}"#);
        let (place, id) = created_id(made.as_bytes(), false).unwrap();
        assert_eq!((&made[place], &*id), (r#""t\n1""#, "t\n1"));
        assert_eq!(created_id(new.as_bytes(), true).unwrap().1, "t\n1");
        assert!(created_id(made.as_bytes(), true).is_none());
        assert!(created_id(br#"{"content":[],"taskId":"x"}"#, true).is_none());
    }

    #[test]
    fn what_the_old_dialect_says_is_said_in_the_new_one() {
        let made = bytes(
            r#"{"task":{"taskId":"t","status":"working","ttl":6.0e4,"x":1.10},"_meta":{"m":"i"}}"#,
        );
        insta::assert_snapshot!(
            String::from_utf8(created_in_extension(&made).unwrap().to_vec()).unwrap(),
            @r#"{"resultType":"task","taskId":"t","status":"working","ttlMs":6.0e4,"x":1.10,"_meta":{"m":"i"}}"#
        );
        let task = br#"{"taskId":"t","status":"failed","pollInterval":5}"#;
        let came = Some(("result", br#"{"content":[],"isError":true}"#.as_slice()));
        insta::assert_snapshot!(
            String::from_utf8(in_extension(task, came, Some("completed")).unwrap().to_vec()).unwrap(),
            @r#"{"resultType":"complete","taskId":"t","status":"completed","pollIntervalMs":5,"ttlMs":null,"result":{"content":[],"isError":true}}"#
        );
    }

    #[test]
    fn the_related_task_is_renamed_or_forgotten() {
        let raw = bytes(
            r#"{"content":[],"_meta":{"k":1.0,"io.modelcontextprotocol/related-task":{"taskId":"n","y":2}}}"#,
        );
        insta::assert_snapshot!(
            String::from_utf8(related(&raw, Some("p")).to_vec()).unwrap(),
            @r#"{"content":[],"_meta":{"k":1.0,"io.modelcontextprotocol/related-task":{"taskId":"p","y":2}}}"#
        );
        insta::assert_snapshot!(
            String::from_utf8(related(&raw, None).to_vec()).unwrap(),
            @r#"{"content":[],"_meta":{"k":1.0}}"#
        );
        let none = bytes(r#"{"content":[]}"#);
        assert_eq!(related(&none, None), none);
    }

    #[test]
    fn the_extension_is_found_and_declared() {
        let text = |raw: &str| String::from_utf8(with_extension(raw.as_bytes())).unwrap();
        let declared = r#"{"extensions":{"io.modelcontextprotocol/tasks":{}}}"#;
        assert_eq!(text("{}"), declared);
        assert_eq!(text(declared), declared);
        assert_eq!(
            text(r#"{"extensions":{"a/b":{"c":1}},"roots":{}}"#),
            r#"{"roots":{},"extensions":{"a/b":{"c":1},"io.modelcontextprotocol/tasks":{}}}"#
        );
        assert!(!has_extension(b"{}", EXTENSION) && !has_extension(b"[", EXTENSION));
    }
}
