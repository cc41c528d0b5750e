//! Instructions that the gateway spends on one call: a figure that machines of one kind agree on,
//! so a check can compare it where a time would only say how busy the machine was.
//!
//! `weir` runs under callgrind with one worker and with everything on. A client calls it `N` times
//! and then `3 N` times, one call after the other; the difference, divided by `2 N`, is one call
//! without what only the counting costs. Every answer is compared with the first, byte for byte.
//!
//! ```text
//! cargo bench --profile dev --bench instructions                     compare with instructions.txt
//! cargo bench --profile dev --bench instructions -- --accept         and keep these figures
//! cargo bench --profile dev --bench instructions -- old-old          one scenario
//! cargo bench --profile dev --bench instructions -- --time           processor time of each instead
//! cargo bench --profile dev --bench instructions -- --profile old-old [FILE]
//! ```
//!
//! The last one writes where the instructions go, by function (inclusive and self), to a file in
//! `target`. What is measured is built with the profile `count`; or it is `WEIR_BIN`, and then
//! nothing is compared in earnest. `valgrind` is needed.
#![allow(missing_docs, clippy::print_stdout, clippy::print_stderr)]

mod gateway;
mod http;
mod kept;
mod profile;
mod upstream;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::{Value, json};

use gateway::{Failure, Gateway};
use kept::{Kept, Verdict};
use upstream::Speaks;

/// Calls of the short phase.
const CALLS: u64 = 100;
/// Calls before the first phase that counts: connections are made and pages prepared in them.
const WARM: u64 = 40;
/// Calls whose time is measured.
const TIMED: u64 = 2000;
/// What a call says, and hears again.
const TEXT: usize = 128;

/// One kind of call.
struct Scenario {
    name: &'static str,
    what: &'static str,
    client: Speaks,
    /// Its public name; without one, tools are listed.
    tool: Option<&'static str>,
}

const fn scenario(
    name: &'static str,
    what: &'static str,
    client: Speaks,
    tool: Option<&'static str>,
) -> Scenario {
    Scenario { name, what, client, tool }
}

const SCENARIOS: [Scenario; 9] = [
    scenario("old-old", "2025-11-25 to 2025-11-25", Speaks::Old, Some("old__echo")),
    scenario("new-new", "2026-07-28 to 2026-07-28", Speaks::New, Some("new__echo")),
    scenario("old-new", "2025-11-25 to 2026-07-28", Speaks::Old, Some("new__echo")),
    scenario("new-old", "2026-07-28 to 2025-11-25", Speaks::New, Some("old__echo")),
    scenario("events", "the answer as an event stream", Speaks::New, Some("new__events")),
    scenario("large", "an answer of 64 KiB", Speaks::New, Some("new__large")),
    scenario("stdio", "a child behind its pipes", Speaks::Old, Some("child__echo")),
    scenario("list-new", "tools/list of 600 tools, 2026-07-28", Speaks::New, None),
    scenario("list-old", "tools/list of 600 tools, 2025-11-25", Speaks::Old, None),
];

/// What the command line asks for.
#[derive(Default)]
struct Wish {
    accept: bool,
    profile: bool,
    time: bool,
    names: Vec<String>,
}

/// How often what seems to have become dearer is measured.
const TRIES: usize = 4;

fn main() -> ExitCode {
    let mut wish = Wish::default();
    for arg in std::env::args().skip(1) {
        match &*arg {
            "--serve-stdio" => {
                return upstream::stdio().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
            }
            "--bench" => {}
            "--accept" => wish.accept = true,
            "--profile" => wish.profile = true,
            "--time" => wish.time = true,
            _ => wish.names.push(arg),
        }
    }
    run(&wish).unwrap_or_else(|failure| {
        eprintln!("{failure}");
        ExitCode::FAILURE
    })
}

