//! Reading a directory into a snapshot, within caps on bytes, entries and depth.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::{
    DATA_LINK, DATA_LINK_TEMPORARY, HostContent, HostNode, Layout, Snapshot, Source, WRITER_LINK_PREFIX,
    WriterLinks, is_timestamped_name, join,
};
use crate::directory::{HostAttr, HostTime, names, open_directory, open_file, read_link, special_file_kind};
use crate::error::Error;
use crate::secret_memory::SecretBytes;

/// Cap on the entries of one volume. Each loaded file costs at least one page.
pub(crate) const MAX_ENTRIES: usize = 4096;
/// Cap on nested directories, the volume's own not counted.
const MAX_DEPTH: usize = 16;
/// A plain entry changed more recently than this could change again without a new timestamp: more than two
/// ticks of the slowest kernel (HZ=100).
const SETTLING_NANOSECONDS: i128 = 50_000_000;

/// Why an attempt to load came to nothing.
pub(super) enum LoadError {
    /// The published directory does not exist.
    Missing,
    /// Something changed while it was read; another attempt may succeed.
    Changed,
    /// The content cannot be served.
    Refused(Error),
}

/// One attempt to read a volume.
pub(super) struct Loader<'a> {
    source: &'a Source,
    /// A snapshot whose unchanged files need not be read again.
    last: Option<&'a Snapshot>,
    len_bytes: u64,
    entry_count: usize,
    /// When the attempt began, in nanoseconds since the epoch.
    started: i128,
    is_settled: bool,
}

/// A directory being read: where it is and what the last snapshot has for it.
struct Place<'a> {
    fd: OwnedFd,
    path: &'a Path,
    /// Directories between it and the volume's own.
    depth: usize,
    last: Option<&'a HostNode>,
}

impl<'a> Loader<'a> {
    pub(super) fn new(source: &'a Source, last: Option<&'a Snapshot>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started = i128::try_from(now.as_nanos()).unwrap_or_default();
        Self { source, last, len_bytes: 0, entry_count: 0, started, is_settled: true }
    }

