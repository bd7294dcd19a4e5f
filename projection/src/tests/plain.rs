//! Directories without `..data`: nothing may be reused unasked, and both kinds turn into each other.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use fuse_backend_rs::api::filesystem::{Context, FileSystem};

use super::guest::{Guest, ROOT, errno_of};
use super::host::{Writer, plain_directory, serve, write_files};
use crate::SourceState;

#[test]
fn nothing_but_file_attributes_may_be_reused_unasked() {
    let directory = plain_directory(&[("sub/file", b"1")]);
    let fs = serve(directory.path());
    let sub = fs.look_up(ROOT, "sub").unwrap();
    let file = fs.look_up(sub.inode, "file").unwrap();
    assert_eq!((sub.entry_timeout, file.entry_timeout), (Duration::ZERO, Duration::ZERO));
    assert_eq!(sub.attr_timeout, Duration::ZERO);
    assert!(!file.attr_timeout.is_zero(), "a changed file is another node");
    assert_eq!(fs.getattr(&Context::new(), ROOT, None).unwrap().1, Duration::ZERO);
    assert_eq!(fs.names(ROOT).unwrap(), [".", "..", "sub"]);
    assert_eq!(fs.names(sub.inode).unwrap(), [".", "..", "file"]);
}

#[test]
fn changed_file_is_a_new_node_and_the_others_stay() {
    let directory = plain_directory(&[("a", b"1"), ("sub/b", b"2")]);
    symlink("a", directory.path().join("link")).unwrap();
    let fs = serve(directory.path());
    let ids = || {
        ["a", "sub", "sub/b", "..data"].map(|path| fs.walk_from(ROOT, path).map(|walk| walk.id).unwrap_or(0))
    };
    let link = || fs.look_up(ROOT, "link").unwrap().inode;
    let (before, link_before) = (ids(), link());
    fs::write(directory.path().join("sub/b"), b"longer").unwrap();
    let (after, link_after) = (ids(), link());
    assert_eq!((before[0], before[1], link_before), (after[0], after[1], link_after));
    assert_ne!(before[2], after[2]);
    assert_eq!(fs.open_and_read("sub/b").unwrap(), b"longer");
    assert_eq!(fs.content(before[2]).unwrap(), b"2", "an open file keeps its bytes");
}

#[test]
fn attribute_change_of_a_file_is_a_new_node() {
    let directory = plain_directory(&[("a", b"1")]);
    let fs = serve(directory.path());
    let before = fs.look_up(ROOT, "a").unwrap();
    fs::set_permissions(directory.path().join("a"), fs::Permissions::from_mode(0o400)).unwrap();
    let after = fs.look_up(ROOT, "a").unwrap();
    assert_ne!(before.inode, after.inode);
    assert_eq!(after.attr.st_mode & 0o7777, 0o400);
}

#[test]
fn changes_within_one_tick_of_the_clock_are_seen() {
    let directory = plain_directory(&[("token", b"0000")]);
    let fs = serve(directory.path());
    for number in 0..2000 {
        let content = format!("{number:04}").into_bytes();
        // The same length, and often the same timestamps.
        fs::write(directory.path().join("token"), &content).unwrap();
        assert_eq!(fs.open_and_read("token").unwrap(), content);
    }
}

#[test]
fn file_replaced_by_rename_is_seen_at_once() {
    let directory = plain_directory(&[("token", b"0000")]);
    let fs = serve(directory.path());
    for number in 0..200 {
        let content = format!("{number:04}").into_bytes();
        fs::write(directory.path().join("new"), &content).unwrap();
        fs::rename(directory.path().join("new"), directory.path().join("token")).unwrap();
        assert_eq!(fs.open_and_read("token").unwrap(), content);
    }
}

#[test]
fn directory_that_a_process_stands_in_is_never_stale() {
    let directory = plain_directory(&[("sub/file", b"1")]);
    let fs = serve(directory.path());
    let sub = fs.walk_from(ROOT, "sub").unwrap().id;
    write_files(&directory.path().join("sub"), &[("file", b"2"), ("new", b"n"), ("deep/er", b"d")]);
    let walk = |path| fs.content(fs.walk_from(sub, path).unwrap().id).unwrap();
    assert_eq!((walk("file"), walk("new"), walk("deep/er")), (b"2".into(), b"n".into(), b"d".into()));
    assert_eq!(fs.names(sub).unwrap(), [".", "..", "deep", "file", "new"]);
    let (attr, timeout) = fs.getattr(&Context::new(), sub, None).unwrap();
    assert_eq!((attr.st_nlink, timeout), (3, Duration::ZERO));
    fs::remove_dir_all(directory.path().join("sub/deep")).unwrap();
    assert_eq!(errno_of(fs.look_up(sub, "deep")), libc::ENOENT);
}

#[test]
fn removed_directory_is_stale_and_so_is_another_in_its_place() {
    let directory = plain_directory(&[("sub/file", b"1"), ("other", b"x")]);
    let fs = serve(directory.path());
    let sub = fs.walk_from(ROOT, "sub").unwrap().id;
    fs::rename(directory.path().join("sub"), directory.path().join("elsewhere")).unwrap();
    assert_eq!(errno_of(fs.look_up(sub, "file")), libc::ESTALE);
    assert_eq!(errno_of(fs.names(sub)), libc::ESTALE);
    assert!(fs.getattr(&Context::new(), sub, None).is_ok(), "its last attributes");
    write_files(directory.path(), &[("sub/file", b"2")]);
    assert_eq!(errno_of(fs.look_up(sub, "file")), libc::ESTALE);
    assert_eq!(fs.open_and_read("sub/file").unwrap(), b"2");
    assert_eq!(fs.open_and_read("elsewhere/file").unwrap(), b"1");
}

