//! Weirkeeper.

// In dependency order: a module may name only modules above it (tests/tidy.rs holds it).
pub mod protocol;
pub mod failure;
pub mod config;
pub mod shim;
pub mod package;
pub mod guard;
pub mod observe;
pub mod call;
pub mod catalog;
pub mod upstream;
