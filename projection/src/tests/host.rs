//! The host's side: a directory, and a writer that does what kubelet's AtomicWriter does.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;

use crate::{ProjectedFs, Volume, VolumeSpec};

/// Files by path.
pub(super) type Payload<'a> = [(&'a str, &'a [u8])];

/// A directory in memory where there is one, as kubelet's are: the tests write thousands of files.
pub(crate) fn temporary_directory() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

/// An AtomicWriter volume.
pub(super) struct Writer {
    directory: TempDir,
    serial: AtomicU64,
}

impl Writer {
    /// A volume whose first payload is published.
    pub(super) fn with(payload: &Payload) -> Self {
        let writer = Self { directory: temporary_directory(), serial: AtomicU64::new(0) };
        writer.publish(payload);
        writer
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Path of the published directory.
    pub(super) fn published(&self) -> PathBuf {
        self.path().join(fs::read_link(self.path().join("..data")).unwrap())
    }

    /// A whole update, in kubelet's order (pkg/volume/util/atomic_writer.go): directory, files, rename, links,
    /// stale links, old directory.
    pub(super) fn publish(&self, payload: &Payload) {
        self.publish_and(payload, || {});
    }

    /// As [`Self::publish`]; calls `committed` right after the rename.
    pub(super) fn publish_and(&self, payload: &Payload, committed: impl FnOnce()) {
        let old = fs::read_link(self.path().join("..data")).ok();
        let new = self.prepare(payload);
        self.swap(&new);
        committed();
        self.fix_links(payload);
        if let Some(old) = old {
            let removed = fs::remove_dir_all(self.path().join(old));
            // A test may have removed it, as a broken writer would.
            assert!(removed.is_ok() || removed.is_err_and(|error| error.kind() == ErrorKind::NotFound));
        }
    }

    /// Writes a payload without publishing it; returns the directory's name.
    pub(super) fn prepare(&self, payload: &Payload) -> String {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        let name = format!("..2024_01_02_03_04_05.{serial}");
        let directory = self.path().join(&name);
        fs::create_dir(&directory).unwrap();
        write_files(&directory, payload);
        name
    }

    /// The commit point: lets `..data` name another directory.
    pub(super) fn swap(&self, name: &str) {
        let temporary = self.path().join("..data_tmp");
        symlink(name, &temporary).unwrap();
        fs::rename(temporary, self.path().join("..data")).unwrap();
    }

    fn fix_links(&self, payload: &Payload) {
        let first = |path: &str| path.split('/').next().unwrap().to_owned();
        let wanted: HashSet<String> = payload.iter().map(|(path, _)| first(path)).collect();
        for name in &wanted {
            let _ = symlink(format!("..data/{name}"), self.path().join(name));
        }
        for entry in fs::read_dir(self.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.starts_with("..") && !wanted.contains(&name) {
                fs::remove_file(self.path().join(name)).unwrap();
            }
        }
    }
}

/// Writes files below a directory.
pub(super) fn write_files(directory: &Path, payload: &Payload) {
    for (path, content) in payload {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// A directory without `..data`.
pub(super) fn plain_directory(payload: &Payload) -> TempDir {
    let directory = temporary_directory();
    write_files(directory.path(), payload);
    directory
}

/// A device of its own for a directory, with defaults.
pub(super) fn serve(path: &Path) -> ProjectedFs {
    ProjectedFs::of_volume(Volume::open(VolumeSpec::new(path)).unwrap())
}
