//! Directories that cannot be served: one line at the start, EIO and never old bytes later, and recovery.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::process::{Uid, geteuid};
use rustix::thread::set_thread_res_uid;
use tempfile::TempDir;

use super::guest::{Guest, ROOT, errno_of};
use super::host::{Writer, plain_directory, serve};
use super::logged::{lines_about, record};
use crate::{Error, ProjectedFs, SourceState, Volume, VolumeSpec};

/// Makes an entry that no volume may hold.
type Maker<'a> = &'a dyn Fn(&Path);

/// The error of a directory, which must be one line that names `place`.
fn refusal(directory: &Path, place: &str) -> Error {
    let error = Volume::open(VolumeSpec::new(directory)).expect_err("the directory must be refused");
    let message = error.to_string();
    assert!(message.contains(place) && !message.contains('\n'), "{message}");
    error
}

fn open_limited(directory: &Path, max_size_bytes: u64) -> Result<Volume, Error> {
    Volume::open(VolumeSpec { max_size_bytes, ..VolumeSpec::new(directory) })
}

/// Runs as a user who may not read root's files, whoever runs the tests.
fn without_privileges<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let unprivileged = || {
            if geteuid().is_root() {
                let nobody = Uid::from_raw(65534);
                set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            run()
        };
        scope.spawn(unprivileged).join().unwrap()
    })
}

#[test]
fn missing_directory_is_refused() {
    let parent = TempDir::new().unwrap();
    let error = refusal(&parent.path().join("absent"), "absent");
    assert!(matches!(error, Error::OpenVolume { .. }), "{error}");
}

#[test]
fn file_instead_of_a_directory_is_refused() {
    let parent = plain_directory(&[("file", b"x")]);
    let error = refusal(&parent.path().join("file"), "file");
    assert!(matches!(error, Error::NotADirectory { .. }), "{error}");
}

#[test]
fn fifo_socket_and_device_are_refused_wherever_they_are() {
    let fifo = |path: &Path| mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap();
    let socket = |path: &Path| drop(UnixListener::bind(path).unwrap());
    // Device 0:0 may be made without privileges.
    let device = |path: &Path| {
        mknodat(CWD, path, FileType::CharacterDevice, Mode::RUSR, makedev(0, 0)).unwrap();
    };
    let makers: [(&str, Maker); 3] = [("FIFO", &fifo), ("socket", &socket), ("character device", &device)];
    for (kind, make) in makers {
        let plain = plain_directory(&[("token", b"1")]);
        make(&plain.path().join("odd"));
        let (published, beside) = (Writer::with(&[("a/token", b"1")]), Writer::with(&[("token", b"1")]));
        make(&published.published().join("a/odd"));
        make(&beside.path().join("odd"));
        for directory in [plain.path(), published.path(), beside.path()] {
            let error = refusal(directory, "odd");
            assert!(matches!(error, Error::SpecialFile { kind: found, .. } if found == kind), "{error}");
        }
    }
}

#[test]
fn links_out_of_the_volume_are_refused_wherever_they_are() {
    for target in ["/etc/passwd", "../outside", "a/../../outside", "/"] {
        let plain = plain_directory(&[("token", b"1")]);
        symlink(target, plain.path().join("link")).unwrap();
        let beside = Writer::with(&[("token", b"1")]);
        symlink(target, beside.path().join("link")).unwrap();
        for directory in [plain.path(), beside.path()] {
            let error = refusal(directory, "link");
            assert!(error.to_string().contains(target), "{error}");
        }
    }
    let published = Writer::with(&[("a/token", b"1")]);
    symlink("../../../outside", published.published().join("a/link")).unwrap();
    assert!(matches!(refusal(published.path(), "a/link"), Error::EscapingLink { .. }));
}

#[test]
fn link_that_stays_inside_is_served() {
    let plain = plain_directory(&[("a/token", b"1")]);
    symlink("../a/./token", plain.path().join("a/link")).unwrap();
    symlink("a/link", plain.path().join("link")).unwrap();
    let fs = serve(plain.path());
    assert_eq!(fs.link_target(fs.look_up(ROOT, "link").unwrap().inode).unwrap(), "a/link");
    let published = Writer::with(&[("a/token", b"1")]);
    symlink("token", published.published().join("a/link")).unwrap();
    assert_eq!(serve(published.path()).open_and_read("a/link").unwrap(), b"1");
}

