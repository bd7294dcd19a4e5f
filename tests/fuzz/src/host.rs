//! The host's side of a volume: a directory that is published, broken and mended as an input says.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use arbitrary::Arbitrary;
use projection::{Volume, VolumeSpec};
use tempfile::TempDir;

/// The cap of the volumes here.
const MAX_SIZE_BYTES: u64 = 4096;

/// Files that a payload may have besides `token`.
const FILES: [&str; 4] = ["ca.crt", "sub/key", "sub/deep/key", "namespace"];

/// What happens to the directory.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub(crate) enum Change {
    /// A new payload is published as the kubelet does it: `token` and some of the other files.
    Publish {
        /// Which.
        files: u8,
    },
    /// One that is over the volume's cap.
    PublishTooMuch,
    /// The published directory goes, as when the pod ends.
    Empty,
    /// The mode of the published `token` changes, its content does not.
    Chmod {
        /// Whether others may read it.
        is_public: bool,
    },
    /// Files without `..data`.
    Plain {
        /// Length of `token`.
        len: u8,
    },
}

/// The directory.
#[derive(Debug)]
pub(crate) struct HostDirectory {
    directory: TempDir,
    serial: u64,
    /// What `token` holds, where a guest must be able to read it.
    token: Option<Vec<u8>>,
}

impl HostDirectory {
    /// A directory with a payload.
    pub(crate) fn new() -> Self {
        let directory = match tempfile::tempdir_in("/dev/shm") {
            Ok(directory) => directory,
            Err(_) => TempDir::new().expect("a directory"),
        };
        let mut host = Self { directory, serial: 0, token: None };
        host.change(Change::Publish { files: 0xff });
        host
    }

    pub(crate) fn open_volume(&self) -> Volume {
        let spec = VolumeSpec { max_size_bytes: MAX_SIZE_BYTES, ..VolumeSpec::new(self.path()) };
        Volume::open(spec).expect("a volume")
    }

    /// What an open of `token` that starts now must read; `None` when the volume cannot be loaded or is gone.
    pub(crate) fn token(&self) -> Option<&[u8]> {
        self.token.as_deref()
    }

    pub(crate) fn change(&mut self, change: Change) {
        self.serial += 1;
        let token = format!("token {}", self.serial).into_bytes();
        let (published, token) = match change {
            Change::Publish { files } => (self.publish(&token, files), Some(token)),
            Change::PublishTooMuch => (self.publish(&[b'x'; 5000], 0), None),
            Change::Empty => (self.clear(), None),
            Change::Chmod { is_public } => {
                let mode = if is_public { 0o644 } else { 0o600 };
                let changed =
                    fs::set_permissions(self.path().join("token"), fs::Permissions::from_mode(mode));
                (if self.token.is_some() { changed } else { Ok(()) }, self.token.take())
            }
            Change::Plain { len } => {
                let content = vec![b'p'; len.into()];
                (self.write_plainly(&content), Some(content))
            }
        };
        published.expect("the host's directory can be written");
        self.token = token;
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.path())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn write_plainly(&self, token: &[u8]) -> io::Result<()> {
        self.clear()?;
        fs::write(self.path().join("token"), token)?;
        fs::create_dir(self.path().join("sub"))?;
        fs::write(self.path().join("sub/key"), token)
    }

    /// The kubelet's order: directory, files, rename, links, old directory.
    fn publish(&self, token: &[u8], files: u8) -> io::Result<()> {
        let old = fs::read_link(self.path().join("..data")).ok();
        if old.is_none() {
            self.clear()?;
        }
        let name = PathBuf::from(format!("..2026_01_02_03_04_05.{}", self.serial));
        let new = self.path().join(&name);
        fs::create_dir(&new)?;
        fs::write(new.join("token"), token)?;
        for (_, file) in FILES.iter().enumerate().filter(|(bit, _)| files & 1 << bit != 0) {
            let path = new.join(file);
            fs::create_dir_all(path.parent().unwrap_or(&new))?;
            fs::write(path, file)?;
        }
        let temporary = self.path().join("..data_tmp");
        symlink(&name, &temporary)?;
        fs::rename(&temporary, self.path().join("..data"))?;
        for name in ["token", "ca.crt", "sub", "namespace"] {
            let link = self.path().join(name);
            match (new.join(name).exists(), link.symlink_metadata().is_ok()) {
                (true, false) => symlink(Path::new("..data").join(name), link)?,
                (false, true) => fs::remove_file(link)?,
                (true, true) | (false, false) => {}
            }
        }
        old.map_or(Ok(()), |old| fs::remove_dir_all(self.path().join(old)))
    }
}
