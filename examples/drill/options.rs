//! What the command line says.

use std::path::PathBuf;

/// How the drill is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The form for each check: less of everything.
    pub short: bool,
    /// This story alone.
    pub only: Option<String>,
    /// The long mix of everything, for so many minutes.
    pub soak: Option<f64>,
    /// How many reloads.
    pub reloads: Option<usize>,
    /// Where the gateways have their files.
    pub dir: PathBuf,
}

/// What can be said.
pub const HELP: &str = "\
cargo run --release --example drill -- [OPTIONS]
  --short           less of everything: two minutes
  --only NAME       one story: neighbours, writes, rolling, crash, overload, reloads
  --reloads N       so many reloads (1000; 60 with --short)
  --soak [MINUTES]  the long mix of everything (20)
WEIR_BIN names the gateway to drill; else it is the one that was built beside the drill.";

impl Options {
    /// Read them.
    pub fn read(arguments: &[String], dir: PathBuf) -> Result<Options, String> {
        let mut options = Options { short: false, only: None, soak: None, reloads: None, dir };
        let mut rest = arguments.iter().peekable();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "--short" => options.short = true,
                "--only" => options.only = Some(rest.next().ok_or(HELP)?.clone()),
                "--reloads" => {
                    let n = rest.next().and_then(|n| n.parse().ok());
                    options.reloads = Some(n.ok_or(HELP)?);
                }
                "--soak" => {
                    let minutes = rest.peek().and_then(|n| n.parse().ok());
                    if minutes.is_some() {
                        rest.next();
                    }
                    options.soak = Some(minutes.unwrap_or(20.0));
                }
                _ => return Err(HELP.to_owned()),
            }
        }
        Ok(options)
    }

    /// Whether this story is to be told.
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == name)
    }
}
