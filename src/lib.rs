//! Weirkeeper.
