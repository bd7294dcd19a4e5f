//! Single requests: what is negotiated, what is refused, and what a guest may get wrong.

use std::ffi::CString;

use fuse_backend_rs::abi::fuse_abi::CreateIn;
use fuse_backend_rs::api::filesystem::{
    Context, FileSystem, FsOptions, IoctlData, OpenOptions, SetattrValid, ZeroCopyReader,
};
use fuse_backend_rs::file_traits::FileReadWriteVolatile;

use super::guest::{Guest, ROOT, errno_of};
use super::host::{Writer, plain_directory, serve};
use crate::ProjectedFs;

#[test]
fn only_what_helps_is_negotiated() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = serve(writer.path());
    let accepted = fs.init(FsOptions::all()).unwrap();
    let expected = FsOptions::ASYNC_READ
        | FsOptions::PARALLEL_DIROPS
        | FsOptions::BIG_WRITES
        | FsOptions::MAX_PAGES
        | FsOptions::CACHE_SYMLINKS
        | FsOptions::ZERO_MESSAGE_OPEN;
    assert_eq!(accepted, expected);
    assert_eq!(fs.init(FsOptions::ASYNC_READ).unwrap(), FsOptions::ASYNC_READ);
}

#[test]
fn open_flush_and_xattrs_are_not_implemented_so_that_they_are_not_sent() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = serve(writer.path());
    let id = fs.walk_from(ROOT, "token").unwrap().id;
    let context = Context::new();
    let name = CString::new("user.x").unwrap();
    assert_eq!(errno_of(fs.open(&context, id, 0, 0)), libc::ENOSYS);
    assert_eq!(errno_of(fs.flush(&context, id, 0, 0)), libc::ENOSYS);
    assert_eq!(errno_of(fs.access(&context, id, 0)), libc::ENOSYS);
    assert_eq!(errno_of(fs.getxattr(&context, id, &name, 100).map(|_| ())), libc::ENOSYS);
    assert_eq!(errno_of(fs.listxattr(&context, id, 100).map(|_| ())), libc::ENOSYS);
    assert_eq!(errno_of(fs.lseek(&context, id, 0, 0, 0)), libc::ENOSYS);
    assert!(fs.release(&context, id, 0, 0, false, false, None).is_ok());
}

struct NoData;

impl std::io::Read for NoData {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Ok(0)
    }
}

impl ZeroCopyReader for NoData {
    fn read_to(&mut self, _: &mut dyn FileReadWriteVolatile, _: usize, _: u64) -> std::io::Result<usize> {
        Ok(0)
    }
}

#[test]
fn everything_that_would_change_something_is_refused() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = serve(writer.path());
    let id = fs.walk_from(ROOT, "token").unwrap().id;
    let (attr, _) = fs.getattr(&Context::new(), id, None).unwrap();
    let context = Context::new();
    let name = CString::new("new").unwrap();
    let ioctl = fs.ioctl(&context, id, 0, 0, 0, IoctlData::default(), 0).map(|_| ());
    let results = [
        errno_of(fs.setattr(&context, id, attr, None, SetattrValid::MODE)),
        errno_of(fs.symlink(&context, &name, ROOT, &name)),
        errno_of(fs.mknod(&context, ROOT, &name, 0o644, 0, 0)),
        errno_of(fs.mkdir(&context, ROOT, &name, 0o755, 0)),
        errno_of(fs.unlink(&context, ROOT, &name)),
        errno_of(fs.rmdir(&context, ROOT, &name)),
        errno_of(fs.rename(&context, ROOT, &name, ROOT, &name, 0)),
        errno_of(fs.link(&context, id, ROOT, &name)),
        errno_of(fs.create(&context, ROOT, &name, CreateIn::default()).map(|_| ())),
        errno_of(fs.write(&context, id, 0, &mut NoData, 1, 0, None, false, 0, 0)),
        errno_of(fs.fallocate(&context, id, 0, 0, 0, 1)),
        errno_of(fs.setxattr(&context, id, &name, b"", 0)),
        errno_of(fs.removexattr(&context, id, &name)),
        errno_of(ioctl),
    ];
    assert_eq!(results, [libc::EROFS; 14]);
}

#[test]
fn read_is_cut_to_the_file_and_to_the_buffer() {
    let writer = Writer::with(&[("token", b"0123456789"), ("empty", b"")]);
    let fs = serve(writer.path());
    let id = fs.walk_from(ROOT, "token").unwrap().id;
    let read = |offset, size, capacity| fs.read_at(id, offset, size, capacity).unwrap();
    assert_eq!(read(0, 4, 100), b"0123");
    assert_eq!(read(8, 100, 100), b"89");
    assert_eq!(read(0, u32::MAX, 100), b"0123456789");
    assert_eq!(read(2, 8, 3), b"234");
    assert_eq!(read(0, 10, 0), b"");
    for offset in [10, 11, 1 << 40, u64::MAX] {
        assert_eq!(read(offset, 100, 100), b"");
    }
    let empty = fs.walk_from(ROOT, "empty").unwrap().id;
    assert_eq!(fs.read_at(empty, 0, 100, 100).unwrap(), b"");
}

