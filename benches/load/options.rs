//! The command line.

use crate::cells::{self, Cell};
use crate::facts;
use crate::proc::Places;

/// What is wanted.
pub struct Options {
    /// Rounds of each cell.
    pub rounds: usize,
    /// Seconds of each round of a cell.
    pub seconds: f64,
    /// Only these.
    pub only: Option<Vec<String>>,
    /// Whether processors are assigned.
    pub pinned: bool,
    /// Whether nginx takes part.
    pub nginx: bool,
    /// A short run that shows that everything works.
    pub smoke: bool,
    /// Whether a missed gate is a failure.
    pub gate: bool,
    /// Whether the tables of `benches/RESULTS.md` are replaced.
    pub write: bool,
}

const USAGE: &str = "\
usage: cargo bench --bench load -- [options]
  --smoke          one short round of everything, half a minute
  --only NAME,…    only these cells and measurements (--list names them)
  --rounds N       rounds of each cell (5)
  --seconds S      seconds of each round of a cell (1.5)
  --no-pin         everybody on all processors
  --no-nginx       without nginx, so without ratios
  --gate           a missed gate is a failure
  --write          replace the tables in benches/RESULTS.md
  --list           name all cells and measurements";

// Of cells, then of other measurements.
fn names() -> impl Iterator<Item = &'static str> {
    let cells = cells::all().into_iter().map(|c| c.name);
    cells.chain(facts::ALL.iter().map(|(name, _)| *name))
}

impl Options {
    /// Read the command line.
    ///
    /// # Errors
    /// How it is used.
    pub fn read(arguments: &[String]) -> Result<Options, String> {
        let mut out = Options {
            rounds: 5,
            seconds: 1.5,
            only: None,
            pinned: true,
            nginx: true,
            smoke: false,
            gate: false,
            write: false,
        };
        let (mut rounds, mut seconds) = (None, None);
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} what?\n{USAGE}"));
            match &**word {
                // Cargo's own word.
                "--bench" => {}
                "--smoke" => out.smoke = true,
                "--only" => out.only = Some(value()?.split(',').map(Into::into).collect()),
                "--rounds" => {
                    rounds = Some(value()?.parse().map_err(|e| format!("--rounds: {e}"))?);
                }
                "--seconds" => {
                    seconds = Some(value()?.parse().map_err(|e| format!("--seconds: {e}"))?);
                }
                "--no-pin" => out.pinned = false,
                "--no-nginx" => out.nginx = false,
                "--gate" => out.gate = true,
                "--write" => out.write = true,
                "--list" => {
                    return Err(names().collect::<Vec<_>>().join("\n"));
                }
                _ => return Err(USAGE.into()),
            }
        }
        if out.smoke {
            (out.rounds, out.seconds) = (1, 0.2);
        }
        out.rounds = rounds.unwrap_or(out.rounds).max(1);
        out.seconds = seconds.unwrap_or(out.seconds).clamp(0.05, 600.0);
        for name in out.only.iter().flatten() {
            if !names().any(|n| n == name) {
                return Err(format!("there is no {name}\n{USAGE}"));
            }
        }
        Ok(out)
    }

    /// The cells that are wanted.
    pub fn cells(&self) -> Vec<Cell> {
        cells::all().into_iter().filter(|c| self.wants(c.name)).collect()
    }

    /// Whether a cell or measurement is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|o| o == name))
    }

    /// Who runs where.
    pub fn places(&self) -> Places {
        if self.pinned && crate::proc::processors() > 1 { Places::pinned() } else { Places::free() }
    }
}
