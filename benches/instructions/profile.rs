//! Where the instructions go, function by function, as `callgrind_annotate` has it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use super::gateway::Failure;

/// Functions in a list.
const TOP: usize = 60;
/// From this share of all instructions on, a function is the runtime around the calls and not a
/// part of one. Callgrind takes what was entered before the counting began for functions that spend
/// all by themselves.
const AROUND: f64 = 0.97;
/// No function spends so much by itself.
const AROUND_ALONE: f64 = 0.9;

/// Two lists of functions: by what they spend with all they call, and by themselves. Figures are
/// for one of `calls`, which spent `total` together.
pub fn text(dump: &Path, total: u64, calls: u64) -> Result<String, Failure> {
    let mut text = String::new();
    for (title, inclusive) in [("with all they call", true), ("by themselves", false)] {
        let mut functions: Vec<_> = functions(dump, inclusive)?.into_iter().collect();
        let around = total as f64 * if inclusive { AROUND } else { AROUND_ALONE };
        functions.retain(|(_, spent)| (*spent as f64) < around);
        functions.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let _ = writeln!(text, "\nFunctions {title}: instructions a call, share, name\n");
        for (name, spent) in functions.into_iter().take(TOP) {
            let share = spent as f64 / total.max(1) as f64 * 100.0;
            let _ = writeln!(text, "{:>10} {share:>5.1}%  {name}", spent / calls.max(1));
        }
    }
    Ok(text)
}

fn functions(dump: &Path, inclusive: bool) -> Result<HashMap<String, u64>, Failure> {
    let out = Command::new("callgrind_annotate")
        .args(["--auto=no", "--show-percs=yes", "--threshold=100"])
        .arg(format!("--inclusive={}", if inclusive { "yes" } else { "no" }))
        .arg(dump)
        .output()
        .map_err(|e| format!("callgrind_annotate, which comes with valgrind: {e}"))?;
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned().into());
    }
    let mut found: HashMap<String, u64> = HashMap::new();
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        // `1,234 ( 5.6%)  path/of.rs:a::function [object]`
        let Some((spent, rest)) = line.split_once('(') else { continue };
        let Some((_, place)) = rest.split_once("%)") else { continue };
        let Ok(spent) = spent.trim().replace(',', "").parse::<u64>() else { continue };
        let Some((_, name)) = place.split_once(':') else { continue };
        let name = name.split(" [").next().unwrap_or(name).trim_end();
        // What was inlined into a function stands for itself with its own file.
        let sum = found.entry(name.to_owned()).or_default();
        *sum = if inclusive { spent.max(*sum) } else { *sum + spent };
    }
    Ok(found)
}
