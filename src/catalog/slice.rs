//! What one upstream offers, as it said it.
//!
//! Items stay raw; of each only what routes it is read. One bad item costs itself and a line in
//! the report, never the list (2026-07-28 server/tools leaves this open; many clients drop a whole
//! list over one bad tool, which is what must not happen here).

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use ring::digest::{Context, SHA256};
use serde_json::value::RawValue;

use crate::protocol::message::one_line;
use crate::protocol::meta::Members;
use crate::protocol::method::ListKind;
use crate::protocol::revision::{Era, Revision};
use crate::protocol::splice::range_of;
use crate::protocol::task::{self, TaskSupport};

/// Longest native name or URI, in bytes: the specification advises 128 for names, URIs carry
/// queries. What is longer would only be carried around by every log line and table.
pub const KEY_MAX: usize = 8 * 1024;

/// Most bad items of a list that are remembered one by one; the rest is counted. Enough to see
/// what is wrong.
pub const BAD_MAX: usize = 64;

/// One upstream's part of the catalog.
#[derive(Clone)]
pub struct Slice {
    /// Who it is and what it can do.
    pub about: About,
    lists: [Arc<List>; ListKind::COUNT],
}

/// What an upstream said of itself at the handshake or discovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The revision spoken with it; its era is remembered with the slice.
    pub revision: Revision,
    /// Raw `capabilities` object.
    pub capabilities: Bytes,
    /// Raw `serverInfo` object.
    pub server_info: Option<Bytes>,
    /// Its `instructions`.
    pub instructions: Option<Arc<str>>,
    /// It was found to speak HTTP+SSE, which is remembered with the slice.
    pub sse: bool,
}

/// One list of one upstream, in its order.
pub struct List {
    /// The items, no two with the same key.
    pub items: Vec<Item>,
    /// SHA-256 over the items' digests: the same digest means nothing changed.
    pub digest: [u8; 32],
    /// The first [`BAD_MAX`] items that were dropped.
    pub bad: Vec<Bad>,
    /// How many were dropped.
    pub bad_total: usize,
}

/// One tool, prompt, resource, template or skill.
pub struct Item {
    /// The item as it came, on one line.
    pub raw: Bytes,
    /// Its native name, URI or URI template.
    pub key: Arc<str>,
    /// Where the key's value stands in `raw`, quotes included.
    pub key_span: Range<usize>,
    /// What a tool says about its effects.
    pub hints: Hints,
    /// Where a tool's `inputSchema` stands in `raw`.
    pub schema: Option<Range<usize>>,
    /// Of `raw`, to tell changes.
    pub digest: Mark,
}

/// Tells texts apart: 128 bits of SHA-256.
pub type Mark = [u8; 16];

/// The mark of these texts, in this order.
// From `ring`: where the processor has no instruction for it, that is twice as fast as any other,
// and a catalog is megabytes.
pub(super) fn mark(texts: &[&[u8]]) -> Mark {
    let mut context = Context::new(&SHA256);
    for text in texts {
        context.update(&(text.len() as u64).to_le_bytes());
        context.update(text);
    }
    let whole = context.finish();
    std::array::from_fn(|n| whole.as_ref()[n])
}

/// SHA-256 of these marks, in this order.
pub(super) fn digest_of<'a>(marks: impl IntoIterator<Item = &'a Mark>) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    marks.into_iter().for_each(|mark| context.update(mark));
    let whole = context.finish();
    std::array::from_fn(|n| whole.as_ref()[n])
}

/// A tool's own word on its effects (2025-03-26 server/tools, "annotations"): hints, not promises.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Hints {
    /// `readOnlyHint`
    pub read_only: Option<bool>,
    /// `destructiveHint`
    pub destructive: Option<bool>,
    /// `idempotentHint`
    pub idempotent: Option<bool>,
    /// `execution.taskSupport`; not a hint but a rule.
    pub task: TaskSupport,
}

/// An item that was dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bad {
    /// Its key, if it could be read.
    pub key: Option<Arc<str>>,
    /// What is wrong with it.
    pub why: BadItem,
}

