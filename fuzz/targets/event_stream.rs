//! Any bytes as an event stream, cut anywhere.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weirkeeper_fuzz::event_stream::holds(data));
