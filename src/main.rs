//! The `weir` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: a supervisor of a child process is this same program under another name.
    if let Some(code) = weirkeeper::shim::main_if_asked(std::env::args_os()) {
        return code;
    }
    ExitCode::SUCCESS
}
