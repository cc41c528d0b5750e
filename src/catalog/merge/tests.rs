#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::catalog::slice::{About, SliceBuilder};
use crate::catalog::testing::{http, part, part_with, slice, tools};
use crate::catalog::view::View;
use crate::protocol::revision::Revision;

fn names(catalog: &Catalog, kind: ListKind) -> Vec<&str> {
    catalog.entries(kind).map(|(_, e)| &*e.exposed).collect()
}

fn report(catalog: &Catalog) -> String {
    let line = |d: &Drop| {
        let native = d.native.as_deref().unwrap_or("?");
        format!("{} {} {native}: {}", d.upstream, d.kind.as_str(), d.why)
    };
    catalog.drops().iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn lists_are_joined_in_the_order_of_the_configuration() {
    let b = tools(&["z", "a"]);
    let a = tools(&["y"]);
    let catalog = Catalog::build(7, vec![part("b", &b), part("a", &a)], None);
    assert_eq!(names(&catalog, ListKind::Tools), ["b__z", "b__a", "a__y"]);
    assert_eq!((catalog.number(), catalog.drops()), (7, &[][..]));
}

#[test]
fn only_the_name_and_the_uris_of_an_item_change() {
    let s = slice(&[
        (
            ListKind::Tools,
            r#"[{ "x":1.10,"_meta":{"ui":{"resourceUri":"ui://p/1"}}, "name" : "n" ,"inputSchema":{"name":"n"}}]"#,
        ),
        (ListKind::Resources, r#"[{"name":"n","uri":"file:///n"}]"#),
        (ListKind::Templates, r#"[{"uriTemplate":"file:///{n}","name":"n"}]"#),
    ]);
    let raws = |catalog: &Catalog| {
        let all = ListKind::ALL.iter().flat_map(|k| catalog.entries(*k));
        all.map(|(_, e)| String::from_utf8(e.raw.to_vec()).unwrap()).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(raws(&Catalog::build(0, vec![part("crm", &s)], None)), @r#"
    { "x":1.10,"_meta":{"ui":{"resourceUri":"ui://crm/p/1"}}, "name" : "crm__n" ,"inputSchema":{"name":"n"}}
    {"name":"n","uri":"crm+file:///n"}
    {"uriTemplate":"crm+file:///{n}","name":"n"}
    "#);
    let bare = Catalog::build(0, vec![part_with("crm", &s, |c| c.prefixed = false)], None);
    let item = &s.list(ListKind::Tools).items[0].raw;
    assert_eq!(bare.entries(ListKind::Tools).next().unwrap().1.raw.as_ptr(), item.as_ptr());
}

#[test]
fn annotations_are_for_upstreams_that_get_headers() {
    let tools = r#"[{"name":"a","inputSchema":{"properties":{"p":{ "x-mcp-header":"P" ,"type":"string"}}}},
        {"name":"b","inputSchema":{"x-mcp-header":"P","y":1.10}},{"name":"c","inputSchema":{}},
        {"name":"d","inputSchema":{"properties":{"p":{"type":"number","x-mcp-header":"P"}}}}]"#;
    let of = |revision: Revision| {
        let about = About { revision, ..crate::catalog::testing::about() };
        let mut builder = SliceBuilder::new(about, 10);
        builder.add_items(ListKind::Tools, &Bytes::copy_from_slice(tools.as_bytes())).unwrap();
        Arc::new(builder.finish())
    };
    let (old, new) = (of(Revision::R2025_11_25), of(Revision::R2026_07_28));
    let http = |slice: &Arc<Slice>| part_with("up", slice, |c| c.transport = http());
    let shown = |catalog: &Catalog| {
        let line = |(_, e): (Place, &Entry)| {
            format!("{} [{}]", String::from_utf8_lossy(&e.raw), e.params.len())
        };
        catalog.entries(ListKind::Tools).map(line).collect::<Vec<_>>().join("\n")
    };
    let mirrored = Catalog::build(0, vec![http(&new)], None);
    insta::assert_snapshot!(shown(&mirrored), @r#"
    {"name":"up__a","inputSchema":{"properties":{"p":{ "x-mcp-header":"P" ,"type":"string"}}}} [1]
    {"name":"up__c","inputSchema":{}} [0]
    "#);
    insta::assert_snapshot!(report(&mirrored), @r#"
    up tools b: it has an "x-mcp-header" that is not reached through "properties" alone
    up tools d: it has an "x-mcp-header" on what is no string, integer or boolean
    "#);
    for part in [http(&old), part("up", &new), part("up", &old)] {
        let stripped = Catalog::build(1, vec![part], Some(&mirrored));
        assert!(stripped.drops().is_empty());
        insta::allow_duplicates! {
            insta::assert_snapshot!(shown(&stripped), @r#"
            {"name":"up__a","inputSchema":{"properties":{"p":{ "type":"string"}}}} [0]
            {"name":"up__b","inputSchema":{"y":1.10}} [0]
            {"name":"up__c","inputSchema":{}} [0]
            {"name":"up__d","inputSchema":{"properties":{"p":{"type":"number"}}}} [0]
            "#);
        }
    }
    // The same list is shown otherwise when its upstream has become a newer one.
    let list = new.list(ListKind::Tools).clone();
    let mut builder = SliceBuilder::new(crate::catalog::testing::about(), 10);
    builder.keep(ListKind::Tools, list);
    let before = Catalog::build(0, vec![http(&Arc::new(builder.finish()))], None);
    assert!(before.drops().is_empty());
    assert_eq!(Catalog::build(1, vec![http(&new)], Some(&before)).drops().len(), 2);
}

#[test]
fn filters_work_on_native_names() {
    let s = tools(&["get", "delete_all", "list"]);
    let filtered = part_with("crm", &s, |c| c.filter.deny = vec!["delete_*".into()]);
    let catalog = Catalog::build(0, vec![filtered], None);
    assert_eq!(names(&catalog, ListKind::Tools), ["crm__get", "crm__list"]);
    assert!(catalog.drops().is_empty());
}

#[test]
fn of_two_with_one_public_name_the_first_stays_and_the_other_is_reported() {
    // The second native name is exactly what the first is turned into.
    let short = exposed_name("erp", true, "a.b");
    let erp = tools(&["a.b", short.strip_prefix("erp__").unwrap()]);
    let bare = tools(&["erp__c"]);
    let also = tools(&["c"]);
    let parts = vec![
        part_with("bare", &bare, |c| c.prefixed = false),
        part("erp", &also),
        part("zoo", &slice(&[(ListKind::Tools, r#"[7,{"name":"x"}]"#)])),
    ];
    let catalog = Catalog::build(0, parts, None);
    assert_eq!(names(&catalog, ListKind::Tools), ["erp__c"]);
    // What has no prefix never stands in for what is another's by its name, whoever comes first.
    let place = catalog.find(ListKind::Tools, "erp__c").unwrap();
    assert_eq!(&*catalog.parts()[place.part as usize].part.config.name, "erp");
    insta::assert_snapshot!(report(&catalog), @r#"
    bare tools erp__c: its public name belongs to the upstream erp
    zoo tools ?: it is not an object without repeated keys
    zoo tools x: it has no object as "inputSchema"
    "#);
    let catalog = Catalog::build(0, vec![part("erp", &erp)], None);
    assert_eq!(names(&catalog, ListKind::Tools), [short.as_str()]);
    assert_eq!(catalog.drops()[0].exposed.as_deref(), Some(short.as_str()));
}

#[test]
fn an_unknown_upstream_takes_its_place_without_lists() {
    let mut nothing = part("crm", &tools(&["x"]));
    nothing.slice = None;
    let catalog = Catalog::build(0, vec![nothing, part("erp", &tools(&["y"]))], None);
    assert_eq!(names(&catalog, ListKind::Tools), ["erp__y"]);
    assert_eq!(catalog.upstreams().count(), 2);
}

#[test]
fn one_upstreams_change_leaves_the_others_lists_as_they_are() {
    let many =
        |of: &str, n: usize| tools(&(0..n).map(|i| format!("{of}-tool {i}")).collect::<Vec<_>>());
    let mut slices: Vec<_> = (0..6).map(|n| (format!("up{n}"), many("small", 100))).collect();
    slices.push(("large".into(), many("large", 10_000)));
    let parts = |slices: &[(String, Arc<Slice>)]| {
        slices.iter().map(|(name, s)| part(name, s)).collect::<Vec<_>>()
    };
    let before = Catalog::build(1, parts(&slices), None);
    assert_eq!(before.entries(ListKind::Tools).count(), 10_600);

    slices[3].1 = many("changed", 101);
    let after = Catalog::build(2, parts(&slices), Some(&before));
    assert_eq!(after.entries(ListKind::Tools).count(), 10_601);
    for (name, _) in &slices {
        let list = |c: &Catalog| c.part(name).unwrap().list(ListKind::Tools).unwrap().clone();
        assert_eq!(Arc::ptr_eq(&list(&before), &list(&after)), name != "up3", "{name}");
    }

    // A new filter makes the list anew, another setting does not.
    let list = |c: &Catalog| c.part("large").unwrap().list(ListKind::Tools).unwrap().clone();
    for (change, same) in [(false, true), (true, false)] {
        let changed = part_with("large", &slices[6].1, |c| {
            c.max_pages += 1;
            if change {
                c.filter.deny = vec!["*9".into()];
            }
        });
        let next = Catalog::build(3, vec![changed], Some(&after));
        assert_eq!(Arc::ptr_eq(&list(&next), &list(&after)), same);
    }
}

proptest! {
    // Decoding is a look-up in the catalog: what was exposed leads back, and what is not exposed
    // is reported.
    #[test]
    fn every_native_name_is_reached_again_or_reported(
        ups in proptest::collection::btree_map(
            "[a-c]{1,2}",
            proptest::collection::btree_set("([a-c]|__|\\.|é|[a-c]{30}){1,4}", 0..6),
            1..4,
        ),
        bare: bool,
    ) {
        let parts: Vec<_> = ups.iter().enumerate().map(|(n, (name, natives))| {
            let natives: Vec<_> = natives.iter().collect();
            part_with(name, &tools(&natives), |c| c.prefixed = !(bare && n == 0))
        }).collect();
        let catalog = Arc::new(Catalog::build(0, parts, None));
        let view = View::new(&catalog, None);
        for (n, (name, natives)) in ups.iter().enumerate() {
            for native in natives {
                let exposed = exposed_name(name, !(bare && n == 0), native);
                let route = view.resolve(ListKind::Tools, &exposed);
                let reached = route.is_some_and(|route| {
                    &**route.upstream() == name && &**route.native() == native
                });
                let reported = catalog.drops().iter().any(|d| {
                    &*d.upstream == name && d.native.as_deref() == Some(native)
                });
                prop_assert!(reached != reported, "{} {}", name, native);
            }
        }
    }
}
