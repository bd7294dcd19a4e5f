//! FUSE requests over volumes: fuse-backend-rs' `FileSystem`.
//!
//! Read-only: everything that would change something is answered with EROFS. OPEN and FLUSH are answered with
//! ENOSYS, at which Linux stops to send them (and RELEASE), so READ is served by node id alone.

mod listing;
mod volumes;

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, IoctlData, OpenOptions, SetattrValid, ZeroCopyReader,
    ZeroCopyWriter,
};
use parking_lot::Mutex;

use crate::error::Error;
use crate::generation::{Content, Node};
use crate::statistics::Statistics;
use crate::volume::{Volume, errno, held};

use volumes::Volumes;
pub use volumes::check_volume_name;

/// Volumes as a read-only file system for one virtio-fs device.
///
/// All requests may come from any thread; one lock orders them, and a request that finds a volume changed
/// loads it under that lock before it is answered.
pub struct ProjectedFs {
    volumes: Mutex<Volumes>,
}

impl fmt::Debug for ProjectedFs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ProjectedFs").finish_non_exhaustive()
    }
}

impl ProjectedFs {
    /// A file system whose root is the volume: for a device with a tag of its own.
    pub fn of_volume(volume: Volume) -> Self {
        Self { volumes: Mutex::new(Volumes::of_volume(volume)) }
    }

    /// A file system with a synthetic read-only root (owned by 0:0, mode 0555) and one child per volume, none
    /// at first: for the shared device.
    pub fn of_volumes() -> Self {
        Self { volumes: Mutex::new(Volumes::of_volumes()) }
    }

    /// Adds a volume under the synthetic root; a running guest sees it at its next LOOKUP.
    ///
    /// # Errors
    /// The name cannot be one or is taken, or this file system is a single volume.
    pub fn add_volume(&self, name: &str, volume: Volume) -> Result<(), Error> {
        self.volumes.lock().add(name, volume)
    }

    /// Removes a volume. Whatever the guest holds of it answers ESTALE from now on, and its bytes are wiped.
    ///
    /// # Errors
    /// There is none by that name, or this file system is a single volume.
    pub fn remove_volume(&self, name: &str) -> Result<(), Error> {
        self.volumes.lock().remove(name)
    }

    /// What is held and what has been done.
    pub fn statistics(&self) -> Statistics {
        self.volumes.lock().statistics()
    }

    /// A node that the guest holds and that is no directory. The lock is free again when this returns.
    fn leaf(&self, id: u64) -> io::Result<Arc<Node>> {
        let volumes = self.volumes.lock();
        if volumes.is_root(id) {
            return Err(errno(libc::EISDIR));
        }
        Ok(held(&volumes.nodes, id)?.0)
    }
}

/// A name as LOOKUP may have it: a single component, `.` and `..` being the kernel's own business.
fn checked_name(name: &CStr) -> io::Result<&[u8]> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(errno(libc::EINVAL)),
        name if name.contains(&b'/') => Err(errno(libc::EINVAL)),
        name if name.len() > 255 => Err(errno(libc::ENAMETOOLONG)),
        name => Ok(name),
    }
}

/// Only its default answers are used: `statvfs64` cannot be made without unsafe code outside of it.
struct Defaults;

impl FileSystem for Defaults {
    type Inode = u64;
    type Handle = u64;
}

fn read_only<T>() -> io::Result<T> {
    Err(errno(libc::EROFS))
}

