//! Any bytes as a configuration.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weirkeeper_fuzz::configuration::holds(data));
