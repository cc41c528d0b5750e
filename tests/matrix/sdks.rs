//! SDKs at both ends: their servers before the scripted callers, their clients before the scripted
//! peers and before each other's servers. What an SDK's own interface lets be exercised is; what
//! comes out is `docs/MATRIX-SDKS.md`.

mod clients;
mod rust;
mod servers;

use std::fmt::Write as _;
use std::sync::Arc;

use futures_util::future::join_all;

use crate::axes::{Carrier, Endpoint, Rule};
use crate::caller::Caller;
use crate::features::check;
use crate::harness::Weir;
use crate::peer::Peer;
use crate::text::Message;
use crate::ways::Place;
use crate::{doors, table};
use servers::Server;

/// What became of each feature of a cell: its title, and a letter where it does not exist.
type Marks = Vec<(&'static str, Result<Option<&'static str>, String>)>;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sdks_stand_at_both_ends() {
    let _turn = crate::TURN.lock().await;
    let peers: Vec<Arc<Peer>> = Endpoint::all().into_iter().map(Peer::calm).collect();
    let mut sections = join_all(peers.iter().map(doors::open)).await.concat();
    let servers = servers::all().await;
    for server in &servers {
        sections += &server.section;
    }
    let weir = Weir::start("", &sections);
    let mut names: Vec<String> = peers.iter().map(|p| p.at.name()).collect();
    names.extend(servers.iter().map(|s| s.name.to_owned()));
    weir.ready(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;

    let mut page = String::from(INTRODUCTION);
    let mut wrong = Vec::new();
    // One over standard input and output would start all of them once more.
    let ends = Endpoint::all().into_iter().filter(|at| at.carrier != Carrier::Stdio);
    let rows = join_all(ends.map(|at| callers_row(at, &weir, &servers))).await;
    let heads: Vec<String> = servers.iter().map(|s| s.title.to_owned()).collect();
    rows_of(&mut page, "caller", &heads, rows, &mut wrong);

    page += CLIENTS;
    let heads = peers.iter().map(|p| p.at.to_string());
    let heads: Vec<String> = heads.chain(servers.iter().map(|s| s.title.to_owned())).collect();
    let rows = clients::rows(&weir.url, &peers, &servers).await;
    rows_of(&mut page, "client", &heads, rows, &mut wrong);
    page += LETTERS;
    writeln!(page, "- **c**: {}.", Rule::NoElicitationYet.text()).unwrap();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    table::compare_file("MATRIX-SDKS.md", &page);
}

const INTRODUCTION: &str = "\
# SDKs in the matrix

The peers of [the matrix](MATRIX.md) are scripted, so that each speaks exactly one revision. Here
SDKs stand in for them. `tests/matrix` makes this page too; `UPDATE_MATRIX=1` writes it. A number
says how many features were exercised and work, a letter why one was not.

## Servers of SDKs

list, call, error, progress and elicitation (form), each by tools of the server.

";

const CLIENTS: &str = "
## Clients of SDKs

list, call and error, each by the client's own methods; across, the scripted peers and the servers
from above.

";

const LETTERS: &str = "
- **f**: the server offers no such tool to a conversation in which it may not ask, and lists are
  read in one.
- **g**: left out: the server made with rmcp for this test has no tool that asks.
";

async fn callers_row(at: Endpoint, weir: &Weir, servers: &[Server]) -> (String, Vec<Marks>) {
    let place = Place { url: weir.url.clone(), config: std::path::PathBuf::new(), key: None };
    let caller = Caller::connect_calm(at, &place).await;
    let mut marks = Vec::new();
    for server in servers {
        marks.push(called(&caller, server).await);
    }
    (at.to_string(), marks)
}

// One scripted caller and one server.
async fn called(caller: &Caller, server: &Server) -> Marks {
    let works = |result: Result<(), String>| result.map(|()| None);
    vec![
        ("list", works(server.is_listed(caller).await)),
        ("call", works(server.answers(caller).await)),
        ("error", works(server.fails(caller).await)),
        ("progress", works(server.goes_on(caller).await)),
        ("form", server.asks(caller).await),
    ]
}

fn rows_of(
    page: &mut String,
    corner: &str,
    heads: &[String],
    rows: Vec<(String, Vec<Marks>)>,
    wrong: &mut Vec<String>,
) {
    writeln!(page, "| {corner} | {} |", heads.join(" | ")).unwrap();
    writeln!(page, "|---|{}", "---|".repeat(heads.len())).unwrap();
    for (name, row) in rows {
        assert_eq!(row.len(), heads.len(), "{name}");
        let mut cells = Vec::new();
        for (marks, head) in row.into_iter().zip(heads) {
            let works = marks.iter().filter(|(_, mark)| *mark == Ok(None)).count();
            let mut letters = String::new();
            for (feature, mark) in marks {
                match mark {
                    Ok(letter) => letters += letter.unwrap_or_default(),
                    Err(text) => wrong.push(format!("{name} -> {head}, {feature}: {text}")),
                }
            }
            cells.push(format!("{works}{letters}"));
        }
        writeln!(page, "| {name} | {} |", cells.join(" | ")).unwrap();
    }
}

/// Whether an answer is a failure, in either of the two ways.
fn is_failure(said: &Message) -> Result<(), String> {
    let failed = said.raw(&["error"]).is_some()
        || said.raw(&["result", "isError"]).as_deref() == Some("true");
    check(failed, || said.0.clone())
}