    /// Reads the directory that `..data` names. The caller finds out whether it was whole all the time.
    pub(super) fn published_directory(&mut self, root: &OwnedFd, name: &[u8]) -> Result<HostNode, LoadError> {
        let path = join(&self.source.path, name);
        let fd = match open_directory(root, name) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Err(LoadError::Missing),
            Err(cause) => return Err(refused_read(&path, cause)),
        };
        self.directory(Place { fd, path: &path, depth: 1, last: None })
    }

    /// Adds the links beside a published directory that has been read.
    pub(super) fn with_links(
        self,
        root: &OwnedFd,
        name: &[u8],
        tree: HostNode,
    ) -> Result<Snapshot, LoadError> {
        let (links, ignored) = self.writer_links(root)?;
        let layout = Layout::AtomicWriter { directory_name: name.to_vec(), links, ignored };
        self.snapshot(root, layout, tree)
    }

    /// Reads a directory without `..data`.
    pub(super) fn plain(mut self, root: &OwnedFd) -> Result<Snapshot, LoadError> {
        let path = &self.source.path;
        let fd = root
            .try_clone()
            .map_err(|error| refused_read(path, Errno::from_io_error(&error).unwrap_or(Errno::MFILE)))?;
        let last = self.last.map(|last| &last.tree);
        let tree = self.directory(Place { fd, path, depth: 0, last })?;
        // What only an AtomicWriter makes: it is between two steps, or the volume is being taken down.
        let unpublished = tree.children().find(|(name, node)| match &node.content {
            HostContent::Directory(_) => is_timestamped_name(name),
            HostContent::Symlink(target) => {
                *name == DATA_LINK_TEMPORARY || target.starts_with(WRITER_LINK_PREFIX)
            }
            HostContent::File(_) => false,
        });
        if let Some((name, _)) = unpublished {
            let entry = as_path(name).to_owned();
            return Err(LoadError::Refused(Error::NotPublished { path: path.clone(), entry }));
        }
        let layout = Layout::Plain { is_settled: self.is_settled };
        self.snapshot(root, layout, tree)
    }

    fn snapshot(self, root: &OwnedFd, layout: Layout, tree: HostNode) -> Result<Snapshot, LoadError> {
        let root = HostAttr::of(root).map_err(|cause| refused_read(&self.source.path, cause))?;
        Ok(Snapshot { layout, root, tree, len_bytes: self.len_bytes, entry_count: self.entry_count })
    }

    /// Looks at what lies beside the published directory: the writer's links and what it did not make.
    fn writer_links(&self, root: &OwnedFd) -> Result<(WriterLinks, Vec<Vec<u8>>), LoadError> {
        let mut links = WriterLinks::new();
        let mut ignored = Vec::new();
        for name in self.names(root, &self.source.path)? {
            if name == DATA_LINK || name == DATA_LINK_TEMPORARY {
                continue;
            }
            let path = join(&self.source.path, &name);
            // The writer adds and removes links (and old directories) while this looks.
            let attr = match HostAttr::at(root, &name) {
                Err(Errno::NOENT) => continue,
                result => result.map_err(|cause| refused_read(&path, cause))?,
            };
            match attr.file_type() {
                FileType::Directory if is_timestamped_name(&name) => {}
                FileType::Directory | FileType::RegularFile => ignored.push(name),
                FileType::Symlink => match read_link(root, &name) {
                    Ok(target) if target.strip_prefix(WRITER_LINK_PREFIX) == Some(&name) => {
                        links.insert(name, attr);
                    }
                    Ok(target) => {
                        check_link(&path, &target, 0)?;
                        ignored.push(name);
                    }
                    Err(_) => {}
                },
                special => return Err(special_file(&path, special)),
            }
        }
        Ok((links, ignored))
    }

    /// Reads a directory and all below it. The recursion is as deep as [`MAX_DEPTH`] allows.
    fn directory(&mut self, place: Place<'_>) -> Result<HostNode, LoadError> {
        if place.depth > MAX_DEPTH {
            return Err(LoadError::Refused(Error::TooDeep { path: place.path.into(), limit: MAX_DEPTH }));
        }
        let attr = HostAttr::of(&place.fd).map_err(|cause| refused_read(place.path, cause))?;
        self.note_age(&attr);
        let mut children = BTreeMap::new();
        for name in self.names(&place.fd, place.path)? {
            self.entry_count += 1;
            if self.entry_count > MAX_ENTRIES {
                return Err(too_many_entries(place.path));
            }
            let node = self.entry(&place, &name)?;
            children.insert(name, node);
        }
        Ok(HostNode { attr, content: HostContent::Directory(children) })
    }

    fn entry(&mut self, place: &Place<'_>, name: &[u8]) -> Result<HostNode, LoadError> {
        let path = join(place.path, name);
        let attr = HostAttr::at(&place.fd, name).map_err(|cause| changed_or_refused(&path, cause))?;
        self.note_age(&attr);
        let last = place.last.and_then(|last| last.child(name));
        match attr.file_type() {
            FileType::RegularFile => {
                let content = HostContent::File(self.file(place, name, &path, &attr, last)?);
                Ok(HostNode { attr, content })
            }
            FileType::Directory => {
                let fd = open_directory(&place.fd, name).map_err(|cause| changed_or_refused(&path, cause))?;
                self.directory(Place { fd, path: &path, depth: place.depth + 1, last })
            }
            FileType::Symlink => {
                let target = read_link(&place.fd, name).map_err(|cause| changed_or_refused(&path, cause))?;
                check_link(&path, &target, place.depth)?;
                Ok(HostNode { attr, content: HostContent::Symlink(target) })
            }
            special => Err(special_file(&path, special)),
        }
    }

    fn file(
        &mut self,
        place: &Place<'_>,
        name: &[u8],
        path: &Path,
        attr: &HostAttr,
        last: Option<&HostNode>,
    ) -> Result<Arc<SecretBytes>, LoadError> {
        let limit_bytes = self.source.max_size_bytes;
        // Before anything is allocated: a sparse file may claim any size.
        self.len_bytes = self.len_bytes.saturating_add(attr.size_bytes);
        let len_bytes = usize::try_from(attr.size_bytes).unwrap_or(usize::MAX);
        if self.len_bytes > limit_bytes {
            return Err(LoadError::Refused(Error::TooLarge { path: path.into(), limit_bytes }));
        }
        let earlier = last.filter(|last| last.attr == *attr).and_then(|last| match &last.content {
            HostContent::File(bytes) => Some(bytes),
            HostContent::Directory(_) | HostContent::Symlink(_) => None,
        });
        if let Some(bytes) = earlier
            && self.last.is_some_and(Snapshot::is_settled)
        {
            return Ok(Arc::clone(bytes));
        }
        let fd = open_file(&place.fd, name).map_err(|cause| changed_or_refused(path, cause))?;
        self.check_opened(&fd, path, attr)?;
        let bytes = SecretBytes::read_from(&fd, len_bytes)
            .map_err(|cause| refused_read(path, cause))?
            .ok_or(LoadError::Changed)?;
        self.check_opened(&fd, path, attr)?;
        match earlier {
            Some(earlier) if earlier.as_slice() == bytes.as_slice() => Ok(Arc::clone(earlier)),
            _ => Ok(Arc::new(bytes)),
        }
    }

    /// The opened file must be the one looked at, as it was then.
    fn check_opened(&self, fd: &OwnedFd, path: &Path, attr: &HostAttr) -> Result<(), LoadError> {
        let now = HostAttr::of(fd).map_err(|cause| refused_read(path, cause))?;
        if now == *attr { Ok(()) } else { Err(LoadError::Changed) }
    }

    fn names(&self, directory: impl AsFd, path: &Path) -> Result<Vec<Vec<u8>>, LoadError> {
        names(directory, MAX_ENTRIES)
            .map_err(|cause| changed_or_refused(path, cause))?
            .ok_or_else(|| too_many_entries(path))
    }

    fn note_age(&mut self, attr: &HostAttr) {
        self.is_settled &= !self.is_recent(attr);
    }

    fn is_recent(&self, attr: &HostAttr) -> bool {
        [attr.mtime, attr.ctime]
            .into_iter()
            .any(|time| (self.started - nanoseconds(time)).abs() < SETTLING_NANOSECONDS)
    }
}

