//! Any bytes as a response over HTTP/1.1, and what follows it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weirkeeper_fuzz::response::holds(data));
