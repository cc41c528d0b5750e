//! Drills of the built gateway: what must not happen when things go wrong, one line per promise
//! with its figure. The exit code is 1 when one is broken.
//!
//! `cargo build --release && cargo run --release --example drill -- --help`
#![allow(missing_docs, clippy::print_stdout, clippy::print_stderr)]

mod client;
mod crash;
#[path = "../../tests/harness/faulty/mod.rs"]
mod faulty;
mod gate;
mod load;
mod neighbours;
mod options;
mod overload;
mod promise;
mod reloads;
mod rolling;
mod soak;
mod writes;

use std::process::ExitCode;

use options::Options;
use promise::Promises;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = faulty::main_if_asked(&arguments) {
        return code;
    }
    match drill(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn drill(arguments: &[String]) -> Result<bool, String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let options = Options::read(arguments, dir.path().to_owned())?;
    println!("{}", gate::program()?.display());
    let mut promises = Promises::default();
    macro_rules! tell {
        ($($story:ident)*) => {$(
            if options.wants($story::NAME)
                && let Err(e) = $story::run(&options, &mut promises).await
            {
                promises.fail($story::NAME, &e);
            }
        )*};
    }
    if options.soak.is_some() {
        tell!(soak);
    } else {
        tell!(neighbours writes rolling crash overload reloads);
    }
    gate::judge_panics(&mut promises);
    Ok(promises.all())
}