fn nanoseconds(time: HostTime) -> i128 {
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds)
}

/// A symbolic link may be shown when its target, taken word for word, stays in the volume. It is never
/// followed here; the guest does that in its own tree.
fn check_link(path: &Path, target: &[u8], depth: usize) -> Result<(), LoadError> {
    let mut level = Some(depth);
    for component in target.split(|byte| *byte == b'/') {
        level = match component {
            b"" | b"." => level,
            b".." => level.and_then(|level| level.checked_sub(1)),
            _ => level.map(|level| level + 1),
        };
    }
    if target.starts_with(b"/") || level.is_none() {
        let (link, target) = (path.to_owned(), as_path(target).to_owned());
        return Err(LoadError::Refused(Error::EscapingLink { link, target }));
    }
    Ok(())
}

/// Bytes of a name as a path, for joining and for messages.
pub(crate) fn as_path(name: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(name))
}

fn special_file(path: &Path, file_type: FileType) -> LoadError {
    LoadError::Refused(Error::SpecialFile { path: path.into(), kind: special_file_kind(file_type) })
}

fn too_many_entries(path: &Path) -> LoadError {
    LoadError::Refused(Error::TooManyEntries { path: path.into(), limit: MAX_ENTRIES })
}

fn refused_read(path: &Path, cause: Errno) -> LoadError {
    LoadError::Refused(Error::Read { path: path.into(), cause })
}

/// What a name gives when it was removed or replaced after the directory was listed, or refused otherwise.
fn changed_or_refused(path: &Path, cause: Errno) -> LoadError {
    match cause {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::INVAL | Errno::AGAIN | Errno::STALE => {
            LoadError::Changed
        }
        // A FIFO or socket that took the file's place.
        Errno::NXIO => LoadError::Changed,
        cause => refused_read(path, cause),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::directory::open_volume;

    #[test]
    fn file_that_was_replaced_after_it_was_looked_at_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, "1").unwrap();
        let source = Source { path: directory.path().into(), max_size_bytes: 100 };
        let fd = open_volume(directory.path()).unwrap();
        let attr = HostAttr::at(&fd, b"token").unwrap();
        let place = Place { fd, path: directory.path(), depth: 0, last: None };
        let read = |attr| Loader::new(&source, None).file(&place, b"token", &path, attr, None);
        assert!(read(&attr).is_ok());
        fs::write(directory.path().join("other"), "2").unwrap();
        fs::rename(directory.path().join("other"), &path).unwrap();
        assert!(matches!(read(&attr), Err(LoadError::Changed)), "another file");
        let attr = HostAttr::at(&place.fd, b"token").unwrap();
        fs::remove_file(&path).unwrap();
        assert!(matches!(read(&attr), Err(LoadError::Changed)), "no file");
        fs::create_dir(&path).unwrap();
        assert!(matches!(read(&attr), Err(LoadError::Changed)), "a directory");
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("other", &path).unwrap();
        assert!(matches!(read(&attr), Err(LoadError::Changed)), "a link");
    }
}