#[test]
fn directory_replaced_between_two_requests_is_another_node() {
    let directory = plain_directory(&[("sub/file", b"1")]);
    let fs = serve(directory.path());
    let sub = fs.walk_from(ROOT, "sub").unwrap().id;
    fs::rename(directory.path().join("sub"), directory.path().join("elsewhere")).unwrap();
    write_files(directory.path(), &[("sub/file", b"2")]);
    assert_eq!(errno_of(fs.look_up(sub, "file")), libc::ESTALE);
    assert_ne!(fs.walk_from(ROOT, "sub").unwrap().id, sub);
}

#[test]
fn link_made_anew_is_another_node() {
    let directory = plain_directory(&[("a", b"1")]);
    let link = directory.path().join("link");
    symlink("a", &link).unwrap();
    let fs = serve(directory.path());
    let before = fs.look_up(ROOT, "link").unwrap().inode;
    // Beside the old one, so that it cannot get its inode number.
    symlink("a", directory.path().join("new")).unwrap();
    fs::rename(directory.path().join("new"), &link).unwrap();
    assert_ne!(fs.look_up(ROOT, "link").unwrap().inode, before);
}

#[test]
fn old_content_goes_when_the_guest_forgets_it() {
    let directory = plain_directory(&[("token", b"12345"), ("other", b"123")]);
    let fs = serve(directory.path());
    let held = fs.walk_from(ROOT, "token").unwrap();
    fs::write(directory.path().join("token"), b"1234567").unwrap();
    fs.open_and_read("token").unwrap();
    let statistics = fs.statistics();
    assert_eq!((statistics.generations, statistics.bytes), (2, 3 + 7 + 5), "the unchanged file counts once");
    fs.forget_all(&held.looked_up);
    let statistics = fs.statistics();
    assert_eq!((statistics.generations, statistics.bytes, statistics.live_nodes), (1, 10, 0));
}

#[test]
fn held_node_that_stays_survives_any_number_of_generations() {
    let directory = plain_directory(&[("stays", b"same"), ("changes", b"")]);
    let fs = serve(directory.path());
    let held = fs.walk_from(ROOT, "stays").unwrap();
    for length in 1..200 {
        fs::write(directory.path().join("changes"), vec![b'x'; length]).unwrap();
        assert_eq!(fs.open_and_read("changes").unwrap().len(), length);
    }
    assert_eq!(fs.content(held.id).unwrap(), b"same");
    assert_eq!(fs.walk_from(ROOT, "stays").unwrap().id, held.id);
    let statistics = fs.statistics();
    assert_eq!((statistics.generations, statistics.volumes[0].evictions), (1, 0));
}

#[test]
fn plain_directory_turns_into_an_atomic_writers() {
    let writer = Writer::with(&[("token", b"1")]);
    let directory = plain_directory(&[("token", b"plain")]);
    let fs = serve(directory.path());
    assert_eq!(fs.open_and_read("token").unwrap(), b"plain");
    // Until the commit point the old content stays.
    let published = directory.path().join("..2024_01_02_03_04_05.7");
    fs::rename(writer.published(), &published).unwrap();
    assert_eq!(fs.open_and_read("token").unwrap(), b"plain");
    fs::remove_file(directory.path().join("token")).unwrap();
    assert_eq!(fs.open_and_read("token").unwrap(), b"plain");
    symlink("..2024_01_02_03_04_05.7", directory.path().join("..data")).unwrap();
    assert_eq!(fs.open_and_read("token").unwrap(), b"1");
    assert_eq!(fs.look_up(ROOT, "token").unwrap().attr.st_mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(fs.source(), SourceState::Present);
}

#[test]
fn atomic_writers_directory_turns_into_a_plain_one_and_back() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = serve(writer.path());
    let cached = fs.walk_from(ROOT, "token").unwrap();
    let aside = writer.path().with_extension("aside");
    fs::rename(writer.path(), &aside).unwrap();
    fs::create_dir(writer.path()).unwrap();
    write_files(writer.path(), &[("token", b"plain")]);
    // A guest that has the link cached for ever is made to ask for it again.
    assert_eq!(errno_of(fs.look_up(ROOT, "..data")), libc::ESTALE);
    assert_eq!(fs.open_and_read("token").unwrap(), b"plain");
    assert_eq!(fs.content(cached.id).unwrap(), b"1");
    fs::remove_dir_all(writer.path()).unwrap();
    fs::rename(&aside, writer.path()).unwrap();
    assert_eq!(fs.open_and_read("token").unwrap(), b"1");
    writer.publish(&[("token", b"2")]);
    assert_eq!(fs.open_and_read("token").unwrap(), b"2");
}

#[test]
fn volume_that_never_was_an_atomic_writers_has_no_data_link() {
    let directory = plain_directory(&[("token", b"1")]);
    assert_eq!(errno_of(serve(directory.path()).look_up(ROOT, "..data")), libc::ENOENT);
}
