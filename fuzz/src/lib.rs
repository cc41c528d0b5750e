//! What holds for every input, as functions that panic where it does not.
//!
//! The targets under `targets/` hand them what the fuzzer makes up; `tests/corpus.rs` of the
//! gateway hands them the kept inputs in `corpus/`, with any toolchain and no fuzzer.

pub mod configuration;
pub mod envelope;
pub mod event_stream;
pub mod framing;
pub mod request;
pub mod response;

// The gateway's own sources, without the gateway: nothing here needs a runtime or a socket.
#[path = "../../src/protocol"]
pub mod protocol {
    pub mod address;
    pub mod capability;
    pub mod error;
    pub mod exchange;
    pub mod form;
    pub mod header;
    pub mod json;
    pub mod message;
    pub mod meta;
    pub mod method;
    pub mod param;
    pub mod revision;
    pub mod splice;
    pub mod sse;
    pub mod walk;
}

// Files that stand beside their folder.
#[path = "../../src"]
mod beside {
    pub mod config;
    pub mod failure;
    pub mod wire;
}
pub use beside::{config, failure, wire};

#[path = "../../src/downstream"]
pub mod downstream {
    pub mod http {
        /// Where the gateway serves.
        pub const PATH: &str = "/mcp";
    }

    pub mod headers;

    pub mod h1 {
        pub mod again;
        pub mod head;
    }
}

#[path = "../../src/upstream"]
pub mod upstream {
    pub mod transport {
        pub mod http {
            pub mod h1 {
                pub mod again;
                pub mod head;
            }
        }
    }
}