/// What is wrong with an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum BadItem {
    /// Not an object, or a key stands twice in it.
    #[error("is not an object without repeated keys")]
    Shape,
    /// Its name or URI is missing, empty or no string.
    #[error("has no \"{0}\"")]
    NoKey(&'static str),
    /// Its name or URI is longer than [`KEY_MAX`].
    #[error("has a name or URI of more than {KEY_MAX} bytes")]
    LongKey,
    /// A tool without an object as `inputSchema`.
    #[error("has no object as \"inputSchema\"")]
    NoSchema,
    /// Its key stood in the list before.
    #[error("has the name or URI of an earlier item")]
    Double,
    /// The list has more items than the configuration allows.
    #[error("is one more than `max_items`")]
    OverMax,
}

/// Why a page of a list could not be read at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// Not a list result.
    #[error("the result has no array \"{0}\"")]
    NoList(&'static str),
    /// The cursor is no string.
    #[error("\"nextCursor\" is not a string")]
    BadCursor,
    /// The cursor came before: following it would never end.
    #[error("\"nextCursor\" repeats an earlier cursor")]
    CursorLoop,
}

impl Slice {
    /// One of its lists.
    pub fn list(&self, kind: ListKind) -> &Arc<List> {
        &self.lists[kind as usize]
    }

    /// The same with those lists of `before` that say the same: what was made of them is then
    /// known to be right still.
    #[must_use]
    pub fn keeping(mut self, before: &Slice) -> Slice {
        for (list, old) in self.lists.iter_mut().zip(&before.lists) {
            if list.says_the_same_as(old) {
                *list = old.clone();
            }
        }
        self
    }

    /// Whether nothing has changed since `before`, whose lists were kept.
    pub fn is_as(&self, before: &Slice) -> bool {
        let mut lists = self.lists.iter().zip(&before.lists);
        self.about == before.about && lists.all(|(list, old)| Arc::ptr_eq(list, old))
    }
}

impl List {
    fn says_the_same_as(&self, other: &List) -> bool {
        self.digest == other.digest
            && self.items.len() == other.items.len()
            && self.bad_total == other.bad_total
            && self.bad == other.bad
    }
}

impl About {
    /// Whether it declares the capability `name`, or with dots (`resources.subscribe`) a part of
    /// one.
    pub fn can(&self, name: &str) -> bool {
        let declared = |raw: &[u8], name: &str| {
            let members = Members::read(raw).ok()?;
            let value = members.get(name)?.get();
            (!matches!(value, "null" | "false")).then(|| value.as_bytes().to_vec())
        };
        let first = Some(self.capabilities.to_vec());
        name.split('.').fold(first, |raw, name| declared(&raw?, name)).is_some()
    }

    /// Whether its tools can run as tasks of 2025-11-25 (basic/utilities/tasks).
    pub fn has_old_tasks(&self) -> bool {
        self.revision == Revision::R2025_11_25 && self.can("tasks.requests.tools.call")
    }

    /// Whether its tools can run as tasks, as 2025-11-25 or as the extension has them.
    pub fn has_tasks(&self) -> bool {
        self.has_old_tasks()
            || self.revision.era() == Era::Modern
                && task::has_extension(&self.capabilities, task::EXTENSION)
    }
}

impl About {
    /// The raw settings of an extension that it declares: an object.
    pub fn extension(&self, name: &str) -> Option<Bytes> {
        let all = Members::read(&self.capabilities).ok()?;
        let extensions = Members::read(all.get("extensions")?.get().as_bytes()).ok()?;
        let settings = extensions.get(name)?.get();
        settings.starts_with('{').then(|| Bytes::copy_from_slice(settings.as_bytes()))
    }
}

impl Item {
    /// A tool's raw `inputSchema`.
    pub fn schema(&self) -> Option<Bytes> {
        self.schema.clone().map(|r| self.raw.slice(r))
    }
}

/// Collects the pages of an upstream's lists.
pub struct SliceBuilder {
    about: About,
    max_items: usize,
    lists: [Building; ListKind::COUNT],
}