fn run(wish: &Wish) -> Result<ExitCode, Failure> {
    let chosen = std::env::var_os("WEIR_BIN").map(PathBuf::from);
    let weir = chosen.clone().map_or_else(build, Ok)?;
    if wish.profile {
        let [name, file @ ..] = &wish.names[..] else {
            return Err(format!("--profile takes one of: {}", names()).into());
        };
        let file =
            file.first().map_or_else(|| target().join(format!("{name}.profile")), PathBuf::from);
        profile(&weir, find(name)?, &file)?;
        println!("{}", file.display());
        return Ok(ExitCode::SUCCESS);
    }
    let scenarios = wish.names.iter().map(|n| find(n)).collect::<Result<Vec<_>, _>>()?;
    let all = scenarios.is_empty();
    let scenarios = if all { SCENARIOS.iter().collect() } else { scenarios };
    if wish.time {
        time(&weir, &scenarios)?;
        return Ok(ExitCode::SUCCESS);
    }
    let kept = Kept::read();
    let mut gateway = Gateway::start(&weir, true)?;
    let mut found = Vec::new();
    for scenario in scenarios {
        let mut spent = u64::MAX;
        for _ in 0..TRIES {
            // What the gateway does by the clock counts too, and is more where others use the
            // machine: the least is what the calls take.
            spent = spent.min(measure(&mut gateway, scenario)?);
            if kept.as_ref().is_none_or(|kept| !kept.is_exceeded(scenario.name, spent)) {
                break;
            }
        }
        eprintln!("{:<10} {spent:>12}   {}", scenario.name, scenario.what);
        found.push((scenario.name, spent));
    }
    drop(gateway);
    println!("\n{}", kept::table(&found, kept.as_ref()));
    if chosen.is_some() {
        println!(
            "WEIR_BIN was measured; how it was built is not known, so nothing follows from it."
        );
        return Ok(ExitCode::SUCCESS);
    }
    if wish.accept {
        if !all {
            return Err("figures are accepted together: leave out the names".into());
        }
        kept::write(&found)?;
        println!("Kept.");
        return Ok(ExitCode::SUCCESS);
    }
    let verdict = kept::judge(&found, kept.as_ref());
    println!("{verdict}");
    Ok(if matches!(verdict, Verdict::Worse(_)) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn names() -> String {
    SCENARIOS.map(|s| s.name).join(", ")
}

fn find(name: &str) -> Result<&'static Scenario, Failure> {
    let found = SCENARIOS.iter().find(|s| s.name == name);
    found.ok_or_else(|| format!("no scenario {name:?}; there are: {}", names()).into())
}

// Cargo's own folder for what it builds.
fn target() -> PathBuf {
    let own = Path::new(env!("CARGO_TARGET_TMPDIR"));
    own.parent().map_or_else(|| own.to_owned(), Path::to_owned)
}

fn build() -> Result<PathBuf, Failure> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // What cargo tells this program of its package is not for the packages built now: some would
    // be built anew for it.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    let status = command
        .args(["build", "--locked", "--profile", "count", "--bin", "weir", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .arg("--target-dir")
        .arg(target())
        .status()?;
    if !status.success() {
        return Err("weir could not be built".into());
    }
    Ok(target().join("count/weir"))
}

struct Caller {
    client: gateway::Client,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Caller {
    // The first answer is looked at; all others must be the same.
    fn new(gateway: &Gateway, scenario: &Scenario) -> Result<Caller, Failure> {
        let mut client = gateway.client(scenario.client)?;
        let text = "t".repeat(TEXT);
        let request = match scenario.tool {
            Some(name) => {
                client.request("tools/call", json!({"name": name, "arguments": {"text": text}}))
            }
            None => client.request("tools/list", json!({})),
        };
        let answer = client.round(&request)?.body;
        let said: Value = serde_json::from_slice(&answer)?;
        let fine = match scenario.tool {
            None => said["result"]["tools"].as_array().is_some_and(|tools| tools.len() == 600),
            Some(name) => {
                let heard = said["result"]["content"][0]["text"].as_str();
                let large = name.ends_with("large");
                heard.is_some_and(|h| if large { h.len() == upstream::LARGE } else { h == text })
            }
        };
        if !fine {
            return Err(format!("{}: a wrong answer: {said:#}", scenario.name).into());
        }
        Ok(Caller { client, request, answer })
    }

    fn call(&mut self, times: u64) -> Result<(), Failure> {
        for _ in 0..times {
            let got = self.client.round(&self.request)?;
            if got.body != self.answer {
                let text = String::from_utf8_lossy(&got.body);
                return Err(format!("an answer differs from the first: {text}").into());
            }
        }
        Ok(())
    }
}

fn measure(gateway: &mut Gateway, scenario: &Scenario) -> Result<u64, Failure> {
    let mut caller = Caller::new(gateway, scenario)?;
    caller.call(WARM)?;
    gateway.spent()?;
    caller.call(CALLS)?;
    let (short, _) = gateway.spent()?;
    caller.call(3 * CALLS)?;
    let (long, _) = gateway.spent()?;
    Ok(long.saturating_sub(short) / (2 * CALLS))
}

// Without callgrind: the time of one call after the other, which is more than that of a call among
// many.
fn time(weir: &Path, scenarios: &[&Scenario]) -> Result<(), Failure> {
    let gateway = Gateway::start(weir, false)?;
    for scenario in scenarios {
        let mut caller = Caller::new(&gateway, scenario)?;
        caller.call(TIMED / 4)?;
        let before = gateway.time()?;
        caller.call(TIMED)?;
        let spent = (gateway.time()? - before) as f64 / 1e3 / TIMED as f64;
        println!("{:<10} {spent:>9.1} µs   {}", scenario.name, scenario.what);
    }
    Ok(())
}

fn profile(weir: &Path, scenario: &Scenario, file: &Path) -> Result<(), Failure> {
    let mut gateway = Gateway::start(weir, true)?;
    let mut caller = Caller::new(&gateway, scenario)?;
    caller.call(WARM)?;
    gateway.spent()?;
    caller.call(CALLS)?;
    let (total, dump) = gateway.spent()?;
    let text = profile::text(&dump, total, CALLS)?;
    let head = format!("{} ({}): {CALLS} calls", scenario.name, scenario.what);
    std::fs::write(file, format!("{head}, {} instructions each\n{text}", total / CALLS))?;
    Ok(())
}