#[test]
fn requests_for_the_wrong_kind_of_node_are_refused() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = serve(writer.path());
    let link = fs.look_up(ROOT, "token").unwrap().inode;
    let walk = fs.walk_from(ROOT, "token").unwrap();
    let directory = walk.looked_up[2];
    assert_eq!(errno_of(fs.content(link)), libc::EINVAL);
    assert_eq!(errno_of(fs.content(directory)), libc::EISDIR);
    assert_eq!(errno_of(fs.content(ROOT)), libc::EISDIR);
    assert_eq!(errno_of(fs.link_target(walk.id)), libc::EINVAL);
    assert_eq!(errno_of(fs.link_target(directory)), libc::EINVAL);
    assert_eq!(errno_of(fs.look_up(walk.id, "x")), libc::ENOTDIR);
    assert_eq!(errno_of(fs.look_up(link, "x")), libc::ENOTDIR);
    assert_eq!(errno_of(fs.names(walk.id)), libc::ENOTDIR);
}

#[test]
fn node_that_the_guest_does_not_hold_is_stale() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = serve(writer.path());
    let held = fs.walk_from(ROOT, "token").unwrap();
    fs.forget_all(&held.looked_up);
    for id in [0, held.id, 1 << 40, u64::MAX] {
        assert_eq!(errno_of(fs.content(id)), libc::ESTALE);
        assert_eq!(errno_of(fs.link_target(id)), libc::ESTALE);
        assert_eq!(errno_of(fs.look_up(id, "token")), libc::ESTALE);
        assert_eq!(errno_of(fs.getattr(&Context::new(), id, None)), libc::ESTALE);
        assert_eq!(errno_of(fs.names(id)), libc::ESTALE);
        assert_eq!(errno_of(fs.statfs(&Context::new(), id)), libc::ESTALE);
    }
}

#[test]
fn forget_of_too_many_or_of_anything_does_no_harm() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = serve(writer.path());
    for id in [0, ROOT, 17, u64::MAX] {
        fs.forget(&Context::new(), id, u64::MAX);
    }
    let held = fs.walk_from(ROOT, "token").unwrap();
    fs.look_up(ROOT, "token").unwrap();
    fs.batch_forget(&Context::new(), held.looked_up.iter().map(|id| (*id, u64::MAX)).collect());
    assert_eq!((fs.statistics().lookups, fs.statistics().live_nodes), (0, 0));
    assert_eq!(fs.open_and_read("token").unwrap(), b"1");
}

#[test]
fn lookup_takes_single_names_only() {
    let writer = Writer::with(&[("a/b", b"1")]);
    let fs = serve(writer.path());
    let directory = fs.walk_from(ROOT, "..data").unwrap().id;
    for parent in [ROOT, directory] {
        for name in ["", ".", "..", "a/b", "/", "../a"] {
            assert_eq!(errno_of(fs.look_up(parent, name)), libc::EINVAL, "{name}");
        }
        assert_eq!(errno_of(fs.look_up(parent, &"x".repeat(256))), libc::ENAMETOOLONG);
        assert_eq!(errno_of(fs.look_up(parent, &"x".repeat(255))), libc::ENOENT);
    }
}

#[test]
fn second_init_drops_all_that_the_guest_held_and_reuses_no_id() {
    for is_destroyed in [false, true] {
        let writer = Writer::with(&[("token", b"1")]);
        let fs = serve(writer.path());
        let fresh = fs.statistics();
        let mut ids = Vec::new();
        for number in 0..100 {
            let held = fs.walk_from(ROOT, "token").unwrap();
            fs.opendir(&Context::new(), ROOT, 0).unwrap();
            writer.publish(&[("token", b"2")]);
            ids.extend(fs.walk_from(ROOT, "token").unwrap().looked_up);
            if is_destroyed {
                fs.destroy();
            }
            fs.init(FsOptions::all()).unwrap();
            let mut now = fs.statistics();
            assert_eq!(now.volumes[0].rotations, number + 1);
            now.volumes.clone_from(&fresh.volumes);
            assert_eq!(now, fresh);
            assert_eq!(errno_of(fs.content(held.id)), libc::ESTALE);
        }
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }
}

