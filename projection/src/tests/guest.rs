//! The guest's side: requests as a kernel sends them, and whole path walks.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io::{self, Write};

use fuse_backend_rs::api::filesystem::{Context, Entry, FileSystem, ZeroCopyWriter};
use fuse_backend_rs::file_traits::FileReadWriteVolatile;

use crate::{ProjectedFs, SourceState};

pub(super) const ROOT: u64 = 1;

/// Where READ puts its data: so much and no more.
pub(super) struct Buffer {
    pub(super) data: Vec<u8>,
    pub(super) capacity: usize,
}

impl Write for Buffer {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        // As fuse-backend-rs' writer for virtio-fs does.
        if data.len() > self.available_bytes() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.data.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ZeroCopyWriter for Buffer {
    fn write_from(&mut self, _: &mut dyn FileReadWriteVolatile, _: usize, _: u64) -> io::Result<usize> {
        unreachable!("content comes from memory, not from a file")
    }

    fn available_bytes(&self) -> usize {
        self.capacity - self.data.len()
    }
}

/// What a path walk came to.
pub(super) struct Walk {
    /// Last component.
    pub(super) id: u64,
    /// Every node that a LOOKUP replied with, to forget later.
    pub(super) looked_up: Vec<u64>,
}

/// Requests in short.
pub(super) trait Guest {
    fn look_up(&self, parent: u64, name: &str) -> io::Result<Entry>;
    fn link_target(&self, id: u64) -> io::Result<String>;
    fn read_at(&self, id: u64, offset: u64, size: u32, capacity: usize) -> io::Result<Vec<u8>>;
    fn content(&self, id: u64) -> io::Result<Vec<u8>>;
    fn forget_all(&self, ids: &[u64]);
    fn walk_from(&self, start: u64, path: &str) -> io::Result<Walk>;
    fn open_and_read(&self, path: &str) -> io::Result<Vec<u8>>;
    fn names(&self, id: u64) -> io::Result<Vec<String>>;
    fn source(&self) -> SourceState;
}

impl Guest for ProjectedFs {
    fn look_up(&self, parent: u64, name: &str) -> io::Result<Entry> {
        self.lookup(&Context::new(), parent, &CString::new(name).unwrap())
    }

    fn link_target(&self, id: u64) -> io::Result<String> {
        Ok(String::from_utf8(self.readlink(&Context::new(), id)?).unwrap())
    }

    fn read_at(&self, id: u64, offset: u64, size: u32, capacity: usize) -> io::Result<Vec<u8>> {
        let mut buffer = Buffer { data: Vec::new(), capacity };
        let count = self.read(&Context::new(), id, 0, &mut buffer, size, offset, None, 0)?;
        assert_eq!(count, buffer.data.len());
        Ok(buffer.data)
    }

    /// The whole file, read in parts.
    fn content(&self, id: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        loop {
            let part = self.read_at(id, content.len() as u64, 4096, 8192)?;
            if part.is_empty() {
                return Ok(content);
            }
            content.extend(part);
        }
    }

    fn forget_all(&self, ids: &[u64]) {
        for id in ids {
            self.forget(&Context::new(), *id, 1);
        }
    }

    /// As a kernel walks that has nothing cached. On an error everything is forgotten.
    fn walk_from(&self, start: u64, path: &str) -> io::Result<Walk> {
        let mut looked_up = Vec::new();
        let result = walk(self, start, path, &mut looked_up);
        match result {
            Ok(id) => Ok(Walk { id, looked_up }),
            Err(error) => {
                self.forget_all(&looked_up);
                Err(error)
            }
        }
    }

    fn open_and_read(&self, path: &str) -> io::Result<Vec<u8>> {
        let Walk { id, looked_up } = self.walk_from(ROOT, path)?;
        let content = self.content(id);
        self.forget_all(&looked_up);
        content
    }

    fn names(&self, id: u64) -> io::Result<Vec<String>> {
        let (handle, _) = self.opendir(&Context::new(), id, 0)?;
        let handle = handle.unwrap_or(0);
        let mut names = Vec::new();
        self.readdir(&Context::new(), id, handle, 4096, 0, &mut |entry| {
            names.push(String::from_utf8(entry.name.to_vec()).unwrap());
            Ok(1)
        })?;
        self.releasedir(&Context::new(), id, 0, handle)?;
        Ok(names)
    }

    fn source(&self) -> SourceState {
        self.statistics().volumes[0].source.clone()
    }
}

fn walk(fs: &ProjectedFs, start: u64, path: &str, looked_up: &mut Vec<u64>) -> io::Result<u64> {
    let split = |path: &str| path.split('/').map(str::to_owned).collect::<VecDeque<_>>();
    let mut rest = split(path);
    let mut at = start;
    let mut followed = 0;
    while let Some(name) = rest.pop_front() {
        let entry = fs.look_up(at, &name)?;
        looked_up.push(entry.inode);
        if entry.attr.st_mode & libc::S_IFMT != libc::S_IFLNK {
            at = entry.inode;
            continue;
        }
        followed += 1;
        assert!(followed <= 40, "too many links in {path}");
        let mut target = split(&fs.link_target(entry.inode)?);
        target.append(&mut rest);
        rest = target;
    }
    Ok(at)
}

/// The errno of a request that must fail.
pub(super) fn errno_of<T>(result: io::Result<T>) -> i32 {
    result.err().expect("the request must fail").raw_os_error().expect("errors carry an errno")
}
