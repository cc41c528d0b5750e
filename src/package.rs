//! Stub.
use std::{ffi::OsString, path::{Path, PathBuf}};
use crate::config::PackageSpec;
pub struct Installed { pub program: PathBuf, pub args: Vec<OsString> }
pub async fn ensure(_: &PackageSpec, _: &Path) -> Result<Installed, std::io::Error> { unimplemented!() }
