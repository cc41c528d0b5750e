//! The `weir` binary: argv → runtime → exit code. The one file that may exit.

use std::process::ExitCode;

use weirkeeper::app::handed::Handed;
use weirkeeper::{cli, shim};

// A call makes some dozen small things and drops them on another thread now and then: measured
// against the system's allocator, this one takes a third of the time and gives memory back sooner.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Children are started through a tiny copy of this program; it must not become a gateway.
    if let Some(code) = shim::main_if_asked(std::env::args_os()) {
        return code;
    }
    // The allocator would ask for pages of 2 MiB, of which a gateway's many small things use a
    // little each. Where the system knows no such pages there is nothing to forbid.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    // Here, where there is one thread yet.
    cli::main(Handed::take())
}
