//! A source that goes away is no update: the last content stays, it is said once, and its return is noticed.

use std::fs;
use std::path::Path;

use super::guest::{Guest, ROOT};
use super::host::{Writer, plain_directory, serve, write_files};
use super::logged::{lines_about, record};
use crate::{ProjectedFs, SourceState};

/// Removes something from a volume, given the published directory's path too.
type Step<'a> = &'a dyn Fn(&Writer, &Path);

fn assert_keeps_content(fs: &ProjectedFs, content: &[u8]) {
    for _ in 0..3 {
        assert_eq!(fs.open_and_read("token").unwrap(), content);
        assert!(fs.names(ROOT).unwrap().contains(&"token".to_owned()));
    }
    assert!(matches!(fs.source(), SourceState::Lost(_)), "{:?}", fs.source());
}

/// Moves the directory away and puts `replacement` in its place, then undoes it after an update.
fn loses_and_finds(replace: impl Fn(&Path)) {
    record();
    let writer = Writer::with(&[("token", b"1")]);
    let fs = serve(writer.path());
    let aside = writer.path().with_extension("aside");
    let swap_out = || {
        fs::rename(writer.path(), &aside).unwrap();
        replace(writer.path());
    };
    let swap_in = || {
        let _ = fs::remove_dir(writer.path());
        let _ = fs::remove_file(writer.path());
        fs::rename(&aside, writer.path()).unwrap();
    };
    swap_out();
    assert_keeps_content(&fs, b"1");
    swap_in();
    writer.publish(&[("token", b"2")]);
    assert_eq!(fs.open_and_read("token").unwrap(), b"2");
    assert_eq!(fs.source(), SourceState::Present);
    let lines = lines_about(writer.path());
    let of = |level: &str| lines.iter().filter(|line| line.starts_with(level)).count();
    assert_eq!((of("WARN"), of("INFO"), lines.len()), (1, 1, 2), "{lines:?}");
    // And again, and back without an update.
    swap_out();
    assert_keeps_content(&fs, b"2");
    swap_in();
    assert_eq!(fs.open_and_read("token").unwrap(), b"2");
    assert_eq!(fs.source(), SourceState::Present);
    assert_eq!(fs.statistics().volumes[0].rotations, 1);
}

#[test]
fn directory_that_is_gone_is_kept_until_it_returns() {
    loses_and_finds(|_| {});
}

#[test]
fn directory_covered_by_an_empty_one_is_kept_until_it_returns() {
    loses_and_finds(|path| fs::create_dir(path).unwrap());
}

#[test]
fn directory_replaced_by_a_file_is_kept_until_it_returns() {
    loses_and_finds(|path| fs::write(path, b"").unwrap());
}

#[test]
fn directory_covered_by_another_volume_shows_that_one() {
    let (writer, other) = (Writer::with(&[("token", b"1")]), Writer::with(&[("token", b"other")]));
    let fs = serve(writer.path());
    let aside = writer.path().with_extension("aside");
    fs::rename(writer.path(), &aside).unwrap();
    fs::rename(other.path(), writer.path()).unwrap();
    assert_eq!(fs.open_and_read("token").unwrap(), b"other");
    assert_eq!(fs.source(), SourceState::Present);
    fs::remove_dir_all(writer.path()).unwrap();
    fs::rename(aside, writer.path()).unwrap();
    assert_eq!(fs.open_and_read("token").unwrap(), b"1");
}

#[test]
fn taking_down_is_noticed_whatever_goes_first() {
    let published = |writer: &Writer| writer.published();
    let orders: [&[Step]; 4] = [
        // What rm -r meets, in different orders.
        &[
            &|_, published| fs::remove_file(published.join("a/other")).unwrap(),
            &|_, published| fs::remove_dir_all(published.join("a")).unwrap(),
            &|_, published| fs::remove_file(published.join("token")).unwrap(),
            &|_, published| fs::remove_dir(published).unwrap(),
            &|writer, _| fs::remove_file(writer.path().join("..data")).unwrap(),
            &|writer, _| fs::remove_file(writer.path().join("a")).unwrap(),
            &|writer, _| fs::remove_file(writer.path().join("token")).unwrap(),
        ],
        &[
            &|writer, _| fs::remove_file(writer.path().join("..data")).unwrap(),
            &|_, published| fs::remove_dir_all(published.join("a")).unwrap(),
            &|_, published| fs::remove_dir_all(published).unwrap(),
            &|writer, _| fs::remove_file(writer.path().join("token")).unwrap(),
            &|writer, _| fs::remove_file(writer.path().join("a")).unwrap(),
        ],
        &[
            &|_, published| fs::remove_dir_all(published).unwrap(),
            &|writer, _| fs::remove_file(writer.path().join("token")).unwrap(),
            &|writer, _| fs::remove_file(writer.path().join("..data")).unwrap(),
            &|writer, _| fs::remove_file(writer.path().join("a")).unwrap(),
        ],
        &[&|writer, _| {
            for entry in fs::read_dir(writer.path()).unwrap() {
                let path = entry.unwrap().path();
                let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
            }
        }],
    ];
    for order in orders {
        let writer = Writer::with(&[("token", b"1"), ("a/other", b"2")]);
        let fs = serve(writer.path());
        let published = published(&writer);
        for step in order {
            step(&writer, &published);
            assert_keeps_content(&fs, b"1");
            assert_eq!(fs.open_and_read("a/other").unwrap(), b"2");
        }
        fs::remove_dir(writer.path()).unwrap();
        assert_keeps_content(&fs, b"1");
        // The pod returns.
        fs::create_dir(writer.path()).unwrap();
        assert_keeps_content(&fs, b"1");
        writer.publish(&[("token", b"3")]);
        assert_eq!(fs.open_and_read("token").unwrap(), b"3");
    }
}

#[test]
fn emptied_plain_directory_keeps_its_last_content() {
    let directory = plain_directory(&[("token", b"1")]);
    let fs = serve(directory.path());
    fs::remove_file(directory.path().join("token")).unwrap();
    assert_keeps_content(&fs, b"1");
    write_files(directory.path(), &[("token", b"2")]);
    assert_eq!(fs.open_and_read("token").unwrap(), b"2");
    assert_eq!(fs.source(), SourceState::Present);
}

#[test]
fn directory_that_was_always_empty_is_not_lost() {
    let directory = plain_directory(&[]);
    let fs = serve(directory.path());
    assert_eq!(fs.names(ROOT).unwrap(), [".", ".."]);
    assert_eq!(fs.source(), SourceState::Present);
}
