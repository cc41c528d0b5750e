//! House rules that a compiler does not check. Each failure names the file and the remedy.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, out: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                out.push((path, text));
            }
        }
    }
    let mut out = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut out);
    out.sort();
    out
}

fn order() -> Vec<String> {
    let lib = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")).unwrap();
    lib.lines()
        .filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';').map(str::to_owned))
        .collect()
}

fn module_of(path: &Path) -> Option<String> {
    let relative = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).ok()?;
    let first = relative.components().next()?.as_os_str().to_str()?;
    Some(first.trim_end_matches(".rs").to_owned())
}

// The part of a file that is shipped: what comes before its unit tests.
fn shipped(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap()
}

#[test]
fn a_module_names_only_modules_above_it() {
    let order = order();
    assert!(order.len() > 10, "the module list of lib.rs could not be read");
    let rank = |m: &str| order.iter().position(|o| o == m);
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let Some(own) = module_of(&path).as_deref().and_then(rank) else { continue };
        for (number, line) in shipped(&text).lines().enumerate() {
            let code = line.split("//").next().unwrap();
            for (at, _) in code.match_indices("crate::") {
                let name: String = code[at + 7..]
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                if rank(&name).is_some_and(|other| other > own) {
                    wrong.push(format!("{}:{} names {name}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "move the code down, or the module up in lib.rs:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn eras_are_named_at_the_edges_only() {
    // protocol has the words, catalog keeps an upstream's revision, upstream and downstream are
    // the two edges. The heart and the control plane do not ask.
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| {
            matches!(module_of(path).as_deref(), Some("gateway" | "control" | "guard" | "identity"))
                && shipped(text).contains("Era::")
        })
        .map(|(path, _)| path)
        .collect();
    assert!(wrong.is_empty(), "translate at the edge instead: {wrong:?}");
}

#[test]
fn http_stays_at_the_edges() {
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| {
            matches!(module_of(path).as_deref(), Some("gateway" | "catalog" | "guard" | "call"))
                && (shipped(text).contains("hyper::") || shipped(text).contains("http::"))
        })
        .map(|(path, _)| path)
        .collect();
    assert!(wrong.is_empty(), "no HTTP type belongs here: {wrong:?}");
}

#[test]
fn every_file_says_what_it_is() {
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| !path.ends_with("tests.rs") && !text.starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(wrong.is_empty(), "begin with a //! sentence: {wrong:?}");
}

#[test]
fn every_file_can_be_read_in_one_sitting() {
    const LINES_MAX: usize = 720;
    let wrong: Vec<_> = sources()
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        // A file of test cases is looked up, not read through.
        .filter(|(path, lines)| *lines > LINES_MAX && !path.ends_with("tests.rs"))
        .collect();
    assert!(wrong.is_empty(), "split by idea: {wrong:?}");
}

#[test]
fn nothing_is_unbounded() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        for needle in ["unbounded_channel", "mpsc::unbounded", "UnboundedSender"] {
            if shipped(&text).contains(needle) {
                wrong.push(format!("{}: {needle}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "give it a bound with a reason: {wrong:?}");
}

#[test]
fn the_project_does_not_reach_outside_itself() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in ["README.md", "CHANGELOG.md", "Cargo.toml", "upstreams.toml"] {
        let text = fs::read_to_string(root.join(name)).unwrap();
        assert!(!text.contains("../"), "{name} points outside the project");
    }
}
