//! Writes a directory the way the kubelet's AtomicWriter does, in the same order of system calls.
//!
//! Source: Kubernetes `pkg/volume/util/atomic_writer.go`. Owners are not set. The writer has no lock: one writer
//! per directory at a time, as in the kubelet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A projected file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectedFile {
    /// Its bytes.
    pub data: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

/// Files by path relative to the volume.
pub type Payload = BTreeMap<String, ProjectedFile>;

/// One payload entry with mode 0644.
pub fn file(path: &str, data: impl Into<Vec<u8>>) -> (String, ProjectedFile) {
    (path.to_owned(), ProjectedFile { data: data.into(), mode: 0o644 })
}

/// The writer of one volume.
#[derive(Debug)]
pub struct AtomicWriter {
    directory: PathBuf,
}

impl AtomicWriter {
    /// A writer for `directory`, which must exist.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Makes the volume hold exactly `payload`.
    pub fn write(&self, payload: &Payload) -> io::Result<()> {
        self.write_and(payload, || {})
    }

    /// Like [`Self::write`]; calls `renamed` as soon as the rename that publishes the payload has returned, with
    /// the links not yet mended and the old files still there. A payload already published is not published again.
    pub fn write_and(&self, payload: &Payload, renamed: impl FnOnce()) -> io::Result<()> {
        let old = match fs::read_link(self.directory.join("..data")) {
            Ok(target) => Some(self.directory.join(target)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let is_current = match &old {
            Some(old) => holds_exactly(old, payload)?,
            None => false,
        };
        if !is_current {
            self.publish(payload)?;
            renamed();
        }
        self.mend_links(payload)?;
        if let Some(old) = old.filter(|_| !is_current) {
            fs::remove_dir_all(old)?;
        }
        Ok(())
    }

    /// Steps 6 to 10: new directory, files, `..data_tmp`, rename.
    fn publish(&self, payload: &Payload) -> io::Result<()> {
        let name = timestamped_name();
        let new = self.directory.join(&name);
        fs::create_dir(&new)?;
        fs::set_permissions(&new, Permissions::from_mode(0o755))?;
        for (path, file) in payload {
            let path = new.join(path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&path, &file.data)?;
            fs::set_permissions(&path, Permissions::from_mode(file.mode))?;
        }
        let link = self.directory.join("..data_tmp");
        symlink(&name, &link)?;
        fs::rename(&link, self.directory.join("..data"))
    }

    /// Steps 11 and 12: the links that users see.
    fn mend_links(&self, payload: &Payload) -> io::Result<()> {
        let wanted =
            payload.keys().map(|path| path.split('/').next().unwrap_or(path)).collect::<BTreeSet<_>>();
        for name in &wanted {
            let link = self.directory.join(name);
            if link.symlink_metadata().is_err() {
                symlink(format!("..data/{name}"), link)?;
            }
        }
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !name.starts_with("..") && !wanted.contains(name.as_str()) {
                fs::remove_file(self.directory.join(name))?;
            }
        }
        Ok(())
    }
}

/// Whether `directory` has these files with these bytes and no others. Modes do not count, as in the kubelet.
fn holds_exactly(directory: &Path, payload: &Payload) -> io::Result<bool> {
    let mut present = BTreeSet::new();
    collect_files(directory, "", &mut present)?;
    if !present.iter().eq(payload.keys()) {
        return Ok(false);
    }
    for (path, file) in payload {
        if fs::read(directory.join(path))? != file.data {
            return Ok(false);
        }
    }
    Ok(true)
}

fn collect_files(directory: &Path, prefix: &str, files: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect_files(&entry.path(), &format!("{path}/"), files)?;
        } else {
            files.insert(path);
        }
    }
    Ok(())
}

/// `..YYYY_MM_DD_HH_MM_SS.NUMBER`, UTC.
fn timestamped_name() -> String {
    // The kubelet's tail is random; a number of this process's own cannot collide either.
    static TAIL: AtomicU64 = AtomicU64::new(0);
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let (year, month, day) = civil_date(seconds / 86400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let tail = u64::from(std::process::id()) << 32 | TAIL.fetch_add(1, Ordering::Relaxed);
    format!("..{year}_{month:02}_{day:02}_{hour:02}_{minute:02}_{second:02}.{tail}")
}

/// Year, month and day of a day counted from 1970-01-01.
fn civil_date(mut day: u64) -> (u64, u64, u64) {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    (year, month, day + 1)
}

#[cfg(test)]
mod tests {
    use super::{AtomicWriter, Payload, civil_date, file};
    use std::fs;

    #[test]
    fn a_payload_replaces_the_one_before() {
        let volume = tempfile::tempdir().unwrap();
        let writer = AtomicWriter::new(volume.path());
        writer.write(&Payload::from([file("token", "1"), file("sub/deep/file", "x")])).unwrap();
        let first = fs::read_link(volume.path().join("..data")).unwrap();
        assert_eq!(fs::read(volume.path().join("token")).unwrap(), b"1");
        assert_eq!(fs::read(volume.path().join("sub/deep/file")).unwrap(), b"x");

        let mut seen = Vec::new();
        let payload = Payload::from([file("token", "2")]);
        writer
            .write_and(&payload, || {
                seen = fs::read(volume.path().join("token")).unwrap();
                assert!(volume.path().join(&first).exists(), "the old files outlive the rename");
            })
            .unwrap();
        assert_eq!(seen, b"2");
        assert!(!volume.path().join(&first).exists());
        assert!(volume.path().join("sub").symlink_metadata().is_err());
    }

    #[test]
    fn an_unchanged_payload_is_not_published_again() {
        let volume = tempfile::tempdir().unwrap();
        let writer = AtomicWriter::new(volume.path());
        let payload = Payload::from([file("token", "1")]);
        writer.write(&payload).unwrap();
        let before = fs::read_link(volume.path().join("..data")).unwrap();
        writer.write_and(&payload, || panic!("published again")).unwrap();
        assert_eq!(fs::read_link(volume.path().join("..data")).unwrap(), before);
    }

    #[test]
    fn days_have_their_dates() {
        assert_eq!(civil_date(0), (1970, 1, 1));
        assert_eq!(civil_date(19_782), (2024, 2, 29));
        assert_eq!(civil_date(20_820), (2027, 1, 2));
    }
}
