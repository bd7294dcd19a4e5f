//! System calls on the host directory, and nothing else that touches it.
//!
//! The volume's own path is resolved as the host gives it, anew for every probe, so that over-mounting and
//! re-mounting are noticed. From there on every entry is opened beneath a directory that is already open, by
//! openat2(2) with RESOLVE_BENEATH, without magic links and without following symbolic links: each name used
//! here is a single path component read from that directory.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat2, readlinkat, statat,
};
use rustix::io::Errno;

/// A point in time as the host's file system gives it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct HostTime {
    /// Seconds since the epoch.
    pub(crate) seconds: i64,
    /// And nanoseconds.
    pub(crate) nanoseconds: u32,
}

/// What stat(2) says about an entry, without what reading changes (atime) and what says nothing (nlink).
///
/// Equality is the crate's definition of "unchanged".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct HostAttr {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    /// Type and permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size_bytes: u64,
    pub(crate) mtime: HostTime,
    pub(crate) ctime: HostTime,
}

impl HostAttr {
    /// Of an open file or directory.
    pub(crate) fn of(file: impl AsFd) -> Result<Self, Errno> {
        Ok(Self::from_stat(&fstat(file)?))
    }

    /// Of an entry itself (a symbolic link is not followed).
    pub(crate) fn at(directory: impl AsFd, name: &[u8]) -> Result<Self, Errno> {
        Ok(Self::from_stat(&statat(directory, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)?))
    }

    fn from_stat(stat: &Stat) -> Self {
        let time = |seconds: i64, nanoseconds: u64| HostTime {
            seconds,
            nanoseconds: u32::try_from(nanoseconds).unwrap_or_default(),
        };
        Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size_bytes: u64::try_from(stat.st_size).unwrap_or_default(),
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// What kind of entry it is.
    pub(crate) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// Whether both are the same file, whatever happened to it in between.
    pub(crate) fn is_same_file(&self, other: &Self) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }
}

const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_SYMLINKS);

/// Opens the volume by its path, as a point to start from and not to list.
pub(crate) fn open_volume(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a directory beneath another one, as a point to start from and not to list.
pub(crate) fn open_directory(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(parent, OsStr::from_bytes(name), flags, Mode::empty(), BENEATH)
}

/// Opens a file beneath a directory for reading.
///
/// The caller has seen that it is a regular file and must look again afterwards; O_NONBLOCK keeps a FIFO that
/// took its place in between from blocking.
pub(crate) fn open_file(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let name = OsStr::from_bytes(name);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    match openat2(&parent, name, flags | OFlags::NOATIME, Mode::empty(), BENEATH) {
        // O_NOATIME is for the file's owner only.
        Err(Errno::PERM) => openat2(&parent, name, flags, Mode::empty(), BENEATH),
        result => result,
    }
}

/// Reads a symbolic link.
///
/// # Errors
/// EINVAL when the entry is not a symbolic link.
pub(crate) fn read_link(parent: impl AsFd, name: &[u8]) -> Result<Vec<u8>, Errno> {
    Ok(readlinkat(parent, OsStr::from_bytes(name), Vec::new())?.into_bytes())
}

/// The names in a directory, without `.` and `..`; `Ok(None)` when there are more than `limit`.
pub(crate) fn names(directory: impl AsFd, limit: usize) -> Result<Option<Vec<Vec<u8>>>, Errno> {
    let mut names = Vec::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // The handles passed around are O_PATH, which cannot be listed.
    let listable = openat2(directory, c".", flags, Mode::empty(), BENEATH)?;
    for entry in Dir::new(listable)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name == b"." || name == b".." {
            continue;
        }
        if names.len() == limit {
            return Ok(None);
        }
        names.push(name);
    }
    Ok(Some(names))
}

/// Words for a file type that a volume may not hold.
pub(crate) fn special_file_kind(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        _ => "special file",
    }
}
