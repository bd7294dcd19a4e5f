//! Many volumes behind one device.

use std::time::Duration;

use fuse_backend_rs::api::filesystem::{Context, FileSystem};

use super::guest::{Guest, ROOT, errno_of};
use super::host::{Writer, serve};
use crate::{Error, ProjectedFs, Volume, VolumeSpec};

fn open(writer: &Writer) -> Volume {
    Volume::open(VolumeSpec::new(writer.path())).unwrap()
}

#[test]
fn root_is_synthetic_and_closed_to_writing() {
    let fs = ProjectedFs::of_volumes();
    let (attr, timeout) = fs.getattr(&Context::new(), ROOT, None).unwrap();
    assert_eq!((attr.st_uid, attr.st_gid, attr.st_mode), (0, 0, libc::S_IFDIR | 0o555));
    assert!(timeout > Duration::from_secs(1_000_000));
    assert_eq!(fs.names(ROOT).unwrap(), [".", ".."]);
    assert_eq!(errno_of(fs.look_up(ROOT, "absent")), libc::ENOENT);
}

#[test]
fn volumes_are_children_and_do_not_touch_each_other() {
    let (one, other) = (Writer::with(&[("token", b"1")]), Writer::with(&[("token", b"other")]));
    let fs = ProjectedFs::of_volumes();
    fs.add_volume("one", open(&one)).unwrap();
    fs.add_volume("other", open(&other)).unwrap();
    assert_eq!(fs.names(ROOT).unwrap(), [".", "..", "one", "other"]);
    assert!(fs.look_up(ROOT, "one").unwrap().entry_timeout > Duration::from_secs(1_000_000));
    let in_volume = |name: &str, path: &str| {
        let root = fs.look_up(ROOT, name).unwrap().inode;
        fs.content(walk_inside(&fs, root, path)).unwrap()
    };
    assert_eq!(in_volume("one", "token"), b"1");
    one.publish(&[("token", b"2")]);
    assert_eq!((in_volume("one", "token"), in_volume("other", "token")), (b"2".into(), b"other".into()));
}

/// Links are relative to the directory that they are in, here the volume's.
fn walk_inside(fs: &ProjectedFs, root: u64, path: &str) -> u64 {
    fs.walk_from(root, path).unwrap().id
}

#[test]
fn volume_added_later_is_seen_and_removed_one_is_stale() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = ProjectedFs::of_volumes();
    assert_eq!(errno_of(fs.look_up(ROOT, "v")), libc::ENOENT);
    fs.add_volume("v", open(&writer)).unwrap();
    let root = fs.look_up(ROOT, "v").unwrap().inode;
    let token = walk_inside(&fs, root, "token");
    fs.remove_volume("v").unwrap();
    assert_eq!(errno_of(fs.look_up(ROOT, "v")), libc::ENOENT);
    assert_eq!(errno_of(fs.look_up(root, "token")), libc::ESTALE);
    assert_eq!(errno_of(fs.getattr(&Context::new(), root, None)), libc::ESTALE);
    assert_eq!(errno_of(fs.content(token)), libc::ESTALE);
    assert_eq!(fs.statistics(), ProjectedFs::of_volumes().statistics());
    fs.add_volume("v", open(&writer)).unwrap();
    let again = fs.look_up(ROOT, "v").unwrap().inode;
    assert_ne!(root, again);
    assert_ne!(token, walk_inside(&fs, again, "token"));
}

#[test]
fn listing_open_while_its_volume_is_removed_is_stale() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = ProjectedFs::of_volumes();
    fs.add_volume("v", open(&writer)).unwrap();
    let root = fs.look_up(ROOT, "v").unwrap().inode;
    let handle = fs.opendir(&Context::new(), root, 0).unwrap().0.unwrap();
    fs.remove_volume("v").unwrap();
    let listed = fs.readdir(&Context::new(), root, handle, 4096, 0, &mut |_| Ok(1));
    assert_eq!(errno_of(listed), libc::ESTALE);
    fs.releasedir(&Context::new(), root, 0, handle).unwrap();
    assert_eq!(fs.statistics().directory_handles, 0);
}

#[test]
fn names_follow_the_rules() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = ProjectedFs::of_volumes();
    let too_long = "x".repeat(256);
    for name in ["", ".", "..", "..data", "a/b", "a\0b", &too_long] {
        let error = fs.add_volume(name, open(&writer)).unwrap_err();
        assert_eq!(error, Error::VolumeName { name: name.into() });
    }
    let longest = "x".repeat(255);
    for name in ["a", ".a", "a..b", &longest] {
        fs.add_volume(name, open(&writer)).unwrap();
    }
    let error = fs.add_volume("a", open(&writer)).unwrap_err();
    assert_eq!(error, Error::DuplicateVolume { name: "a".into() });
    assert_eq!(fs.remove_volume("b").unwrap_err(), Error::UnknownVolume { name: "b".into() });
    assert_eq!(fs.names(ROOT).unwrap().len(), 4 + 2);
}

#[test]
fn single_volume_has_no_children_to_change() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = serve(writer.path());
    assert!(matches!(fs.add_volume("v", open(&writer)), Err(Error::SingleVolume { .. })));
    assert!(matches!(fs.remove_volume("v"), Err(Error::SingleVolume { .. })));
}

#[test]
fn forgetting_a_volumes_directory_is_counted() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = ProjectedFs::of_volumes();
    fs.add_volume("v", open(&writer)).unwrap();
    let root = fs.look_up(ROOT, "v").unwrap().inode;
    fs.look_up(ROOT, "v").unwrap();
    assert_eq!(fs.statistics().lookups, 2);
    fs.forget(&Context::new(), root, 2);
    assert_eq!(fs.statistics().lookups, 0);
    assert_eq!(walk_inside(&fs, root, "..data"), walk_inside(&fs, root, "..data"));
}

#[test]
fn statistics_name_the_volumes() {
    let writer = Writer::with(&[("token", b"12345")]);
    let fs = ProjectedFs::of_volumes();
    fs.add_volume("b", open(&writer)).unwrap();
    fs.add_volume("a", open(&writer)).unwrap();
    let statistics = fs.statistics();
    let names: Vec<_> = statistics.volumes.iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!((statistics.generations, statistics.bytes), (2, 10));
}
