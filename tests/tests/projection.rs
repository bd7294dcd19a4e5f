//! Promise: a guest sees a volume as it is on the host now, whatever becomes of the host's directory, and can change
//! nothing.

use anyhow::{Context, Result};
use rustix::fs::{Gid, Mode, Uid, chmod, chown};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::fs;
use std::path::Path;
use tests::atomic_writer::{AtomicWriter, Payload, file};
use tests::vm::Vm;

fn payload(token: &str) -> Payload {
    Payload::from([
        file("token", token),
        file("certs/ca/ca.crt", "CA"),
        file("binary", (0..=255).collect::<Vec<u8>>()),
    ])
}

/// A guest with `options` behind `tag=v,path=DIRECTORY`, mounted at /mnt.
fn guest_of(directory: &Path, options: &str) -> Result<Vm> {
    let vm = Vm::builder().projected(&format!("tag=v,path={}{options}", directory.display())).spawn()?;
    vm.wait_for_boot()?;
    vm.sh("mount -t virtiofs v /mnt")?;
    Ok(vm)
}

fn published(directory: &Path, token: &str) -> Result<AtomicWriter> {
    let writer = AtomicWriter::new(directory);
    writer.write(&payload(token))?;
    Ok(writer)
}

#[test]
fn nested_and_binary_files_arrive_whole() -> Result<()> {
    let volume = tempfile::tempdir()?;
    published(volume.path(), "one")?;
    let vm = guest_of(volume.path(), "")?;
    assert_eq!(vm.sh("cat /mnt/certs/ca/ca.crt")?, "CA");
    let dumped = vm.sh("od -An -v -tu1 /mnt/binary")?;
    let bytes: Vec<u8> = dumped.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
    let listing = vm.sh("ls -1A /mnt | sort")?;
    assert!(listing.starts_with("..2"), "{listing}");
    assert!(listing.ends_with("..data\nbinary\ncerts\ntoken\n"), "{listing}");
    assert_eq!(vm.sh("readlink /mnt/token")?, "..data/token\n");
    Ok(())
}

#[test]
fn an_open_file_keeps_its_bytes_and_a_new_open_sees_the_new_ones() -> Result<()> {
    let volume = tempfile::tempdir()?;
    let writer = published(volume.path(), "one")?;
    let vm = guest_of(volume.path(), "")?;
    vm.sh("exec 3</mnt/token 4</mnt/token; echo 3 > /proc/sys/vm/drop_caches; cat <&3; sleep 1000 <&4 >/dev/null 2>&1 &")?;
    writer.write(&payload("two"))?;
    // The sleeper's descriptor is still that of the old file; its pages are gone, so the old bytes come from the host.
    vm.sh("echo 3 > /proc/sys/vm/drop_caches")?;
    assert_eq!(vm.sh("cat /proc/$(pidof sleep)/fd/0")?, "one");
    assert_eq!(vm.sh("cat /mnt/token")?, "two");
    Ok(())
}

#[test]
fn keys_come_and_go() -> Result<()> {
    let volume = tempfile::tempdir()?;
    let writer = published(volume.path(), "one")?;
    let vm = guest_of(volume.path(), "")?;
    assert_ne!(vm.try_sh("cat /mnt/added")?.status, 0);
    writer.write(&Payload::from([file("added", "new"), file("token", "two")]))?;
    assert_eq!(vm.sh("cat /mnt/added /mnt/token")?, "newtwo");
    assert_ne!(vm.try_sh("cat /mnt/binary")?.status, 0);
    Ok(())
}

#[test]
fn volumes_by_name_share_the_device_of_the_well_known_tag() -> Result<()> {
    let (one, two) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let writer = published(one.path(), "one")?;
    fs::write(two.path().join("plain"), "p1")?;
    let vm = Vm::builder()
        .projected(&format!("name=one,path={}", one.path().display()))
        .projected(&format!("name=two,path={}", two.path().display()))
        .spawn()?;
    vm.wait_for_boot()?;
    vm.sh("mount -t virtiofs laterna /mnt")?;
    assert_eq!(vm.sh("ls -1 /mnt; cat /mnt/one/token /mnt/two/plain")?, "one\ntwo\nonep1");
    writer.write(&payload("1-again"))?;
    fs::write(two.path().join("plain"), "p2-longer")?;
    assert_eq!(vm.sh("cat /mnt/one/token /mnt/two/plain")?, "1-againp2-longer");
    Ok(())
}

#[test]
fn a_plain_directory_may_become_a_projected_one_and_back() -> Result<()> {
    let volume = tempfile::tempdir()?;
    fs::write(volume.path().join("token"), "plain")?;
    let vm = guest_of(volume.path(), "")?;
    assert_eq!(vm.sh("cat /mnt/token")?, "plain");
    fs::remove_file(volume.path().join("token"))?;
    published(volume.path(), "projected")?;
    assert_eq!(vm.sh("cat /mnt/token; readlink /mnt/token")?, "projected..data/token\n");
    fs::remove_dir_all(volume.path())?;
    fs::create_dir(volume.path())?;
    fs::write(volume.path().join("token"), "plain again")?;
    assert_eq!(vm.sh("cat /mnt/token")?, "plain again");
    Ok(())
}

#[test]
fn the_guest_sees_the_wanted_owner_and_mode() -> Result<()> {
    let volume = tempfile::tempdir()?;
    published(volume.path(), "one")?;
    let vm = guest_of(volume.path(), ",uid=1234,gid=5678,mode=0440")?;
    assert_eq!(vm.sh("stat -Lc '%u:%g %a' /mnt/token")?, "1234:5678 440\n");
    assert_eq!(vm.sh("stat -c '%u:%g' /mnt/..data /mnt/token")?, "1234:5678\n1234:5678\n");
    Ok(())
}