#[test]
fn data_link_must_be_a_writers() {
    for target in ["/etc", "../etc", "payload", "..", "..data", "..x/y"] {
        let directory = plain_directory(&[("payload/token", b"1")]);
        symlink(target, directory.path().join("..data")).unwrap();
        let error = refusal(directory.path(), "..data");
        assert!(matches!(error, Error::DataLink { .. }), "{target}: {error}");
    }
    let directory = plain_directory(&[("..data/token", b"1")]);
    assert!(matches!(refusal(directory.path(), "..data"), Error::DataLink { .. }));
    symlink("..2024", directory.path().join("..data_tmp")).unwrap();
    fs::remove_dir_all(directory.path().join("..data")).unwrap();
    fs::rename(directory.path().join("..data_tmp"), directory.path().join("..data")).unwrap();
    assert!(matches!(refusal(directory.path(), "..2024"), Error::DanglingDataLink { .. }));
}

#[test]
fn volume_that_is_not_published_yet_is_refused() {
    let directory = plain_directory(&[("..2024_01_02_03_04_05.6/token", b"1")]);
    assert!(matches!(refusal(directory.path(), "..2024"), Error::NotPublished { .. }));
    let directory = plain_directory(&[]);
    symlink("..data/token", directory.path().join("token")).unwrap();
    assert!(matches!(refusal(directory.path(), "token"), Error::NotPublished { .. }));
    // A file may be named like that.
    let directory = plain_directory(&[("..notes", b"1")]);
    assert_eq!(serve(directory.path()).open_and_read("..notes").unwrap(), b"1");
}

#[test]
fn volume_may_be_as_large_as_the_limit_and_no_larger() {
    let writer = Writer::with(&[("a", b"12345"), ("b", b"67890")]);
    assert!(open_limited(writer.path(), 10).is_ok());
    let error = open_limited(writer.path(), 9).unwrap_err().to_string();
    assert!(error.contains("9 bytes") && error.contains("max-size="), "{error}");
}

#[test]
fn sparse_file_of_any_size_is_refused_without_reading_it() {
    let directory = plain_directory(&[]);
    File::create(directory.path().join("huge")).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(refusal(directory.path(), "huge"), Error::TooLarge { .. }));
}

#[test]
fn entries_and_depth_are_limited() {
    let directory = plain_directory(&[]);
    for number in 0..4096 {
        File::create(directory.path().join(number.to_string())).unwrap();
    }
    assert_eq!(serve(directory.path()).names(ROOT).unwrap().len(), 4096 + 2);
    let last = directory.path().join("one more");
    File::create(&last).unwrap();
    let path = directory.path().to_str().unwrap();
    assert!(matches!(refusal(directory.path(), path), Error::TooManyEntries { limit: 4096, .. }));
    fs::remove_file(last).unwrap();
    fs::remove_file(directory.path().join("0")).unwrap();
    fs::create_dir(directory.path().join("sub")).unwrap();
    File::create(directory.path().join("sub/one more")).unwrap();
    assert!(matches!(refusal(directory.path(), path), Error::TooManyEntries { .. }), "over all directories");

    let path_of = |depth: usize| vec!["d"; depth].join("/");
    let directory = plain_directory(&[(&format!("{}/file", path_of(16)), b"x")]);
    assert_eq!(serve(directory.path()).open_and_read(&format!("{}/file", path_of(16))).unwrap(), b"x");
    fs::create_dir(directory.path().join(path_of(17))).unwrap();
    assert!(matches!(refusal(directory.path(), &path_of(17)), Error::TooDeep { limit: 16, .. }));
}

#[test]
fn directory_that_never_holds_still_is_refused() {
    // Files that are longer than they say are, each time they are read.
    let error = refusal(Path::new("/proc/sys/kernel/random"), "/proc/sys/kernel/random");
    assert!(matches!(error, Error::KeepsChanging { .. }), "{error}");
}

