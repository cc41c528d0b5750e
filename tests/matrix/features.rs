//! What is done in a cell: one caller and one upstream, feature by feature.

mod asked;
mod told;

pub use told::{changed_lists, changed_resources, told, watch};

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::PAGE_SIZE;
use crate::axes::{Feature, Rule};
use crate::caller::{Ask, Caller};
use crate::harness::PATIENCE;
use crate::peer::tools::{
    BROKE, CONTENTS, GREETING, PROMPTS, RESOURCES, STEP, TEMPLATES, TOOLS, UNKNOWN,
};
use crate::peer::{Peer, meta};
use crate::text::{Message, quoted};

/// What became of a feature in a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It works.
    Works,
    /// It cannot exist, and is refused as it should be.
    Refused(Rule),
    /// What went wrong.
    Fails(String),
}

impl From<Result<(), String>> for Mark {
    fn from(result: Result<(), String>) -> Mark {
        result.map_or_else(Mark::Fails, |()| Mark::Works)
    }
}

/// Marks by feature.
pub type Marks = Vec<(Feature, Mark)>;

/// Fail with a text unless it is so.
pub fn check(ok: bool, text: impl FnOnce() -> String) -> Result<(), String> {
    if ok { Ok(()) } else { Err(text()) }
}

/// The four lists as a caller sees them.
pub struct Lists {
    lists: [BTreeMap<String, String>; 4],
    pages: [Vec<usize>; 4],
}

/// Method, member and key of each list.
const KINDS: [(&str, &str, &str); 4] = [
    ("tools/list", "tools", "name"),
    ("prompts/list", "prompts", "name"),
    ("resources/list", "resources", "uri"),
    ("resources/templates/list", "resourceTemplates", "uriTemplate"),
];

impl Lists {
    /// Read them all, page by page.
    pub async fn read(caller: &Caller) -> Result<Lists, String> {
        let mut lists = Lists { lists: Default::default(), pages: Default::default() };
        for (n, (method, member, key)) in KINDS.into_iter().enumerate() {
            (lists.lists[n], lists.pages[n]) = caller.all(method, member, key).await?;
        }
        Ok(lists)
    }

    /// Whether all tools of an upstream are there.
    pub fn has(&self, peer: &Peer) -> bool {
        TOOLS[..6]
            .iter()
            .all(|(name, _)| self.lists[0].contains_key(&format!("{}__{name}", peer.at.name())))
    }