#[test]
fn a_published_change_of_the_mode_reaches_the_guest() -> Result<()> {
    let volume = tempfile::tempdir()?;
    published(volume.path(), "one")?;
    let vm = guest_of(volume.path(), "")?;
    assert_eq!(vm.sh("stat -Lc %a /mnt/token")?, "644\n");
    chmod(volume.path().join("token"), Mode::from_raw_mode(0o600))?;
    assert_eq!(vm.sh("stat -Lc %a /mnt/token")?, "600\n");
    Ok(())
}

/// Kubernetes 1.36 gives the links to the pod's user, in a sticky directory that everybody may write to.
#[test]
fn protected_symlinks_do_not_stop_the_guest() -> Result<()> {
    let volume = tempfile::tempdir()?;
    published(volume.path(), "one")?;
    let user = Uid::from_raw(1000);
    let link = volume.path().join("token");
    rustix::fs::chownat(
        rustix::fs::CWD,
        &link,
        Some(user),
        None::<Gid>,
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )?;
    chmod(volume.path(), Mode::from_raw_mode(0o1777))?;
    chown(volume.path(), Some(Uid::ROOT), None)?;
    let vm = guest_of(volume.path(), "")?;
    vm.sh("echo 1 > /proc/sys/fs/protected_symlinks")?;
    assert_eq!(vm.sh("cat /mnt/token; stat -c %a /mnt")?, "one775\n");
    Ok(())
}

#[test]
fn content_that_cannot_be_loaded_is_an_error_and_never_the_old_bytes() -> Result<()> {
    let volume = tempfile::tempdir()?;
    let writer = published(volume.path(), "one")?;
    let vm = guest_of(volume.path(), ",max-size=64K")?;
    assert_eq!(vm.sh("cat /mnt/token")?, "one");
    writer.write(&Payload::from([file("token", vec![b'x'; 65537])]))?;
    let failed = vm.try_sh("cat /mnt/token")?;
    assert!(failed.status != 0 && failed.text.contains("Input/output error"), "{failed:?}");
    writer.write(&payload("small again"))?;
    assert_eq!(vm.sh("cat /mnt/token")?, "small again");
    Ok(())
}

#[test]
fn a_source_that_is_gone_or_mounted_over_keeps_its_last_content_until_it_returns() -> Result<()> {
    let parent = tempfile::tempdir()?;
    let (volume, away) = (parent.path().join("volume"), parent.path().join("away"));
    fs::create_dir(&volume)?;
    let writer = published(&volume, "one")?;
    let vm = guest_of(&volume, "")?;
    assert_eq!(vm.sh("cat /mnt/token")?, "one");

    fs::rename(&volume, &away)?;
    assert_eq!(vm.sh("cat /mnt/token")?, "one", "gone");
    vm.wait_for_log("a word on it", |log| log.contains("is lost").then_some(()))?;
    fs::rename(&away, &volume)?;
    writer.write(&payload("two"))?;
    assert_eq!(vm.sh("cat /mnt/token")?, "two", "returned");

    // What a kubelet's restart can do to a mounted token volume: a fresh tmpfs over it.
    mount("tmpfs", &volume, "tmpfs", MountFlags::empty(), None).context("Cannot mount over the volume")?;
    let while_mounted = || -> Result<()> {
        assert_eq!(vm.sh("cat /mnt/token")?, "two", "mounted over");
        published(&volume, "three")?;
        assert_eq!(vm.sh("cat /mnt/token")?, "three", "the new mount has content");
        Ok(())
    };
    let outcome = while_mounted();
    unmount(&volume, UnmountFlags::DETACH)?;
    outcome?;
    assert_eq!(vm.sh("cat /mnt/token")?, "two", "mounted over no more");
    assert_eq!(
        vm.stderr_lines().iter().filter(|line| line.contains("is lost")).count(),
        2,
        "logged once each"
    );
    Ok(())
}

#[test]
fn root_in_the_guest_can_change_nothing() -> Result<()> {
    let volume = tempfile::tempdir()?;
    published(volume.path(), "one")?;
    let vm = guest_of(volume.path(), "")?;
    for command in [
        "echo x > /mnt/token",
        "echo x >> /mnt/..data/token",
        "touch /mnt/new",
        "mkdir /mnt/new",
        "mknod /mnt/new p",
        "ln -s x /mnt/new",
        "ln /mnt/..data/token /mnt/new",
        "rm /mnt/..data/token",
        "rm /mnt/token",
        "rmdir /mnt/..data/certs/ca",
        "mv /mnt/token /mnt/moved",
        "chmod 600 /mnt/..data/token",
        "chown 1 /mnt/..data/token",
        "touch -d 2020-01-01 /mnt/..data/token",
        "truncate -s 0 /mnt/token",
        "dd if=/dev/zero of=/mnt/token bs=1 count=1 conv=notrunc",
    ] {
        let output = vm.try_sh(command)?;
        assert_ne!(output.status, 0, "{command} must fail");
        assert!(output.text.contains("Read-only file system"), "{command}: {}", output.text);
    }
    assert_eq!(vm.sh("cat /mnt/token")?, "one");
    assert_eq!(fs::read_to_string(volume.path().join("token"))?, "one");
    Ok(())
}