impl FileSystem for ProjectedFs {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.volumes.lock().reset();
        let wanted = FsOptions::ASYNC_READ
            | FsOptions::PARALLEL_DIROPS
            | FsOptions::BIG_WRITES
            | FsOptions::MAX_PAGES
            | FsOptions::CACHE_SYMLINKS
            | FsOptions::ZERO_MESSAGE_OPEN;
        Ok(capable & wanted)
    }

    fn destroy(&self) {
        self.volumes.lock().reset();
    }

    fn lookup(&self, _ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.volumes.lock().look_up(parent, checked_name(name)?)
    }

    fn forget(&self, _ctx: &Context, inode: u64, count: u64) {
        self.volumes.lock().forget(inode, count);
    }

    fn getattr(&self, _ctx: &Context, inode: u64, _handle: Option<u64>) -> io::Result<(stat64, Duration)> {
        let (attr, timeout) = self.volumes.lock().attributes(inode)?;
        Ok((attr.into(), timeout))
    }

    fn readlink(&self, _ctx: &Context, inode: u64) -> io::Result<Vec<u8>> {
        match &self.leaf(inode)?.content {
            Content::Symlink(target) => Ok(target.clone()),
            Content::Directory(_) | Content::File(_) => Err(errno(libc::EINVAL)),
        }
    }

    fn open(
        &self,
        _ctx: &Context,
        _inode: u64,
        _flags: u32,
        _fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        Err(errno(libc::ENOSYS))
    }

    fn read(
        &self,
        _ctx: &Context,
        inode: u64,
        _handle: u64,
        writer: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        _flags: u32,
    ) -> io::Result<usize> {
        let node = self.leaf(inode)?;
        let bytes = match &node.content {
            Content::File(bytes) => bytes.as_slice(),
            Content::Directory(_) => return Err(errno(libc::EISDIR)),
            Content::Symlink(_) => return Err(errno(libc::EINVAL)),
        };
        let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
        let wanted = usize::try_from(size).unwrap_or(usize::MAX).min(writer.available_bytes());
        let part = rest.get(..wanted).unwrap_or(rest);
        writer.write_all(part)?;
        Ok(part.len())
    }

    fn release(
        &self,
        _ctx: &Context,
        _inode: u64,
        _flags: u32,
        _handle: u64,
        _flush: bool,
        _flock_release: bool,
        _lock_owner: Option<u64>,
    ) -> io::Result<()> {
        Ok(())
    }

    fn statfs(&self, ctx: &Context, inode: u64) -> io::Result<statvfs64> {
        let (len_bytes, entry_count) = self.volumes.lock().size(inode)?;
        let mut numbers = Defaults.statfs(ctx, inode)?;
        numbers.f_bsize = 4096;
        numbers.f_frsize = 4096;
        numbers.f_blocks = len_bytes.div_ceil(4096);
        numbers.f_files = entry_count as u64;
        Ok(numbers)
    }

    fn opendir(&self, _ctx: &Context, inode: u64, _flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        match self.volumes.lock().open_directory(inode)? {
            Some(handle) => Ok((Some(handle), OpenOptions::empty())),
            None => Ok((None, OpenOptions::CACHE_DIR | OpenOptions::KEEP_CACHE)),
        }
    }

    fn readdir(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        _size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let directory = self.volumes.lock().listed_directory(inode, handle)?;
        listing::list(&directory, offset, add_entry)
    }

    fn releasedir(&self, _ctx: &Context, _inode: u64, _flags: u32, handle: u64) -> io::Result<()> {
        self.volumes.lock().handles.close(handle);
        Ok(())
    }

    fn setattr(
        &self,
        _ctx: &Context,
        _inode: u64,
        _attr: stat64,
        _handle: Option<u64>,
        _valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        read_only()
    }

    fn symlink(&self, _ctx: &Context, _target: &CStr, _parent: u64, _name: &CStr) -> io::Result<Entry> {
        read_only()
    }

    fn mknod(&self, _: &Context, _: u64, _: &CStr, _mode: u32, _rdev: u32, _umask: u32) -> io::Result<Entry> {
        read_only()
    }

    fn mkdir(&self, _: &Context, _: u64, _: &CStr, _mode: u32, _umask: u32) -> io::Result<Entry> {
        read_only()
    }

    fn unlink(&self, _ctx: &Context, _parent: u64, _name: &CStr) -> io::Result<()> {
        read_only()
    }

    fn rmdir(&self, _ctx: &Context, _parent: u64, _name: &CStr) -> io::Result<()> {
        read_only()
    }

    fn rename(&self, _: &Context, _: u64, _: &CStr, _: u64, _: &CStr, _flags: u32) -> io::Result<()> {
        read_only()
    }

    fn link(&self, _ctx: &Context, _inode: u64, _parent: u64, _name: &CStr) -> io::Result<Entry> {
        read_only()
    }

    fn create(
        &self,
        _ctx: &Context,
        _parent: u64,
        _name: &CStr,
        _args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        read_only()
    }

    fn write(
        &self,
        _ctx: &Context,
        _inode: u64,
        _handle: u64,
        _reader: &mut dyn ZeroCopyReader,
        _size: u32,
        _offset: u64,
        _lock_owner: Option<u64>,
        _delayed_write: bool,
        _flags: u32,
        _fuse_flags: u32,
    ) -> io::Result<usize> {
        read_only()
    }

    fn fallocate(
        &self,
        _: &Context,
        _: u64,
        _: u64,
        _mode: u32,
        _offset: u64,
        _length: u64,
    ) -> io::Result<()> {
        read_only()
    }

    fn setxattr(&self, _: &Context, _: u64, _: &CStr, _value: &[u8], _flags: u32) -> io::Result<()> {
        read_only()
    }

    fn removexattr(&self, _ctx: &Context, _inode: u64, _name: &CStr) -> io::Result<()> {
        read_only()
    }

    fn ioctl(
        &self,
        _ctx: &Context,
        _inode: u64,
        _handle: u64,
        _flags: u32,
        _cmd: u32,
        _data: IoctlData<'_>,
        _out_size: u32,
    ) -> io::Result<IoctlData<'_>> {
        read_only()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Weak;

    use super::*;
    use crate::VolumeSpec;
    use crate::secret_memory::SecretBytes;

    /// A volume with one file, looked up by the guest: a watch on its bytes, and the file's id.
    fn held_file(fs: &ProjectedFs, root: u64) -> (Weak<SecretBytes>, u64) {
        let id = fs.lookup(&Context::new(), root, c"token").unwrap().inode;
        match &fs.leaf(id).unwrap().content {
            Content::File(bytes) => (Arc::downgrade(bytes), id),
            Content::Directory(_) | Content::Symlink(_) => panic!("token is a file"),
        }
    }

    fn volume(directory: &tempfile::TempDir) -> Volume {
        fs::write(directory.path().join("token"), "secret").unwrap();
        Volume::open(VolumeSpec::new(directory.path())).unwrap()
    }

    #[test]
    fn bytes_go_with_the_last_who_needs_them() {
        let directory = tempfile::tempdir().unwrap();
        let fs = ProjectedFs::of_volume(volume(&directory));
        let (bytes, id) = held_file(&fs, 1);
        fs::write(directory.path().join("token"), "a longer secret").unwrap();
        let (new_bytes, _) = held_file(&fs, 1);
        assert!(bytes.upgrade().is_some(), "the guest holds them");
        fs.forget(&Context::new(), id, 1);
        assert!(bytes.upgrade().is_none(), "nobody holds them");
        assert!(new_bytes.upgrade().is_some());
    }

    #[test]
    fn bytes_of_older_generations_go_with_a_reset() {
        let directory = tempfile::tempdir().unwrap();
        let fs = ProjectedFs::of_volume(volume(&directory));
        let (bytes, _) = held_file(&fs, 1);
        fs::write(directory.path().join("token"), "a longer secret").unwrap();
        let (new_bytes, _) = held_file(&fs, 1);
        fs.destroy();
        assert!(bytes.upgrade().is_none());
        assert!(new_bytes.upgrade().is_some(), "the current content stays for the next INIT");
    }

    #[test]
    fn bytes_go_with_their_volume() {
        let directory = tempfile::tempdir().unwrap();
        let fs = ProjectedFs::of_volumes();
        fs.add_volume("v", volume(&directory)).unwrap();
        let root = fs.lookup(&Context::new(), 1, c"v").unwrap().inode;
        let (bytes, _) = held_file(&fs, root);
        fs.remove_volume("v").unwrap();
        assert!(bytes.upgrade().is_none());
    }
}