#[test]
fn reset_serves_the_last_content_of_a_source_that_is_lost() {
    let directory = plain_directory(&[("token", b"1")]);
    let fs = serve(directory.path());
    std::fs::remove_dir_all(directory.path()).unwrap();
    fs.init(FsOptions::all()).unwrap();
    assert_eq!(fs.open_and_read("token").unwrap(), b"1");
}

/// Reads a listing in parts of a few entries.
fn list_in_parts(fs: &ProjectedFs, id: u64, handle: u64, mut between: impl FnMut()) -> Vec<String> {
    let mut names = Vec::new();
    let mut offset = 0;
    loop {
        let mut room = 3;
        let before = names.len();
        fs.readdir(&Context::new(), id, handle, 100, offset, &mut |entry| {
            if room == 0 {
                return Ok(0);
            }
            room -= 1;
            offset = entry.offset;
            names.push(String::from_utf8(entry.name.to_vec()).unwrap());
            Ok(32)
        })
        .unwrap();
        if names.len() == before {
            return names;
        }
        between();
    }
}

#[test]
fn listing_in_parts_neither_skips_nor_repeats_while_the_volume_rotates() {
    let names: Vec<String> = (0..50).map(|number| format!("key{number:02}")).collect();
    let payload: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), b"x".as_slice())).collect();
    let writer = Writer::with(&payload);
    let fs = serve(writer.path());
    let expected = fs.names(ROOT).unwrap();
    assert_eq!(expected.len(), 50 + 4);
    let handle = fs.opendir(&Context::new(), ROOT, 0).unwrap().0.unwrap();
    let mut kept = 50;
    let listed = list_in_parts(&fs, ROOT, handle, || {
        kept -= 1;
        writer.publish(&payload[..kept]);
        fs.open_and_read("key00").unwrap();
    });
    assert_eq!(listed, expected);
}

#[test]
fn listing_of_an_immutable_directory_is_cached_and_needs_no_handle() {
    let writer = Writer::with(&[("a/b", b"1"), ("a/c", b"2"), ("a/d/e", b"3"), ("f", b"4")]);
    let fs = serve(writer.path());
    let walk = fs.walk_from(ROOT, "a").unwrap();
    let (handle, options) = fs.opendir(&Context::new(), walk.id, 0).unwrap();
    assert_eq!((handle, options), (None, OpenOptions::CACHE_DIR | OpenOptions::KEEP_CACHE));
    assert_eq!(list_in_parts(&fs, walk.id, 0, || {}), [".", "..", "b", "c", "d"]);
    let mut inos = Vec::new();
    fs.readdir(&Context::new(), walk.id, 0, 4096, 0, &mut |entry| {
        inos.push((entry.ino, entry.type_));
        Ok(1)
    })
    .unwrap();
    let parent = walk.looked_up[walk.looked_up.len() - 2];
    let child = fs.look_up(walk.id, "b").unwrap().inode;
    let (directory, file) = (u32::from(libc::DT_DIR), u32::from(libc::DT_REG));
    assert_eq!(inos[..3], [(walk.id, directory), (parent, directory), (child, file)]);
    assert_eq!(errno_of(fs.readdir(&Context::new(), ROOT, 0, 4096, 0, &mut |_| Ok(1))), libc::EBADF);
    let past_the_end = fs.readdir(&Context::new(), walk.id, 0, 4096, u64::MAX, &mut |_| panic!("no entry"));
    assert!(past_the_end.is_ok());
}

#[test]
fn directory_handles_are_limited_and_freed() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = serve(writer.path());
    let open = || fs.opendir(&Context::new(), ROOT, 0).map(|(handle, _)| handle.unwrap());
    let handles: Vec<u64> = (0..1024).map(|_| open().unwrap()).collect();
    assert_eq!(errno_of(open()), libc::ENFILE);
    fs.releasedir(&Context::new(), ROOT, 0, handles[0]).unwrap();
    fs.releasedir(&Context::new(), ROOT, 0, handles[0]).unwrap();
    assert!(open().is_ok());
    assert_eq!(errno_of(open()), libc::ENFILE);
    fs.destroy();
    assert_eq!(fs.statistics().directory_handles, 0);
    let stale = fs.readdir(&Context::new(), ROOT, handles[1], 4096, 0, &mut |_| Ok(1));
    assert_eq!(errno_of(stale), libc::EBADF);
}

#[test]
fn statfs_tells_of_a_full_read_only_file_system() {
    let writer = Writer::with(&[("a/b", &[0; 5000]), ("c", b"x")]);
    let numbers = serve(writer.path()).statfs(&Context::new(), ROOT).unwrap();
    assert_eq!((numbers.f_bsize, numbers.f_blocks, numbers.f_bfree, numbers.f_bavail), (4096, 2, 0, 0));
    assert_eq!((numbers.f_files, numbers.f_ffree, numbers.f_namemax), (3, 0, 255));
}
