#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::*;
use crate::catalog::slice::Slice;
use crate::catalog::testing;
use crate::config::Config;
use crate::control::diff;
use crate::control::plan::{Asked, Now, broken, make};
use crate::protocol::method::ListKind;

const SECRET: &str = "s3cret-value";

fn parsed(text: &str, secret: &str) -> Result<Config, crate::config::problem::Problems> {
    let env = |name: &str| match name {
        "TOKEN" => Some(secret.to_owned()),
        "HOME" => Some("/nonexistent".to_owned()),
        _ => None,
    };
    let none = |_: &str| Err(std::io::ErrorKind::NotFound.into());
    crate::config::parse(text, "new.toml", &env, &none)
}

fn tools(list: &[(&str, &str)]) -> Arc<Slice> {
    let tools: Vec<String> = list
        .iter()
        .map(|(name, schema)| format!(r#"{{"name":"{name}","inputSchema":{{{schema}}}}}"#))
        .collect();
    testing::slice(&[(ListKind::Tools, &format!("[{}]", tools.join(",")))])
}

fn of(old: &str, new: &str, slices: &[(&str, Arc<Slice>)], asked: &[(&str, Arc<Slice>)]) -> Report {
    let named = |all: &[(&str, Arc<Slice>)]| -> Asked {
        all.iter().map(|(name, slice)| ((*name).into(), slice.clone())).collect()
    };
    let old = parsed(old, SECRET).unwrap();
    let now = Now {
        running: diff::as_if_running(&old),
        config: Arc::new(old),
        slices: named(slices),
        catalog: None,
    };
    let new = match parsed(new, SECRET) {
        Ok(new) => new,
        Err(problems) => return broken(problems),
    };
    let mut report = make("new.toml", &now, &new, &named(asked));
    report.against = "the gateway that runs".into();
    report
}

const OLD: &str = r#"
[gateway]
builtin = false
[upstreams.crm]
url = "https://crm.example/mcp"
bearer = "${TOKEN}"
[upstreams.erp]
command = "erp"
args = ["--key", "literal-s3cret-value"]
[upstreams.old]
url = "https://old.example/mcp"
[views.px]
upstreams = ["crm", "old"]
[views.all]
[consumers.px-bot]
key = "sha256:0000000000000000000000000000000000000000000000000000000000000001"
view = "px"
[consumers.px-web]
key = "sha256:0000000000000000000000000000000000000000000000000000000000000002"
view = "px"
[consumers.admin]
key = "sha256:0000000000000000000000000000000000000000000000000000000000000003"
"#;

fn slices() -> Vec<(&'static str, Arc<Slice>)> {
    vec![
        ("crm", tools(&[("find", ""), ("delete", "")])),
        ("erp", tools(&[("book", r#""properties":{"a":{}}"#)])),
        ("old", tools(&[("x", "")])),
    ]
}

#[test]
fn a_change_is_told_upstream_by_upstream_and_team_by_team() {
    let new = OLD
        .replace(
            "bearer = \"${TOKEN}\"",
            "bearer = \"${TOKEN}\"\nrate = { per_second = 2 }\ndeny = [\"delete\"]",
        )
        .replace("literal-s3cret-value", "another-s3cret-value")
        .replace(
            "[upstreams.old]\nurl = \"https://old.example/mcp\"\n",
            "[upstreams.new]\nurl = \"https://new.example/mcp\"\n",
        )
        .replace("[\"crm\", \"old\"]", "[\"crm\", \"new\"]")
        .replace("builtin = false", "builtin = false\npage_size = 7");
    let asked = [("erp", tools(&[("book", r#""properties":{"b":{}}"#), ("pay", "")]))];
    let report = of(OLD, &new, &slices(), &asked);
    let told = told(&report, false);
    assert!(!told.contains("s3cret"), "{told}");
    assert!(!serde_json::to_string(&report).unwrap().contains("s3cret"));
    insta::assert_snapshot!(told, @r"
    new.toml would be applied
    compared with the gateway that runs

    upstreams
      settings  crm              deny, rate.per_second
      rebuilt   erp              args; serves as it is until the new one is ready; tools as it said just now
      started   new              tools not known before it starts
      retired   old
    settings
      gateway.page_size
      views.px.upstreams

    px-bot, px-web (view: px)
      3 tools, 110 B, about 28 tokens
           -> 1 tool, 37 B, about 10 tokens
      vanishes  crm__delete
      vanishes  old__x
      not known tools of new, before it starts (--connect asks it)

    admin (view: everything)
      4 tools, 168 B, about 42 tokens
           -> 3 tools, 131 B, about 33 tokens
      appears   erp__pay
      vanishes  crm__delete
      vanishes  old__x
      changes   erp__book: inputSchema
      not known tools of new, before it starts (--connect asks it)

    all (view, of nobody all along)
      4 tools, 168 B, about 42 tokens
           -> 3 tools, 131 B, about 33 tokens
      appears   erp__pay
      vanishes  crm__delete
      vanishes  old__x
      changes   erp__book: inputSchema
      not known tools of new, before it starts (--connect asks it)
    ");
}

#[test]
fn what_moves_to_another_name_is_renamed() {
    let file = |text: &str| format!("[gateway]\nbuiltin = false\n{text}");
    let crm = "[upstreams.crm]\nurl = \"https://crm.example/mcp\"\n";
    let sales = crm.replace("upstreams.crm", "upstreams.sales");
    let slices = [("crm", tools(&[("find", ""), ("get", "")]))];
    let without = format!("{crm}prefix = \"\"\n");
    let report = of(&file(crm), &file(&without), &slices, &[]);
    insta::assert_snapshot!(told(&report, false), @r"
    new.toml would be applied
    compared with the gateway that runs

    upstreams
      settings  crm              prefix

    everybody
      2 tools, 73 B, about 19 tokens
           -> 2 tools, 63 B, about 16 tokens
      renamed   crm__find -> find
      renamed   crm__get -> get
    ");
    // The same server under another name: a rename for those who use it.
    let report = of(&file(crm), &file(&sales), &slices, &[]);
    insta::assert_snapshot!(told(&report, false), @r"
    new.toml would be applied
    compared with the gateway that runs

    upstreams
      started   sales            tools as last seen
      retired   crm

    everybody
      2 tools, 73 B, about 19 tokens
           -> 2 tools, 77 B, about 20 tokens
      renamed   crm__find -> sales__find
      renamed   crm__get -> sales__get
    ");
}

#[test]
fn nothing_refused_and_broken_are_told_apart() {
    let same = of(OLD, &format!("# a comment\n{OLD}"), &slices(), &[]);
    insta::assert_snapshot!(told(&same, false), @r"
    new.toml changes nothing
    compared with the gateway that runs

    no tool changes for px-bot, px-web, admin
    ");
    let moved = OLD.replace("builtin = false", "builtin = false\nlisten = \"127.0.0.1:9\"");
    let moved = moved.replace("deny", "allow") + "[log]\nformat = \"json\"\n";
    let refused = of(OLD, &moved, &slices(), &[]);
    assert_eq!(refused.verdict, Verdict::Refused);
    insta::assert_snapshot!(told(&refused, false), @r"
    new.toml would be refused
    compared with the gateway that runs
      gateway.listen cannot change while running
      log.format cannot change while running
      restart the gateway, or set it back; a restart would bring:

    upstreams
      kept      crm, erp, old
    settings
      gateway.listen
      log.format

    no tool changes for px-bot, px-web, admin
    ");
    let broken =
        of(OLD, &OLD.replace("builtin = false", "builtin = 0\npage_sice = 1"), &slices(), &[]);
    assert_eq!(broken.verdict, Verdict::Broken);
    insta::assert_snapshot!(told(&broken, false), @r"
    new.toml:3:11: gateway.builtin: is a whole number
        write true or false, without quotes
    new.toml:4:1: gateway.page_sice: is not a known key
        did you mean `page_size`?
    2 problems: nothing of it would be applied
    ");
    assert!(super::told(&same, true).contains("\x1b[32m"));
}

#[test]
fn consumers_come_and_go_and_change_their_view() {
    let old = OLD.split("[consumers.").next().unwrap();
    let first = of(old, OLD, &slices(), &[]);
    insta::assert_snapshot!(told(&first, false), @r"
    new.toml would be applied
    compared with the gateway that runs

    upstreams
      kept      crm, erp, old
    settings
      consumers.admin.key
      consumers.px-bot.key
      consumers.px-bot.view
      consumers.px-web.key
      consumers.px-web.view

    everybody (anonymous callers are served no more)
      4 tools, 168 B, about 42 tokens
      vanishes  crm__delete
      vanishes  crm__find
      vanishes  erp__book
      vanishes  old__x

    px-bot, px-web (new, view: px)
      3 tools, 110 B, about 28 tokens
      appears   crm__delete
      appears   crm__find
      appears   old__x

    admin (new, view: everything)
      4 tools, 168 B, about 42 tokens
      appears   crm__delete
      appears   crm__find
      appears   erp__book
      appears   old__x
    ");
    let new = OLD.replace("view = \"px\"\n[consumers.admin]", "view = \"all\"\n[consumers.boss]");
    insta::assert_snapshot!(told(&of(OLD, &new, &slices(), &[]), false), @r"
    new.toml would be applied
    compared with the gateway that runs

    upstreams
      kept      crm, erp, old
    settings
      consumers.admin.key
      consumers.boss.key
      consumers.px-web.view

    px-web (view: px -> all)
      3 tools, 110 B, about 28 tokens
           -> 4 tools, 168 B, about 42 tokens
      appears   erp__book

    boss (new, view: everything)
      4 tools, 168 B, about 42 tokens
      appears   crm__delete
      appears   crm__find
      appears   erp__book
      appears   old__x

    admin (goes, view: everything)
      4 tools, 168 B, about 42 tokens
      vanishes  crm__delete
      vanishes  crm__find
      vanishes  erp__book
      vanishes  old__x

    no tool changes for px-bot
    ");
}

#[test]
fn a_value_that_is_only_referred_to_is_told_by_its_key() {
    let old = parsed(OLD, SECRET).unwrap();
    let now = Now {
        running: diff::as_if_running(&old),
        config: Arc::new(old),
        slices: Asked::new(),
        catalog: None,
    };
    let report = make("new.toml", &now, &parsed(OLD, "rotated-s3cret").unwrap(), &Asked::new());
    let crm = &report.upstreams[0];
    assert_eq!(
        (crm.step, crm.keys.as_slice()),
        (Step::Rebuilt, &["bearer (what it refers to)".to_owned()][..])
    );
    assert!(!serde_json::to_string(&report).unwrap().contains("s3cret"));
}