#[derive(Default)]
struct Building {
    kept: Option<Arc<List>>,
    items: Vec<Item>,
    keys: HashSet<Arc<str>>,
    cursors: HashSet<String>,
    bad: Vec<Bad>,
    bad_total: usize,
}

impl SliceBuilder {
    /// No items yet; lists that nothing is added to stay empty.
    pub fn new(about: About, max_items: usize) -> SliceBuilder {
        SliceBuilder { about, max_items, lists: Default::default() }
    }

    /// Take over a list that did not change.
    pub fn keep(&mut self, kind: ListKind, list: Arc<List>) {
        self.lists[kind as usize].kept = Some(list);
    }

    /// Read one page: the raw `result` of a list request. Returns the cursor of the next; an empty
    /// string is one, only an absent one or null ends the list. How many pages may be asked for
    /// is up to the caller.
    pub fn add_page(
        &mut self,
        kind: ListKind,
        result: &Bytes,
    ) -> Result<Option<String>, PageError> {
        let no_list = PageError::NoList(kind.member());
        let page = Members::read(result).map_err(|_| no_list.clone())?;
        let items = page.get(kind.member()).ok_or(no_list)?;
        let cursor = match page.get("nextCursor").map(RawValue::get) {
            None | Some("null") => None,
            Some(_) => Some(page.get_str("nextCursor").ok_or(PageError::BadCursor)?.into_owned()),
        };
        self.add_items(kind, &result.slice(range_of(result, items.get().as_bytes())))?;
        if let Some(cursor) = &cursor
            && !self.lists[kind as usize].cursors.insert(cursor.clone())
        {
            return Err(PageError::CursorLoop);
        }
        Ok(cursor)
    }

    /// Read a raw array of items.
    pub fn add_items(&mut self, kind: ListKind, array: &Bytes) -> Result<(), PageError> {
        let array = one_line(array);
        let raws: Vec<&RawValue> =
            serde_json::from_slice(&array).map_err(|_| PageError::NoList(kind.member()))?;
        for raw in raws {
            let raw = array.slice(range_of(&array, raw.get().as_bytes()));
            self.lists[kind as usize].add(kind, raw, self.max_items);
        }
        Ok(())
    }

    /// Whether a list has as many items as it may: further pages would be dropped.
    pub fn is_full(&self, kind: ListKind) -> bool {
        self.lists[kind as usize].items.len() >= self.max_items
    }

    /// The list goes on behind what fits; how far, nobody has looked.
    pub fn more_is_left_out(&mut self, kind: ListKind) {
        let list = &mut self.lists[kind as usize];
        list.bad_total += 1;
        if list.bad.len() < BAD_MAX {
            list.bad.push(Bad { key: None, why: BadItem::OverMax });
        }
    }

    /// The slice.
    pub fn finish(self) -> Slice {
        Slice { about: self.about, lists: self.lists.map(Building::finish) }
    }
}

impl Building {
    fn add(&mut self, kind: ListKind, raw: Bytes, max_items: usize) {
        let bad = match read_item(kind, raw) {
            Ok(item) if self.keys.contains(&item.key) => (Some(item.key), BadItem::Double),
            Ok(item) if self.items.len() >= max_items => (Some(item.key), BadItem::OverMax),
            Ok(item) => {
                self.keys.insert(item.key.clone());
                return self.items.push(item);
            }
            Err(bad) => bad,
        };
        self.bad_total += 1;
        if self.bad.len() < BAD_MAX {
            self.bad.push(Bad { key: bad.0, why: bad.1 });
        }
    }

    fn finish(self) -> Arc<List> {
        self.kept.unwrap_or_else(|| {
            Arc::new(List {
                digest: digest_of(self.items.iter().map(|item| &item.digest)),
                items: self.items,
                bad: self.bad,
                bad_total: self.bad_total,
            })
        })
    }
}

