//! Owner, permissions and other attributes as the guest sees them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use fuse_backend_rs::abi::fuse_abi::stat64;
use fuse_backend_rs::api::filesystem::{Context, FileSystem};

use super::guest::{Guest, ROOT};
use super::host::{Writer, plain_directory, serve};
use crate::{Ownership, ProjectedFs, Volume, VolumeSpec};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn attr_of(fs: &ProjectedFs, path: &str) -> stat64 {
    let walk = fs.walk_from(ROOT, path).unwrap();
    fs.getattr(&Context::new(), walk.id, None).unwrap().0
}

fn root_attr(fs: &ProjectedFs) -> stat64 {
    fs.getattr(&Context::new(), ROOT, None).unwrap().0
}

#[test]
fn attributes_are_the_hosts_by_default() {
    let writer = Writer::with(&[("a/token", b"12345")]);
    let token = writer.published().join("a/token");
    set_mode(&token, 0o640);
    // Only root may give files away; otherwise the owner is our own, which is also a good answer.
    let _ = chown(&token, Some(4711), Some(4712));
    let host = fs::metadata(&token).unwrap();
    let fs = serve(writer.path());
    let guest = attr_of(&fs, "a/token");
    assert_eq!((guest.st_uid, guest.st_gid, guest.st_mode), (host.uid(), host.gid(), host.mode()));
    assert_eq!((guest.st_size, guest.st_nlink, guest.st_blocks), (5, 1, 1));
    assert_eq!((guest.st_mtime, guest.st_mtime_nsec), (host.mtime(), host.mtime_nsec()));
    assert_eq!((guest.st_ctime, guest.st_ctime_nsec), (host.ctime(), host.ctime_nsec()));
}

#[test]
fn sticky_bit_and_world_write_are_hidden_everywhere() {
    let writer = Writer::with(&[("a/token", b"1")]);
    set_mode(writer.path(), 0o1777);
    set_mode(&writer.published().join("a"), 0o3777);
    set_mode(&writer.published().join("a/token"), 0o1666);
    let fs = serve(writer.path());
    assert_eq!(root_attr(&fs).st_mode & 0o7777, 0o775);
    assert_eq!(attr_of(&fs, "..data/a").st_mode & 0o7777, 0o2775);
    assert_eq!(attr_of(&fs, "a/token").st_mode & 0o7777, 0o664);
}

#[test]
fn ownership_overrides_what_the_host_has() {
    let writer = Writer::with(&[("a/token", b"1")]);
    set_mode(&writer.published().join("a"), 0o750);
    let ownership = Ownership { uid: Some(107), gid: Some(108), mode: Some(0o1446) };
    let spec = VolumeSpec { ownership, ..VolumeSpec::new(writer.path()) };
    let fs = ProjectedFs::of_volume(Volume::open(spec).unwrap());
    let link = fs.look_up(ROOT, "a").unwrap().attr;
    let data = fs.look_up(ROOT, "..data").unwrap().attr;
    let (directory, token) = (attr_of(&fs, "a"), attr_of(&fs, "a/token"));
    for attr in [root_attr(&fs), link, data, directory, token] {
        assert_eq!((attr.st_uid, attr.st_gid), (107, 108));
    }
    assert_eq!(token.st_mode, libc::S_IFREG | 0o444, "mode is for files, without sticky and world-write");
    assert_eq!(directory.st_mode, libc::S_IFDIR | 0o750, "directories keep theirs");
    assert_eq!(link.st_mode, libc::S_IFLNK | 0o777);
}

#[test]
fn reply_and_getattr_agree_and_the_inode_number_is_the_node_id() {
    let writer = Writer::with(&[("a/b", b"1"), ("a/c/d", b"2")]);
    let fs = serve(writer.path());
    let data = fs.walk_from(ROOT, "..data").unwrap();
    let entry = fs.look_up(data.id, "a").unwrap();
    let (attr, _) = fs.getattr(&Context::new(), entry.inode, None).unwrap();
    assert_eq!(attr.st_ino, entry.inode);
    assert_eq!((attr.st_mode, attr.st_size, attr.st_mtime), {
        let attr = entry.attr;
        (attr.st_mode, attr.st_size, attr.st_mtime)
    });
    assert_eq!(attr.st_nlink, 3, "itself, its parent's entry, and one subdirectory");
    assert_eq!(root_attr(&fs).st_nlink, 3);
    assert_eq!(root_attr(&fs).st_ino, ROOT);
}

#[test]
fn link_has_the_hosts_owner_and_the_size_of_its_target() {
    let writer = Writer::with(&[("token", b"1")]);
    let _ = std::os::unix::fs::lchown(writer.path().join("token"), Some(4711), None);
    let host = fs::symlink_metadata(writer.path().join("token")).unwrap();
    let attr = serve(writer.path()).look_up(ROOT, "token").unwrap().attr;
    assert_eq!((attr.st_uid, attr.st_gid), (host.uid(), host.gid()));
    assert_eq!(attr.st_size, 12);
}

#[test]
fn plain_directories_hide_the_same_bits() {
    let directory = plain_directory(&[("sub/file", b"1")]);
    set_mode(directory.path(), 0o1777);
    set_mode(&directory.path().join("sub"), 0o1777);
    set_mode(&directory.path().join("sub/file"), 0o777);
    let fs = serve(directory.path());
    assert_eq!(root_attr(&fs).st_mode & 0o7777, 0o775);
    assert_eq!(attr_of(&fs, "sub").st_mode & 0o7777, 0o775);
    assert_eq!(attr_of(&fs, "sub/file").st_mode & 0o7777, 0o775);
}
