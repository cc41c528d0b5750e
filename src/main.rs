//! The `weir` binary: argv → runtime → exit code. The one file that may exit.

use std::process::ExitCode;

use weirkeeper::{cli, shim};

fn main() -> ExitCode {
    // Children are started through a tiny copy of this program; it must not become a gateway.
    if let Some(code) = shim::main_if_asked(std::env::args_os()) {
        return code;
    }
    cli::main()
}
