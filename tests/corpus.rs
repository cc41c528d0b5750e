//! The kept inputs of the fuzz targets (`fuzz/`), without the fuzzer: what it once found stays
//! found, and each form of a message and of an event stream is looked at with every toolchain.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::Path;

// The properties speak of `crate::protocol` and others: here it is the gateway's, in `fuzz/` the same sources.
use weirkeeper::{config, downstream, protocol, upstream, wire};

#[path = "../fuzz/src/configuration.rs"]
mod configuration;
#[path = "../fuzz/src/envelope.rs"]
mod envelope;
#[path = "../fuzz/src/event_stream.rs"]
mod event_stream;
#[path = "../fuzz/src/framing.rs"]
mod framing;
#[path = "../fuzz/src/request.rs"]
mod request;
#[path = "../fuzz/src/response.rs"]
mod response;

/// More would be a collection and no choice; each input has a name that says why it is there.
const INPUTS_MAX: usize = 100;

fn replay(target: &str, holds: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs: Vec<_> = fs::read_dir(&folder)
        .expect("the kept inputs are in the repository")
        .map(|entry| entry.expect("the folder can be read").path())
        .collect();
    inputs.sort();
    assert!((20..=INPUTS_MAX).contains(&inputs.len()), "{} inputs of {target}", inputs.len());
    for input in inputs {
        let data = fs::read(&input).expect("a kept input can be read");
        println_name(&input);
        // Every beginning of it is an input as well: what a broken connection leaves.
        for end in 0..=data.len() {
            holds(&data[..end]);
        }
    }
}

// Shown only when the test fails: the last one is the input at fault.
#[allow(clippy::print_stdout)]
fn println_name(input: &Path) {
    println!("{}", input.display());
}

#[test]
fn what_is_known_of_envelopes_holds() {
    replay("envelope", envelope::holds);
}

#[test]
fn what_is_known_of_event_streams_holds() {
    replay("event_stream", event_stream::holds);
}

#[test]
fn what_is_known_of_requests_holds() {
    replay("request", request::holds);
}

#[test]
fn what_is_known_of_responses_holds() {
    replay("response", response::holds);
}

#[test]
fn what_is_known_of_configurations_holds() {
    replay("configuration", configuration::holds);
}
