//! Where things are in the repository.

use std::env;
use std::path::{Path, PathBuf};

/// The root of the repository.
pub(crate) fn repository() -> &'static Path {
    // This crate is a folder at the root.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Everything that xtask keeps: packages, assets, logs. Gone after `cargo clean`.
pub(crate) fn cache() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    target.join("laterna")
}

/// The console of the emulated host.
pub(crate) fn host_console() -> PathBuf {
    cache().join("host-console.log")
}
