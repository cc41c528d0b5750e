//! One configured MCP server that we call.

pub mod transport;
