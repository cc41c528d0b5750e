#![allow(clippy::unwrap_used)]

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;

use super::*;
use crate::call::Form;
use crate::catalog::merge::Part;
use crate::catalog::slice::{Slice, SliceBuilder};
use crate::catalog::testing::{about, part, part_with, slice, tools};
use crate::protocol::revision::Revision;

fn world() -> Arc<Slice> {
    slice(&[
        (
            ListKind::Tools,
            r#"[{"name":"get","inputSchema":{"t":1},"annotations":{"readOnlyHint":true}},{"name":"put","inputSchema":{}}]"#,
        ),
        (ListKind::Prompts, r#"[{"name":"ask"}]"#),
        (ListKind::Resources, r#"[{"uri":"file:///a"}]"#),
        (ListKind::Templates, r#"[{"uriTemplate":"file:///{x}"}]"#),
    ])
}

fn down(mut part: Part, seen: bool) -> Part {
    let since = UNIX_EPOCH + Duration::from_secs(1_798_761_599);
    let why = "it does not answer".to_owned();
    part.freshness = if seen {
        Freshness::Stale { since, why }
    } else {
        part.slice = None;
        Freshness::Missing { since, why }
    };
    part
}

fn catalog(parts: Vec<Part>) -> Arc<Catalog> {
    Arc::new(Catalog::build(1, parts, None))
}

fn rule(upstreams: Option<&[&str]>, allow: &[&str], deny: &[&str]) -> ViewRule {
    let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    ViewRule {
        upstreams: upstreams.map(|names| names.iter().map(|n| Arc::from(*n)).collect()),
        patterns: Patterns { allow: owned(allow), deny: owned(deny) },
    }
}

fn text(page: &Bytes) -> &str {
    std::str::from_utf8(page).unwrap()
}

fn to(view: &View, kind: ListKind, public: &str) -> Option<String> {
    view.resolve(kind, public).map(|r| format!("{} {}", r.upstream(), r.native()))
}

#[test]
fn a_merged_list_in_both_forms() {
    let c = catalog(vec![part("crm", &world()), part("erp", &tools(&["x"]))]);
    let view = View::new(&c, None);
    let page = |kind, form| view.page(kind, None, 100, form).unwrap().result();
    insta::assert_snapshot!(text(&page(ListKind::Tools, Form::Plain)), @r#"{"tools":[{"name":"crm__get","inputSchema":{"t":1},"annotations":{"readOnlyHint":true}},{"name":"crm__put","inputSchema":{}},{"name":"erp__x","inputSchema":{}}]}"#);
    insta::assert_snapshot!(text(&page(ListKind::Templates, Form::Canonical)), @r#"{"resultType":"complete","ttlMs":30000,"cacheScope":"private","resourceTemplates":[{"uriTemplate":"crm+file:///{x}"}]}"#);
    let again = page(ListKind::Tools, Form::Plain);
    assert_eq!(again.as_ptr(), page(ListKind::Tools, Form::Plain).as_ptr(), "made once");
    // Another view of the same, and the same in the next catalog.
    let same = View::new(&c, Some(&rule(Some(&["crm", "erp"]), &[], &[])));
    let next = Arc::new(Catalog::build(
        2,
        vec![part("crm", &world()), part("erp", &tools(&["x"]))],
        Some(&c),
    ));
    for other in [same, View::new(&next, None)] {
        let shared = other.page(ListKind::Tools, None, 100, Form::Plain).unwrap().result();
        assert_eq!(shared.as_ptr(), again.as_ptr(), "shared");
    }
    let less = View::new(&c, Some(&rule(Some(&["crm"]), &[], &[])));
    let less = less.page(ListKind::Tools, None, 100, Form::Plain).unwrap().result();
    assert!(!text(&less).contains("erp"));
}

#[test]
fn a_list_that_lacks_a_part_says_so_and_is_not_to_be_kept() {
    let c = catalog(vec![
        part("live", &tools(&["x"])),
        down(part("crm", &tools(&["y"])), true),
        down(part("erp", &world()), false),
    ]);
    let view = View::new(&c, None);
    assert!(view.is_degraded());
    let page = view.page(ListKind::Tools, None, 100, Form::Canonical).unwrap().result();
    insta::assert_snapshot!(text(&page), @r#"{"resultType":"complete","ttlMs":0,"cacheScope":"private","tools":[{"name":"live__x","inputSchema":{}},{"name":"crm__y","inputSchema":{}}],"_meta":{"io.weirkeeper/degraded":[{"upstream":"crm","state":"stale","since":"2026-12-31T23:59:59Z","reason":"it does not answer"},{"upstream":"erp","state":"missing","since":"2026-12-31T23:59:59Z","reason":"it does not answer"}]}}"#);
    let plain = view.page(ListKind::Prompts, None, 100, Form::Plain).unwrap().result();
    assert!(text(&plain).starts_with(r#"{"prompts":[],"_meta":{"io.weirkeeper/degraded":["#));

    // Nobody hears of an upstream that they do not see.
    let narrow = View::new(&c, Some(&rule(Some(&["live", "crm"]), &[], &[])));
    let page = narrow.page(ListKind::Tools, None, 100, Form::Plain).unwrap().result();
    assert!(text(&page).contains("crm") && !text(&page).contains("erp"));
    let narrow = View::new(&c, Some(&rule(Some(&["live"]), &[], &[])));
    assert!(!narrow.is_degraded());
}

#[test]
fn the_digest_is_of_the_items_alone() {
    let s = tools(&["x", "y"]);
    let digest = |part, rule: Option<&ViewRule>| {
        View::new(&catalog(vec![part]), rule).digest(ListKind::Tools)
    };
    let live = digest(part("crm", &s), None);
    assert_eq!(live, digest(down(part("crm", &s), true), None));
    assert_ne!(live, digest(part("erp", &s), None));
    // A change of what a view does not show is no change of the view.
    let only_x = rule(None, &["*__x"], &[]);
    assert_eq!(
        digest(part("crm", &s), Some(&only_x)),
        digest(part("crm", &tools(&["x", "z"])), Some(&only_x))
    );
}

#[test]
fn pages_follow_each_other_to_the_end() {
    let names: Vec<_> = (0..7).map(|n| format!("t{n}")).collect();
    let c = catalog(vec![part("crm", &tools(&names))]);
    let view = View::new(&c, None);
    for (size, want) in [(3, 3), (3, 3), (7, 1), (1, 7), (0, 7), (100, 1)] {
        let mut cursor: Option<String> = None;
        let (mut pages, mut seen) = (0, Vec::new());
        loop {
            let page =
                view.page(ListKind::Tools, cursor.as_deref(), size, Form::Plain).unwrap().result();
            let page: serde_json::Value = serde_json::from_slice(&page).unwrap();
            pages += 1;
            for tool in page["tools"].as_array().unwrap() {
                seen.push(tool["name"].as_str().unwrap().trim_start_matches("crm__").to_owned());
            }
            match page.get("nextCursor") {
                Some(next) => cursor = Some(next.as_str().unwrap().to_owned()),
                None => break,
            }
        }
        assert_eq!((pages, seen), (want, names.clone()));
    }
}

#[test]
fn a_cursor_of_another_list_or_version_is_refused() {
    let next = |view: &View, kind| {
        let page = view.page(kind, None, 1, Form::Plain).unwrap().result();
        let page: serde_json::Value = serde_json::from_slice(&page).unwrap();
        page["nextCursor"].as_str().unwrap().to_owned()
    };
    let c = catalog(vec![part("crm", &tools(&["a", "b", "c"]))]);
    let view = View::new(&c, None);
    let good = next(&view, ListKind::Tools);
    let other = View::new(&catalog(vec![part("crm", &tools(&["a", "b", "d"]))]), None);
    for (view, kind, size, cursor) in [
        (&view, ListKind::Tools, 1, ""),
        (&view, ListKind::Tools, 1, "nonsense"),
        (&view, ListKind::Tools, 1, &good[1..]),
        (&view, ListKind::Tools, 1, &good.repeat(20)),
        (&view, ListKind::Tools, 2, &good),
        (&view, ListKind::Prompts, 1, &good),
        (&other, ListKind::Tools, 1, &good),
    ] {
        assert_eq!(view.page(kind, Some(cursor), size, Form::Plain), Err(BadCursor), "{cursor}");
    }
    assert!(view.page(ListKind::Tools, Some(&good), 1, Form::Canonical).is_ok());
    // The same items under another state are the same list.
    let stale = View::new(&catalog(vec![down(part("crm", &tools(&["a", "b", "c"])), true)]), None);
    assert!(stale.page(ListKind::Tools, Some(&good), 1, Form::Plain).is_ok());
}

#[test]
fn a_route_says_where_and_what() {
    let c = catalog(vec![part("crm", &world())]);
    let view = View::new(&c, None);
    let route = view.resolve(ListKind::Tools, "crm__get").unwrap();
    assert_eq!(
        (&**route.upstream(), &**route.native(), &**route.exposed()),
        ("crm", "get", "crm__get")
    );
    assert_eq!((route.kind(), route.read_only()), (ListKind::Tools, Some(true)));
    assert!(route.params().is_empty());
    assert_eq!(route.public_uri("file:///b").as_deref(), Some("crm+file:///b"));
    assert_eq!(view.resolve(ListKind::Tools, "crm__put").unwrap().read_only(), None);
    for (kind, name) in [
        (ListKind::Tools, "get"),
        (ListKind::Tools, "crm__ask"),
        (ListKind::Prompts, "crm__get"),
        (ListKind::Tools, ""),
    ] {
        assert!(view.resolve(kind, name).is_none());
    }
    assert_eq!(to(&view, ListKind::Prompts, "crm__ask").unwrap(), "crm ask");
}

#[test]
fn uris_are_resolved_listed_or_not() {
    let c = catalog(vec![
        part_with("crm", &world(), |c| c.filter.deny = vec!["*secret*".into()]),
        part("erp", &world()),
    ]);
    let view = View::new(&c, None);
    let read = |view: &View, uri: &str| to(view, ListKind::Resources, uri);
    assert_eq!(read(&view, "crm+file:///a").unwrap(), "crm file:///a");
    assert_eq!(read(&view, "crm+file:///other").unwrap(), "crm file:///other");
    assert_eq!(read(&view, "ui://erp/app.html").unwrap(), "erp ui://app.html");
    assert_eq!(read(&view, "crm+file:///secret"), None);
    assert_eq!(read(&view, "file:///a"), None);
    assert_eq!(read(&view, "bank+file:///a"), None);
    // Completion: a template, a resource, or what only looks like one.
    for uri in ["erp+file:///{x}", "erp+file:///a", "erp+file:///{y}"] {
        let route = view.resolve(ListKind::Templates, uri).unwrap();
        assert_eq!((route.kind(), &**route.upstream()), (ListKind::Templates, "erp"));
    }

    let narrow = View::new(&c, Some(&rule(Some(&["erp"]), &["erp+file:///public/*"], &[])));
    assert_eq!(read(&narrow, "crm+file:///other"), None);
    assert_eq!(read(&narrow, "erp+file:///a"), None);
    assert_eq!(read(&narrow, "erp+file:///public/x").unwrap(), "erp file:///public/x");
    for climbing in ["../a", "%2E%2e/a", "x/..%2fa", "..\\a", "x/.."] {
        assert_eq!(read(&narrow, &format!("erp+file:///public/{climbing}")), None, "{climbing}");
    }
    assert!(read(&narrow, "erp+file:///public/a..b").is_some());
}

#[test]
fn the_unprefixed_upstream_gets_what_carries_no_prefix() {
    let c =
        catalog(vec![part("crm", &world()), part_with("main", &world(), |c| c.prefixed = false)]);
    let view = View::new(&c, None);
    assert_eq!(to(&view, ListKind::Tools, "get").unwrap(), "main get");
    assert_eq!(to(&view, ListKind::Tools, "main__get"), None);
    assert_eq!(to(&view, ListKind::Resources, "file:///a").unwrap(), "main file:///a");
    assert_eq!(to(&view, ListKind::Resources, "other:x").unwrap(), "main other:x");
    assert_eq!(to(&view, ListKind::Resources, "crm+file:///z").unwrap(), "crm file:///z");
    let route = view.resolve(ListKind::Resources, "file:///a").unwrap();
    assert_eq!(route.public_uri("file:///b"), None);

    // Hidden and not there look the same.
    let narrow = View::new(&c, Some(&rule(Some(&["main"]), &[], &[])));
    for uri in ["crm+file:///a", "none+file:///a"] {
        assert_eq!(to(&narrow, ListKind::Resources, uri).unwrap(), format!("main {uri}"));
    }
}

#[test]
fn what_a_view_does_not_list_it_does_not_route() {
    let c = catalog(vec![part("crm", &world()), part("erp", &world())]);
    for rule in [
        rule(None, &[], &["*__put"]),
        rule(Some(&["erp"]), &[], &[]),
        rule(Some(&["erp"]), &["erp__get", "crm__*"], &[]),
        rule(Some(&[]), &[], &[]),
    ] {
        let view = View::new(&c, Some(&rule));
        let all = View::new(&c, None);
        for kind in [ListKind::Tools, ListKind::Prompts] {
            let listed: Vec<_> = view.entries(kind).map(|(_, e)| e.exposed.clone()).collect();
            for (_, entry) in all.entries(kind) {
                let routed = view.resolve(kind, &entry.exposed).is_some();
                assert_eq!(routed, listed.contains(&entry.exposed));
            }
            assert_eq!(view.count(kind), listed.len());
        }
    }
}

#[test]
fn the_owner_of_a_name_is_told_when_its_lists_were_never_seen() {
    let c = catalog(vec![down(part("crm", &world()), false), part("erp", &world())]);
    let view = View::new(&c, None);
    assert_eq!(view.unseen_owner("crm__get").map(|n| &**n), Some("crm"));
    for known_or_nobodys in ["erp__none", "bank__x", "get"] {
        assert_eq!(view.unseen_owner(known_or_nobodys), None);
    }
    let narrow = View::new(&c, Some(&rule(Some(&["erp"]), &[], &[])));
    assert_eq!(narrow.unseen_owner("crm__get"), None);
}

#[test]
fn capabilities_are_the_union_of_what_was_last_known() {
    let can = |capabilities: &'static str| {
        let mut about = about();
        about.capabilities = Bytes::from_static(capabilities.as_bytes());
        Arc::new(SliceBuilder::new(about, 1).finish())
    };
    let crm = can(r#"{"tools":{},"logging":{},"experimental":{"x":{}}}"#);
    let erp = can(r#"{"resources":{"subscribe":true},"completions":{}}"#);
    let c = catalog(vec![part("crm", &crm), down(part("erp", &erp), true)]);
    let said = |rule: Option<&ViewRule>| {
        String::from_utf8(View::new(&c, rule).capabilities(Revision::LATEST).to_vec()).unwrap()
    };
    insta::assert_snapshot!(said(None), @r#"{"tools":{"listChanged":true},"resources":{"listChanged":true,"subscribe":true},"completions":{},"logging":{}}"#);
    assert_eq!(
        said(Some(&rule(Some(&["crm"]), &[], &[]))),
        r#"{"tools":{"listChanged":true},"logging":{}}"#
    );
    let never = catalog(vec![down(part("new", &crm), false)]);
    insta::assert_snapshot!(text(&View::new(&never, None).capabilities(Revision::LATEST)), @r#"{"tools":{"listChanged":true},"prompts":{"listChanged":true},"resources":{"listChanged":true}}"#);
}

#[test]
fn extensions_are_declared_for_who_has_them_and_their_methods_served() {
    let can = |extensions: &str| {
        let mut about = about();
        about.capabilities = Bytes::from(format!(r#"{{"extensions":{extensions}}}"#));
        Arc::new(SliceBuilder::new(about, 1).finish())
    };
    let crm = can(r#"{"io.modelcontextprotocol/skills":{},"io.modelcontextprotocol/ui":{"x":1}}"#);
    let erp =
        can(r#"{"io.modelcontextprotocol/skills":{"directoryRead":true},"com.example/x":{}}"#);
    let c = catalog(vec![part("crm", &crm), part("erp", &erp), part("none", &can("7"))]);
    let rule = |name: &str| rule(Some(&[name]), &[], &[]);
    let said = |name: &str, revision| {
        let view = View::new(&c, Some(&rule(name)));
        String::from_utf8(view.capabilities(revision).to_vec()).unwrap()
    };
    insta::assert_snapshot!(said("crm", Revision::LATEST), @r#"{"extensions":{"io.modelcontextprotocol/ui":{"x":1},"io.modelcontextprotocol/skills":{}}}"#);
    insta::assert_snapshot!(said("crm", Revision::LATEST_LEGACY), @r#"{"extensions":{"io.modelcontextprotocol/ui":{"x":1}}}"#);
    insta::assert_snapshot!(said("erp", Revision::LATEST), @r#"{"extensions":{"io.modelcontextprotocol/skills":{"directoryRead":true}}}"#);
    assert_eq!(
        (said("erp", Revision::LATEST_LEGACY), said("none", Revision::LATEST)),
        ("{}".into(), "{}".into())
    );
    let serves = |name: &str, method: &str, upstream| {
        let method =
            crate::protocol::method::find(method, crate::protocol::revision::Revision::LATEST);
        View::new(&c, Some(&rule(name))).serves(method.unwrap(), upstream)
    };
    assert!(serves("crm", "skills/get", Some("crm")) && serves("erp", "skills/list", None));
    assert!(!serves("crm", "skills/get", Some("erp")), "it is not seen");
    assert!(!serves("crm", "resources/directory/read", None));
    assert!(serves("erp", "resources/directory/read", Some("erp")));
    assert!(!serves("none", "skills/list", None) && serves("none", "resources/read", None));
}

#[test]
fn instructions_of_the_seen_upstreams_stand_under_their_names() {
    let says = |words: &str| {
        let mut about = about();
        about.instructions = Some(words.into());
        Arc::new(SliceBuilder::new(about, 1).finish())
    };
    let c = catalog(vec![
        part("crm", &says("# Contacts\nSearch before you create.\n")),
        part("quiet", &says("  ")),
        part_with("off", &says("not handed on"), |c| c.instructions = false),
        part("bank", &says("Ünter 15 bytes")),
        part_with("main", &says("Short."), |c| c.prefixed = false),
    ]);
    insta::assert_snapshot!(View::new(&c, None).instructions(Some(40)), @r"
    Several MCP servers answer behind this one: crm, quiet, off, bank. What belongs to a server carries its name: the tool or prompt `crm__search` is `search` of `crm`, and URIs of its resources look like `crm+file:///a`. Use names and URIs exactly as listed.

    ## crm (crm__…)

    ### Contacts
    Search before you create.

    ## bank (bank__…)

    Ünter 15 bytes

    ## main

    Short.
    ");
    let bank = View::new(&c, Some(&rule(Some(&["bank", "main"]), &[], &[])));
    let cut = bank.instructions(Some(1));
    assert!(cut.contains("## bank (bank__…)\n\n\n[cut after 0 of 15 bytes]\n"), "{cut}");
    assert!(!cut.contains("crm"));
    assert!(!bank.instructions(None).contains("##"));
    let main = View::new(&c, Some(&rule(Some(&["main"]), &[], &[])));
    assert_eq!(main.instructions(Some(100)), "## main\n\nShort.\n");
    assert_eq!(main.instructions(None), "");
}

#[test]
fn sizes_are_those_of_what_is_seen() {
    let c = catalog(vec![part("crm", &world()), part("erp", &tools(&["x"]))]);
    let view = View::new(&c, Some(&rule(None, &[], &["crm__put"])));
    let lines: Vec<_> = view
        .sizes()
        .iter()
        .map(|s| format!("{} {} {} {}", s.upstream, s.kind.as_str(), s.items, s.bytes))
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    crm tools 1 77
    erp tools 1 34
    crm prompts 1 19
    crm resources 1 23
    crm templates 1 33
    ");
}