#[test]
fn names_are_escaped_in_messages() {
    let directory = plain_directory(&[]);
    let name = "new\nline\u{1b}[2J";
    mknodat(CWD, directory.path().join(name), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let message = refusal(directory.path(), "new\\nline").to_string();
    assert!(!message.contains('\u{1b}'), "{message:?}");
}

#[test]
fn unreadable_file_is_refused_and_named() {
    let writer = Writer::with(&[("a/token", b"1")]);
    fs::set_permissions(writer.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(writer.published().join("a/token"), fs::Permissions::from_mode(0o000)).unwrap();
    let error = without_privileges(|| refusal(writer.path(), "a/token"));
    assert!(matches!(error, Error::Read { .. }), "{error}");
}

/// Serves a volume, publishes something that cannot be loaded, and afterwards something good.
fn refuses_then_recovers(break_it: impl Fn(&Writer)) {
    record();
    let writer = Writer::with(&[("token", b"old")]);
    let fs = ProjectedFs::of_volume(open_limited(writer.path(), 1000).unwrap());
    let held = fs.walk_from(ROOT, "token").unwrap();
    break_it(&writer);
    for _ in 0..3 {
        assert_eq!(errno_of(fs.open_and_read("token")), libc::EIO);
        assert_eq!(errno_of(fs.look_up(ROOT, "..data")), libc::EIO);
        assert_eq!(errno_of(fs.names(ROOT)), libc::EIO);
    }
    assert!(matches!(fs.source(), SourceState::Unloadable(_)), "{:?}", fs.source());
    assert_eq!(fs.content(held.id).unwrap(), b"old", "an open file stays");
    writer.publish(&[("token", b"good")]);
    assert_eq!(fs.open_and_read("token").unwrap(), b"good");
    assert_eq!(fs.source(), SourceState::Present);
    let lines = lines_about(writer.path());
    let of = |level: &str| lines.iter().filter(|line| line.starts_with(level)).count();
    assert_eq!((of("ERROR"), of("INFO"), lines.len()), (1, 1, 2), "{lines:?}");
}

#[test]
fn generation_that_is_too_large_is_an_io_error_and_never_old_bytes() {
    refuses_then_recovers(|writer| writer.publish(&[("token", &[b'x'; 1001])]));
}

#[test]
fn generation_with_a_fifo_is_an_io_error_and_never_old_bytes() {
    refuses_then_recovers(|writer| {
        let name = writer.prepare(&[("token", b"new")]);
        let fifo = writer.path().join(&name).join("fifo");
        mknodat(CWD, fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        writer.swap(&name);
    });
}

#[test]
fn data_link_to_nothing_is_an_io_error_and_never_old_bytes() {
    refuses_then_recovers(|writer| {
        let name = writer.prepare(&[("token", b"new")]);
        fs::remove_dir_all(writer.path().join(&name)).unwrap();
        writer.swap(&name);
    });
}

#[test]
fn unreadable_generation_is_an_io_error_until_it_is_readable() {
    let writer = Writer::with(&[("token", b"old")]);
    let set_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    set_mode(writer.path(), 0o755);
    set_mode(&writer.published().join("token"), 0o644);
    let fs = without_privileges(|| serve(writer.path()));
    writer.publish(&[("token", b"new")]);
    let token = writer.published().join("token");
    set_mode(&token, 0o000);
    assert_eq!(errno_of(without_privileges(|| fs.open_and_read("token"))), libc::EIO);
    set_mode(&token, 0o644);
    assert_eq!(without_privileges(|| fs.open_and_read("token")).unwrap(), b"new");
}

#[test]
fn plain_volume_that_cannot_be_loaded_is_an_io_error_and_recovers() {
    let directory = plain_directory(&[("token", b"old")]);
    let fs = serve(directory.path());
    let fifo = directory.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
    assert_eq!(errno_of(fs.open_and_read("token")), libc::EIO);
    fs::remove_file(fifo).unwrap();
    assert_eq!(fs.open_and_read("token").unwrap(), b"old");
}