    // Public key and raw text of what a peer offers.
    fn expected(peer: &Peer) -> [Vec<(String, String)>; 4] {
        let up = peer.at.name();
        let named = |(name, item): &(&str, &str)| {
            let (native, public) = (quoted(name), format!("{up}__{name}"));
            let from = format!(r#""name":{native}"#);
            let item = item.replacen(&from, &format!(r#""name":{}"#, quoted(&public)), 1);
            (public, item)
        };
        let addressed = |(uri, item): &(&str, &str)| {
            let public = format!("{up}+{uri}");
            (public.clone(), item.replacen(&quoted(uri), &quoted(&public), 1))
        };
        [
            TOOLS[..6].iter().map(named).collect(),
            PROMPTS.iter().map(named).collect(),
            RESOURCES.iter().map(addressed).collect(),
            TEMPLATES.iter().map(addressed).collect(),
        ]
    }

    fn list(&self, peer: &Peer) -> Result<(), String> {
        for (seen, expected) in self.lists.iter().zip(Lists::expected(peer)) {
            for (name, _) in expected {
                check(seen.contains_key(&name), || format!("{name} is not listed"))?;
            }
        }
        Ok(())
    }

    fn exact(&self, peer: &Peer) -> Result<(), String> {
        for (seen, expected) in self.lists.iter().zip(Lists::expected(peer)) {
            for (name, item) in expected {
                let got = seen.get(&name).cloned().unwrap_or_default();
                check(got == item, || format!("{got} instead of {item}"))?;
            }
        }
        Ok(())
    }

    fn paging(&self, peer: &Peer) -> Result<(), String> {
        for (pages, (method, ..)) in self.pages.iter().zip(KINDS) {
            let cut = pages.len() > 1 && pages.iter().all(|n| *n <= PAGE_SIZE);
            check(cut, || format!("pages of {method}: {pages:?}"))?;
            for cursor in [None, Some(""), Some("more")] {
                let page = format!("{method} page {cursor:?}");
                check(peer.noted(&page) > 0, || format!("not fetched: {page}"))?;
            }
        }
        Ok(())
    }
}

/// Before a caller has said which log messages it wants it gets none.
pub async fn quiet(caller: &Caller, peer: &Peer) -> Result<(), String> {
    let said = caller.converse(&tool(peer, "logs", "{}"), &nothing).await?;
    check(said.len() == 1, || format!("nobody asked for this: {said:?}"))
}

/// An old client says once for its session which log messages it wants.
pub async fn set_level(caller: &Caller) -> Result<(), String> {
    if caller.at.is_modern() {
        return Ok(());
    }
    let said = caller.ask(&Ask::new("logging/setLevel", r#""level":"warning""#)).await?;
    check(said.raw(&["result"]).as_deref() == Some("{}"), || said.0)
}

/// All of a cell but what is told unasked.
pub async fn cell(
    caller: &Caller,
    peer: &Peer,
    lists: &Lists,
    quiet: &Result<(), String>,
) -> Marks {
    let exact = match lists.exact(peer) {
        Ok(()) => bytes(caller, peer).await,
        wrong => wrong,
    };
    let log = match quiet {
        Ok(()) => log(caller, peer).await,
        Err(text) => Mark::Fails(text.clone()),
    };
    let mut marks: Marks = vec![
        (Feature::List, lists.list(peer).into()),
        (Feature::Call, call(caller, peer).await.into()),
        (Feature::Error, error(caller, peer).await.into()),
        (Feature::Paging, lists.paging(peer).into()),
        (Feature::Progress, progress(caller, peer).await.into()),
        (Feature::Log, log),
        (Feature::Cancel, cancel(caller, peer).await.into()),
    ];
    for feature in [Feature::Form, Feature::Url, Feature::Sampling, Feature::Roots] {
        marks.push((feature, asked::question(caller, peer, feature).await));
    }
    marks.push((Feature::Exact, exact.into()));
    marks
}

fn tool(peer: &Peer, name: &str, arguments: &str) -> Ask {
    Ask::tool(&format!("{}__{name}", peer.at.name()), arguments)
}

fn nothing(method: &str, _: &Message) -> String {
    panic!("asked {method}")
}

pub fn text_of(response: &Message) -> Result<String, String> {
    let content = response.raw(&["result", "content"]).ok_or(response.0.clone())?;
    let first = crate::text::items(&content).into_iter().next().unwrap_or_default();
    Message(first).text(&["text"]).ok_or(response.0.clone())
}

// A tool, a prompt and a resource.
async fn call(caller: &Caller, peer: &Peer) -> Result<(), String> {
    let up = peer.at.name();
    let said = caller.ask(&tool(peer, "echo", r#"{"a":1}"#)).await?;
    check(text_of(&said)? == r#"{"a":1}"#, || said.0.clone())?;
    let said = caller.ask(&Ask::prompt(&format!("{up}__greet"))).await?;
    check(said.raw(&["result"]).is_some_and(|r| r.contains(GREETING)), || said.0.clone())?;
    let said = caller.ask(&Ask::resource(&format!("{up}+file:///watched"))).await?;
    let contents = CONTENTS.replace("file:///watched", &format!("{up}+file:///watched"));
    check(said.raw(&["result"]).is_some_and(|r| r.contains(&contents)), || said.0.clone())
}

// What nobody has heard of, numbers that no float holds and ids of any spelling arrive as they
// were sent, in both directions.
async fn bytes(caller: &Caller, peer: &Peer) -> Result<(), String> {
    let arguments = r#"{ "n":1.10,"big":123456789012345678901234567890,"e":1e400,"x":{"b":-0.0,"a":"\u00e9"} }"#;
    for _ in 0..5 {
        let said = caller.ask(&tool(peer, "echo", arguments)).await?;
        check(text_of(&said)? == arguments, || format!("the arguments arrived as {}", said.0))?;
        let odd = r#","x-odd":1e400}],"#;
        let own = said.raw(&["result", "_meta", "example.com/n"]);
        let unknown = said.raw(&["result", "x-unknown"]);
        let kept = said.0.contains(odd)
            && own.as_deref() == Some("1.10")
            && unknown.as_deref() == Some(UNKNOWN);
        check(kept, || format!("the result arrived as {}", said.0))?;
    }
    Ok(())
}

async fn error(caller: &Caller, peer: &Peer) -> Result<(), String> {
    let said = caller.ask(&tool(peer, "broke", "{}")).await?;
    check(said.raw(&["error"]).as_deref() == Some(BROKE), || said.0.clone())?;
    let said = caller.ask(&tool(peer, "nobody", "{}")).await?;
    check(said.raw(&["error", "code"]).as_deref() == Some("-32602"), || said.0.clone())?;
    let missing = format!("{}+file:///a/missing", peer.at.name());
    let said = caller.ask(&Ask::resource(&missing)).await?;
    let code = if caller.at.is_modern() { "-32602" } else { "-32002" };
    check(said.raw(&["error", "code"]).as_deref() == Some(code), || said.0.clone())?;
    check(said.raw(&["error", "data", "n"]).as_deref() == Some("1.10"), || said.0.clone())
}

async fn progress(caller: &Caller, peer: &Peer) -> Result<(), String> {
    for token in [r#""t-1.0""#, "42", "7000000000000000000000"] {
        let ask = tool(peer, "steps", "{}").with(&format!(r#""progressToken":{token}"#));
        let said = caller.converse(&ask, &nothing).await?;
        let [first, second, _] = &said[..] else { return Err(format!("{said:?}")) };
        for (step, text) in [(first, r#""progress":0.10"#), (second, STEP)] {
            let of = step.raw(&["params", "progressToken"]);
            check(of.as_deref() == Some(token) && step.0.contains(text), || step.0.clone())?;
        }
    }
    // Who did not ask gets none.
    let said = caller.converse(&tool(peer, "steps", "{}"), &nothing).await?;
    check(said.len() == 1, || format!("nobody asked for this: {said:?}"))
}

async fn log(caller: &Caller, peer: &Peer) -> Mark {
    let mut ask = tool(peer, "logs", "{}");
    if caller.at.is_modern() {
        ask = ask.with(&format!(r#""{}":"warning""#, meta("logLevel")));
    }
    let said = match caller.converse(&ask, &nothing).await {
        Ok(said) => said,
        Err(text) => return Mark::Fails(text),
    };
    match Feature::Log.forbidden(caller.at, peer.at) {
        Some(rule) if said.len() == 1 => Mark::Refused(rule),
        Some(_) => Mark::Fails(format!("whose is this? {said:?}")),
        None => own_log(peer, &said).into(),
    }
}

// What was wished for, of this call and no other.
fn own_log(peer: &Peer, said: &[Message]) -> Result<(), String> {
    let levels: Vec<_> = said.iter().filter_map(|m| m.text(&["params", "level"])).collect();
    check(levels == ["warning", "error"], || format!("{said:?}"))?;
    let logger = format!("{}/l", peer.at.name());
    let whole = said[..2].iter().all(|m| {
        m.text(&["params", "logger"]).as_ref() == Some(&logger)
            && m.raw(&["params", "data"]).as_deref() == Some(r#"{"n":1.10}"#)
    });
    check(whole, || format!("{said:?}"))
}

async fn cancel(caller: &Caller, peer: &Peer) -> Result<(), String> {
    let nonce = quoted(&format!("{} {}", caller.at, caller.next()));
    let exchange = caller.begin(&tool(peer, "hang", &format!(r#"{{"nonce":{nonce}}}"#))).await;
    let id = exchange.id().clone();
    peer.until(&format!("hangs {nonce}")).await?;
    let rest = caller.cancel(exchange).await;
    let seen = peer.until(&format!("cancelled {nonce} ")).await?;
    let form = if peer.at.is_stateless() { " stream" } else { " notification" };
    check(seen.ends_with(form), || seen.clone())?;
    let Some(mut rest) = rest else { return Ok(()) };
    // No answer is owed. Over HTTP the stream ends; on a connection what comes next is another's.
    if caller.at.carrier == crate::axes::Carrier::Http {
        let end = tokio::time::timeout(PATIENCE, rest.next()).await;
        return match end {
            Ok(None) => Ok(()),
            Ok(Some(said)) => Err(format!("after its end: {}", said.0)),
            Err(_) => Err("the stream of a call that was taken back goes on".into()),
        };
    }
    drop(rest);
    caller.ask(&tool(peer, "echo", "{}")).await?;
    let late = caller.heard.borrow().iter().any(|m| m.id().as_ref() == Some(&id));
    check(!late, || "an answer to a call that was taken back".into())
}

/// What was asked, for a look afterwards.
type Asked = Mutex<Vec<(String, String)>>;
