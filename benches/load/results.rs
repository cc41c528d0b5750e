//! `benches/RESULTS.md`, and what is said with every figure: where, when and with what.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use crate::contestant;
use crate::options::Options;
use crate::proc::processors;

const BEGIN: &str = "<!-- load: replaced by `cargo bench --bench load -- --write` -->";
const END: &str = "<!-- load: end -->";

/// Date, machine, versions, and how it was measured.
pub fn circumstances(options: &Options) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": "));
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "- {name}: {value}");
    };
    line("date", &date);
    line("machine", &format!("{} × {}", processors(), cpu.map_or("?", |(_, name)| name)));
    line("kernel", &read("/proc/sys/kernel/osrelease"));
    let weir = contestant::weir().display().to_string();
    let tree = said("git", &["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"]);
    let version = said(&weir, &["--version"]);
    // A program from elsewhere need not be of this tree.
    line(
        "weir",
        &match std::env::var("WEIR_BIN") {
            Ok(path) => format!("{version}, {path}; the benchmark is of {tree}"),
            Err(_) => format!("{version}, {tree}"),
        },
    );
    if options.nginx {
        line("nginx", &said("nginx", &["-v"]));
    }
    line("rustc", &said("rustc", &["--version"]));
    let places = options.places();
    let placed = if places.proxy.is_empty() {
        "everybody on all processors".to_owned()
    } else {
        format!("proxy on processor {:?}, load and upstreams on {:?}", places.proxy, places.others)
    };
    line("rounds", &format!("{} of {} s, medians; {placed}", options.rounds, options.seconds));
    for (name, _) in contestant::peers() {
        line("other gateway", &name.to_lowercase());
    }
    out
}

// The first line that a program says.
fn said(program: &str, arguments: &[&str]) -> String {
    let Ok(out) = Command::new(program).args(arguments).output() else { return "?".into() };
    let text = [out.stdout, out.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or("?").trim().to_owned()
}

/// Put the tables into the file, in the place of those before.
///
/// # Errors
/// What the system says.
pub fn write(text: &str) -> Result<(), String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/RESULTS.md");
    let old = fs::read_to_string(&path).unwrap_or_else(|_| "# Results\n".into());
    let section = format!("{BEGIN}\n\n{}\n\n{END}", text.trim());
    let new = match (old.find(BEGIN), old.find(END)) {
        (Some(begin), Some(end)) if begin < end => {
            format!("{}{section}{}", &old[..begin], &old[end + END.len()..])
        }
        _ => format!("{}\n\n## The load benchmark\n\n{section}\n", old.trim_end()),
    };
    fs::write(&path, new).map_err(|e| format!("{}: {e}", path.display()))
}
