//! Volumes in kubelet's layout: freshness, node ids, caching, and what stays for those who hold the old.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use fuse_backend_rs::api::filesystem::{Context, FileSystem};

use super::guest::{Guest, ROOT, errno_of};
use super::host::{Writer, serve};
use crate::{ProjectedFs, Volume, VolumeSpec};

fn is_for_ever(timeout: Duration) -> bool {
    timeout >= Duration::from_secs(1_000_000_000)
}

#[test]
fn open_after_the_rename_sees_the_new_content() {
    let writer = Writer::with(&[("token", b"0")]);
    let fs = serve(writer.path());
    for number in 1..50 {
        let content = number.to_string().into_bytes();
        let name = writer.prepare(&[("token", &content)]);
        writer.swap(&name);
        assert_eq!(fs.open_and_read("token").unwrap(), content);
    }
}

#[test]
fn nested_paths_and_binary_data_are_served_as_they_are() {
    let binary: Vec<u8> = (0..=255_u8).cycle().take(70_000).collect();
    let writer =
        Writer::with(&[("a/b/c", &binary), ("a/b/..d", b"dots"), ("empty", b""), ("ü\u{1F600}", b"x")]);
    let fs = serve(writer.path());
    assert_eq!(fs.open_and_read("a/b/c").unwrap(), binary);
    assert_eq!(fs.open_and_read("a/b/..d").unwrap(), b"dots");
    assert_eq!(fs.open_and_read("empty").unwrap(), b"");
    assert_eq!(fs.open_and_read("ü\u{1F600}").unwrap(), b"x");
    assert_eq!(fs.open_and_read("..data/a/b/c").unwrap(), binary);
}

#[test]
fn the_top_level_looks_like_the_host() {
    let writer = Writer::with(&[("a/b/c", b"1"), ("token", b"2")]);
    let fs = serve(writer.path());
    let timestamped = writer.published().file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(fs.names(ROOT).unwrap(), [".", "..", &timestamped, "..data", "a", "token"]);
    let target = |name: &str| fs.link_target(fs.look_up(ROOT, name).unwrap().inode).unwrap();
    assert_eq!(target("..data"), timestamped);
    assert_eq!(target("a"), "..data/a");
    assert_eq!(target("token"), "..data/token");
}

#[test]
fn all_but_the_data_link_may_be_cached_for_ever() {
    let writer = Writer::with(&[("a/token", b"1")]);
    let fs = serve(writer.path());
    let data = fs.look_up(ROOT, "..data").unwrap();
    assert_eq!(data.entry_timeout, Duration::ZERO);
    assert!(is_for_ever(data.attr_timeout));
    let timestamped = fs.look_up(ROOT, &fs.link_target(data.inode).unwrap()).unwrap();
    let a = fs.look_up(timestamped.inode, "a").unwrap();
    let token = fs.look_up(a.inode, "token").unwrap();
    for entry in [fs.look_up(ROOT, "a").unwrap(), timestamped, a, token] {
        assert!(is_for_ever(entry.entry_timeout) && is_for_ever(entry.attr_timeout));
        assert_eq!(entry.generation, 0);
    }
    assert!(is_for_ever(fs.getattr(&Context::new(), ROOT, None).unwrap().1));
}

#[test]
fn data_timeout_is_given_to_the_guest() {
    let writer = Writer::with(&[("token", b"1")]);
    let data_timeout = Duration::from_secs(1);
    let spec = VolumeSpec { data_timeout, ..VolumeSpec::new(writer.path()) };
    let fs = ProjectedFs::of_volume(Volume::open(spec).unwrap());
    assert_eq!(fs.look_up(ROOT, "..data").unwrap().entry_timeout, data_timeout);
}

#[test]
fn unchanged_volume_keeps_its_node_ids() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = serve(writer.path());
    let first = fs.walk_from(ROOT, "token").unwrap();
    let second = fs.walk_from(ROOT, "token").unwrap();
    assert_eq!(first.looked_up, second.looked_up);
    assert_eq!(fs.statistics().volumes[0].loads, 1);
}

#[test]
fn every_generation_has_new_node_ids_but_the_links_stay() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = serve(writer.path());
    let old = fs.walk_from(ROOT, "token").unwrap().looked_up;
    // Not even equal content makes a node the same.
    writer.publish(&[("token", b"1")]);
    let new = fs.walk_from(ROOT, "token").unwrap().looked_up;
    assert_eq!(old[0], new[0], "the link at the top level");
    assert!(old[1..].iter().all(|id| !new.contains(id)), "{old:?} {new:?}");
}

