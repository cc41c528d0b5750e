//! Writes that are cut or killed at some hundred bytes, against the built gateway; the drill does
//! it at each byte (`cargo run --release --example drill -- --only writes`). The peer is another
//! process of this program, so this test brings its own `main`.
#![allow(missing_docs, dead_code, clippy::print_stdout, clippy::print_stderr)]

#[path = "../../examples/drill/client.rs"]
mod client;
#[path = "../harness/faulty/mod.rs"]
mod faulty;
#[path = "../../examples/drill/gate.rs"]
mod gate;
#[path = "../../examples/drill/options.rs"]
mod options;
#[path = "../../examples/drill/promise.rs"]
mod promise;
#[path = "../../examples/drill/writes.rs"]
mod writes;

use std::process::ExitCode;

use options::Options;
use promise::Promises;

/// The name of the test, for `cargo test NAME`.
const NAME: &str = "no_write_arrives_twice_wherever_it_is_cut";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = faulty::main_if_asked(&arguments) {
        return code;
    }
    if arguments.iter().any(|a| a == "--list") {
        println!("{NAME}: test");
        return ExitCode::SUCCESS;
    }
    let mut filters = arguments.iter().filter(|a| !a.starts_with('-')).peekable();
    if filters.peek().is_some() && !filters.any(|f| NAME.contains(f.as_str())) {
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn run() -> Result<bool, String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let options = Options { short: true, ..Options::read(&[], dir.path().to_owned())? };
    let mut promises = Promises::default();
    writes::run(&options, &mut promises).await?;
    gate::judge_panics(&mut promises);
    Ok(promises.all())
}