fn read_item(kind: ListKind, raw: Bytes) -> Result<Item, (Option<Arc<str>>, BadItem)> {
    let members = Members::read(&raw).map_err(|_| (None, BadItem::Shape))?;
    let (Some(key), Some(place)) = (members.get_str(kind.key()), members.get(kind.key())) else {
        return Err((None, BadItem::NoKey(kind.key())));
    };
    if key.is_empty() {
        return Err((None, BadItem::NoKey(kind.key())));
    }
    if key.len() > KEY_MAX {
        return Err((None, BadItem::LongKey));
    }
    let key: Arc<str> = key.as_ref().into();
    let mut hints = Hints::default();
    let mut schema = None;
    if kind == ListKind::Tools {
        let raw_schema = members.get("inputSchema").filter(|s| s.get().starts_with('{'));
        let Some(found) = raw_schema else {
            return Err((Some(key), BadItem::NoSchema));
        };
        schema = Some(range_of(&raw, found.get().as_bytes()));
        // Annotations that cannot be read are no hint at all: the tool counts as one that writes.
        let annotations = members.get("annotations").map_or("{}", |a| a.get());
        if let Ok(said) = Members::read(annotations.as_bytes()) {
            let flag = |key| said.get(key).and_then(|v| v.get().parse::<bool>().ok());
            hints.read_only = flag("readOnlyHint");
            hints.destructive = flag("destructiveHint");
            hints.idempotent = flag("idempotentHint");
        }
        hints.task =
            members.get("execution").map(|e| TaskSupport::read(e.get())).unwrap_or_default();
    }
    let key_span = range_of(&raw, place.get().as_bytes());
    let digest = mark(&[&raw]);
    Ok(Item { raw, key, key_span, hints, schema, digest })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::catalog::testing::about;

    fn add(b: &mut SliceBuilder, kind: ListKind, page: &str) -> Result<Option<String>, PageError> {
        b.add_page(kind, &Bytes::copy_from_slice(page.as_bytes()))
    }

    #[test]
    fn lists_that_say_the_same_are_kept() {
        let slice = |tools: &str, prompts: &str| {
            let mut b = SliceBuilder::new(about(), 10);
            add(&mut b, ListKind::Tools, &format!(r#"{{"tools":[{tools}]}}"#)).unwrap();
            add(&mut b, ListKind::Prompts, &format!(r#"{{"prompts":[{prompts}]}}"#)).unwrap();
            b.finish()
        };
        let tool = r#"{"name":"a","inputSchema":{}}"#;
        let before = slice(tool, "");
        assert!(slice(tool, "").keeping(&before).is_as(&before));
        let mut newer = slice(tool, "").keeping(&before);
        newer.about.sse = true;
        assert!(!newer.is_as(&before));
        // Another list, or another bad item.
        for (tools, prompts) in [(tool, r#"{"name":"p"}"#), (tool, "7")] {
            let after = slice(tools, prompts).keeping(&before);
            assert!(!after.is_as(&before));
            assert!(Arc::ptr_eq(after.list(ListKind::Tools), before.list(ListKind::Tools)));
            assert!(!Arc::ptr_eq(after.list(ListKind::Prompts), before.list(ListKind::Prompts)));
        }
    }

    #[test]
    fn items_stay_raw_and_bad_ones_cost_only_themselves() {
        let mut b = SliceBuilder::new(about(), 3);
        let page = r#"{"tools":[
            {"name":"a","inputSchema":{"x":1.10},"annotations":{"readOnlyHint":true,"destructiveHint":0}},
            7, {"name":"b"}, {"name":"b","inputSchema":[]}, {"inputSchema":{}}, {"name":"","inputSchema":{}},
            {"name":"a","inputSchema":{}}, {"name":"c","name":"d","inputSchema":{}},
            {"name":"\ud800","inputSchema":{}},
            {"name":"e","inputSchema":{},"annotations":{"readOnlyHint":true,"readOnlyHint":false}},
            {"name":"\u0066","inputSchema":{}}, {"name":"g","inputSchema":{}}]}"#;
        assert_eq!(add(&mut b, ListKind::Tools, page), Ok(None));
        assert!(b.is_full(ListKind::Tools));
        let slice = b.finish();
        let list = slice.list(ListKind::Tools);
        let keys: Vec<_> = list.items.iter().map(|i| &*i.key).collect();
        assert_eq!(keys, ["a", "e", "f"]);
        assert_eq!(list.items[0].hints.read_only, Some(true));
        assert_eq!(list.items[0].hints.destructive, None);
        assert_eq!(list.items[1].hints, Hints::default());
        assert_eq!(&list.items[0].schema().unwrap()[..], br#"{"x":1.10}"#);
        assert_eq!(&list.items[2].raw[list.items[2].key_span.clone()], br#""\u0066""#);
        assert_eq!(list.bad_total, 9);
        let report: Vec<_> = list
            .bad
            .iter()
            .map(|b| format!("{}: {}", b.key.as_deref().unwrap_or("?"), b.why))
            .collect();
        insta::assert_snapshot!(report.join("\n"), @r#"
        ?: is not an object without repeated keys
        b: has no object as "inputSchema"
        b: has no object as "inputSchema"
        ?: has no "name"
        ?: has no "name"
        a: has the name or URI of an earlier item
        ?: is not an object without repeated keys
        ?: has no "name"
        g: is one more than `max_items`
        "#);
    }

    #[test]
    fn an_empty_cursor_is_one_and_a_repeated_one_ends_it() {
        let mut b = SliceBuilder::new(about(), 10);
        let page = r#"{"prompts":[],"nextCursor":""}"#;
        assert_eq!(add(&mut b, ListKind::Prompts, page), Ok(Some(String::new())));
        assert_eq!(add(&mut b, ListKind::Prompts, page), Err(PageError::CursorLoop));
        assert_eq!(add(&mut b, ListKind::Prompts, r#"{"prompts":[],"nextCursor":null}"#), Ok(None));
        assert_eq!(
            add(&mut b, ListKind::Prompts, r#"{"prompts":[],"nextCursor":7}"#),
            Err(PageError::BadCursor)
        );
        assert_eq!(add(&mut b, ListKind::Prompts, "{}"), Err(PageError::NoList("prompts")));
        assert_eq!(
            add(&mut b, ListKind::Prompts, r#"{"prompts":{}}"#),
            Err(PageError::NoList("prompts"))
        );
    }

    #[test]
    fn the_digest_changes_with_the_items_and_their_order() {
        let digest = |pages: &[&str]| {
            let mut b = SliceBuilder::new(about(), 10);
            for page in pages {
                add(&mut b, ListKind::Resources, page).unwrap();
            }
            b.finish().list(ListKind::Resources).digest
        };
        let whole = digest(&[r#"{"resources":[{"uri":"a"},{"uri":"b"}]}"#]);
        assert_eq!(
            whole,
            digest(&[
                r#"{"resources":[{"uri":"a"}],"nextCursor":"2"}"#,
                r#"{"resources":[ {"uri":"b"} ]}"#
            ])
        );
        assert_ne!(whole, digest(&[r#"{"resources":[{"uri":"b"},{"uri":"a"}]}"#]));
    }

    #[test]
    fn an_unchanged_list_is_taken_over() {
        let mut b = SliceBuilder::new(about(), 10);
        add(&mut b, ListKind::Prompts, r#"{"prompts":[{"name":"p"}]}"#).unwrap();
        let first = b.finish();
        let mut b = SliceBuilder::new(about(), 10);
        b.keep(ListKind::Prompts, first.list(ListKind::Prompts).clone());
        assert!(Arc::ptr_eq(b.finish().list(ListKind::Prompts), first.list(ListKind::Prompts)));
    }

    #[test]
    fn capabilities_are_read_by_name() {
        let mut about = about();
        about.capabilities = Bytes::from_static(br#"{"tools":{},"prompts":null}"#);
        assert!(about.can("tools") && !about.can("prompts") && !about.can("resources"));
        about.capabilities = Bytes::from_static(b"[]");
        assert!(!about.can("tools"));
    }
}