#[test]
fn new_key_appears_with_the_rename_and_not_with_its_link() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = serve(writer.path());
    assert_eq!(errno_of(fs.look_up(ROOT, "ca.crt")), libc::ENOENT);
    let name = writer.prepare(&[("token", b"2"), ("ca.crt", b"ca")]);
    assert_eq!(errno_of(fs.look_up(ROOT, "ca.crt")), libc::ENOENT);
    writer.swap(&name);
    assert_eq!(fs.open_and_read("ca.crt").unwrap(), b"ca");
}

#[test]
fn removed_key_is_gone_with_the_rename() {
    let writer = Writer::with(&[("token", b"1"), ("ca.crt", b"ca")]);
    let fs = serve(writer.path());
    let cached = fs.look_up(ROOT, "ca.crt").unwrap();
    let name = writer.prepare(&[("token", b"2")]);
    writer.swap(&name);
    assert_eq!(errno_of(fs.open_and_read("ca.crt")), libc::ENOENT);
    // A guest that has the link cached ends one step later.
    assert_eq!(fs.link_target(cached.inode).unwrap(), "..data/ca.crt");
    assert_eq!(errno_of(fs.walk_from(ROOT, "..data/ca.crt").map(|_| ())), libc::ENOENT);
    // And finds the key again when it returns.
    writer.publish(&[("token", b"3"), ("ca.crt", b"ca3")]);
    assert_eq!(fs.open_and_read("ca.crt").unwrap(), b"ca3");
    assert_eq!(fs.look_up(ROOT, "ca.crt").unwrap().inode, cached.inode);
}

#[test]
fn open_file_keeps_its_bytes_when_the_host_has_removed_them() {
    let writer = Writer::with(&[("token", b"old")]);
    let fs = serve(writer.path());
    let held = fs.walk_from(ROOT, "token").unwrap();
    writer.publish(&[("token", b"new")]);
    assert_eq!(fs.open_and_read("token").unwrap(), b"new");
    assert_eq!(fs.content(held.id).unwrap(), b"old");
    fs.forget_all(&held.looked_up);
    assert_eq!(errno_of(fs.content(held.id)), libc::ESTALE);
}

#[test]
fn walk_that_has_read_the_old_link_can_finish() {
    let writer = Writer::with(&[("token", b"old")]);
    let fs = serve(writer.path());
    let data = fs.look_up(ROOT, "..data").unwrap();
    for content in [b"2", b"3", b"4"] {
        writer.publish(&[("token", content)]);
        assert_eq!(fs.open_and_read("token").unwrap(), content);
    }
    let target = fs.link_target(data.inode).unwrap();
    let directory = fs.look_up(ROOT, &target).unwrap();
    fs.forget_all(&[data.inode]);
    let token = fs.look_up(directory.inode, "token").unwrap();
    assert_eq!(fs.content(token.inode).unwrap(), b"old");
    fs.forget_all(&[directory.inode, token.inode]);
    assert_eq!(errno_of(fs.look_up(ROOT, &target)), libc::ENOENT);
}

#[test]
fn files_read_through_one_opened_directory_belong_together() {
    let writer = Writer::with(&[("key", b"1"), ("crt", b"1")]);
    let fs = serve(writer.path());
    let opened = fs.walk_from(ROOT, "..data").unwrap();
    let key = fs.look_up(opened.id, "key").unwrap();
    writer.publish(&[("key", b"2"), ("crt", b"2")]);
    assert_eq!(fs.open_and_read("crt").unwrap(), b"2");
    let crt = fs.look_up(opened.id, "crt").unwrap();
    assert_eq!(fs.content(key.inode).unwrap(), fs.content(crt.inode).unwrap());
}

#[test]
fn generation_goes_when_the_guest_has_forgotten_it() {
    let writer = Writer::with(&[("token", b"12345")]);
    let fs = serve(writer.path());
    let held = fs.walk_from(ROOT, "token").unwrap();
    writer.publish(&[("token", b"1234567")]);
    fs.open_and_read("token").unwrap();
    let statistics = fs.statistics();
    assert_eq!((statistics.generations, statistics.bytes), (2, 12));
    fs.forget_all(&held.looked_up);
    let statistics = fs.statistics();
    assert_eq!((statistics.generations, statistics.bytes, statistics.live_nodes), (1, 7, 0));
    assert_eq!(statistics.lookups, 0);
}

#[test]
fn attribute_change_after_publishing_is_a_new_generation_under_another_name() {
    let writer = Writer::with(&[("token", b"same")]);
    let token = writer.published().join("token");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let fs = serve(writer.path());
    let old = fs.walk_from(ROOT, "token").unwrap();
    let old_name = fs.link_target(fs.look_up(ROOT, "..data").unwrap().inode).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o640)).unwrap();
    let new = fs.walk_from(ROOT, "token").unwrap();
    assert_ne!(old.id, new.id);
    let (attr, _) = fs.getattr(&Context::new(), new.id, None).unwrap();
    assert_eq!(attr.st_mode & 0o7777, 0o640);
    let new_name = fs.link_target(fs.look_up(ROOT, "..data").unwrap().inode).unwrap();
    assert_eq!(new_name, format!("{old_name}~1"));
    assert!(fs.names(ROOT).unwrap().contains(&new_name));
    // Both names lead where they led, so that neither can be cached wrongly.
    assert_eq!(fs.walk_from(ROOT, &format!("{old_name}/token")).unwrap().id, old.id);
    assert_eq!(fs.walk_from(ROOT, &format!("{new_name}/token")).unwrap().id, new.id);
}

#[test]
fn name_that_is_shown_already_is_not_shown_for_other_content() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = serve(writer.path());
    let shown = || fs.link_target(fs.look_up(ROOT, "..data").unwrap().inode).unwrap();
    fs.walk_from(ROOT, "token").unwrap();
    let token = writer.published().join("token");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o400)).unwrap();
    let second = fs.walk_from(ROOT, "token").unwrap();
    let numbered = shown();
    // The host comes to use the name that was made up here.
    super::host::write_files(&writer.path().join(&numbered), &[("token", b"3")]);
    writer.swap(&numbered);
    assert_eq!(fs.open_and_read("token").unwrap(), b"3");
    assert_eq!(shown(), format!("{numbered}~1"));
    assert_eq!(fs.walk_from(ROOT, &format!("{numbered}/token")).unwrap().id, second.id);
}

#[test]
fn reset_begins_with_the_hosts_name_again() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = serve(writer.path());
    let shown = || fs.link_target(fs.look_up(ROOT, "..data").unwrap().inode).unwrap();
    let name = shown();
    let token = writer.published().join("token");
    for mode in [0o400, 0o440] {
        fs::set_permissions(&token, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(shown(), format!("{name}~1"));
        fs.destroy();
        assert_eq!(shown(), name);
    }
}

#[test]
fn directory_made_anew_under_the_same_name_is_a_new_generation() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = serve(writer.path());
    let old = fs.walk_from(ROOT, "token").unwrap();
    let published = writer.published();
    fs::rename(&published, writer.path().join("..old")).unwrap();
    super::host::write_files(&published, &[("token", b"2")]);
    assert_eq!(fs.open_and_read("token").unwrap(), b"2");
    assert_eq!(fs.content(old.id).unwrap(), b"1");
    let shown = fs.link_target(fs.look_up(ROOT, "..data").unwrap().inode).unwrap();
    assert!(shown.ends_with("~1"), "{shown}");
}

#[test]
fn key_added_to_the_published_directory_is_seen() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = serve(writer.path());
    fs.open_and_read("token").unwrap();
    fs::write(writer.published().join("extra"), b"x").unwrap();
    assert_eq!(fs.open_and_read("extra").unwrap(), b"x");
}

#[test]
fn entries_that_the_writer_did_not_make_are_not_shown() {
    let writer = Writer::with(&[("token", b"1")]);
    fs::write(writer.path().join("stray"), b"x").unwrap();
    fs::create_dir(writer.path().join("lost+found")).unwrap();
    std::os::unix::fs::symlink("..data/gone", writer.path().join("gone")).unwrap();
    super::logged::record();
    let fs = serve(writer.path());
    let names = fs.names(ROOT).unwrap();
    assert_eq!(names[3..], ["..data", "token"]);
    let lines = super::logged::lines_about(writer.path());
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("stray") && lines[0].contains("lost+found"), "{lines:?}");
}

#[test]
fn empty_payload_is_an_empty_volume() {
    let writer = Writer::with(&[("token", b"1")]);
    let fs = serve(writer.path());
    writer.publish(&[]);
    assert_eq!(errno_of(fs.open_and_read("token")), libc::ENOENT);
    assert_eq!(fs.names(ROOT).unwrap().len(), 4);
    assert_eq!(fs.source(), crate::SourceState::Present);
}
