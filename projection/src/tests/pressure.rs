//! Guests that hold everything, and a writer as fast as it can be.

use std::fs;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::guest::{Guest, ROOT, errno_of};
use super::host::{Writer, plain_directory, serve};
use crate::{ProjectedFs, Volume, VolumeSpec};

#[test]
fn thousand_rotations_leave_memory_flat() {
    let writer = Writer::with(&[("token", b"12345"), ("a/b/c", b"678")]);
    let fs = serve(writer.path());
    fs.open_and_read("token").unwrap();
    let before = fs.statistics();
    for number in 0..1000_u32 {
        writer.publish(&[("token", format!("{:05}", number).as_bytes()), ("a/b/c", b"678")]);
        fs.open_and_read("token").unwrap();
        fs.open_and_read("a/b/c").unwrap();
    }
    let mut after = fs.statistics();
    assert_eq!((after.volumes[0].rotations, after.volumes[0].evictions), (1000, 0));
    after.volumes.clone_from(&before.volumes);
    assert_eq!(after, before);
}

#[test]
fn guest_that_forgets_nothing_loses_the_oldest_generations() {
    let writer = Writer::with(&[("token", b"first")]);
    let fs = serve(writer.path());
    let walks: Vec<_> = (0..200)
        .map(|number| {
            writer.publish(&[("token", number.to_string().as_bytes())]);
            fs.walk_from(ROOT, "token").unwrap()
        })
        .collect();
    let statistics = fs.statistics();
    assert_eq!(statistics.generations, 65);
    assert_eq!(statistics.volumes[0].evictions, 200 - 65);
    for (number, walk) in walks.iter().enumerate() {
        if number < 200 - 65 {
            assert_eq!(errno_of(fs.content(walk.id)), libc::ESTALE);
        } else {
            assert_eq!(fs.content(walk.id).unwrap(), number.to_string().into_bytes());
        }
    }
    // FORGETs that come for evicted nodes do no harm.
    for walk in &walks {
        fs.forget_all(&walk.looked_up);
    }
    assert_eq!((fs.statistics().live_nodes, fs.statistics().generations), (0, 1));
}

#[test]
fn retained_generations_are_limited_by_their_size_too() {
    let writer = Writer::with(&[("token", &[b'x'; 900])]);
    let spec = VolumeSpec { max_size_bytes: 1000, ..VolumeSpec::new(writer.path()) };
    let fs = ProjectedFs::of_volume(Volume::open(spec).unwrap());
    for _ in 0..50 {
        fs.walk_from(ROOT, "token").unwrap();
        writer.publish(&[("token", &[b'y'; 900])]);
    }
    fs.walk_from(ROOT, "token").unwrap();
    let statistics = fs.statistics();
    assert_eq!((statistics.generations, statistics.bytes), (1 + 4, 5 * 900));
}

#[test]
fn retained_generations_are_limited_by_their_entries_too() {
    let names: Vec<String> = (0..4000).map(|number| number.to_string()).collect();
    let payload: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), b"".as_slice())).collect();
    let writer = Writer::with(&payload);
    let fs = serve(writer.path());
    for _ in 0..6 {
        fs.walk_from(ROOT, "0").unwrap();
        writer.publish(&payload);
    }
    fs.walk_from(ROOT, "0").unwrap();
    let statistics = fs.statistics();
    assert_eq!((statistics.generations, statistics.volumes[0].evictions), (1 + 4, 2));
}

#[test]
fn plain_volume_limits_what_the_guest_holds() {
    let directory = plain_directory(&[("token", b"")]);
    let fs = serve(directory.path());
    for length in 1..=200 {
        fs::write(directory.path().join("token"), vec![b'x'; length]).unwrap();
        fs.walk_from(ROOT, "token").unwrap();
    }
    let statistics = fs.statistics();
    assert_eq!((statistics.generations, statistics.live_nodes), (65, 65));
}

#[test]
fn links_of_keys_that_come_and_go_are_limited() {
    let writer = Writer::with(&[]);
    let fs = serve(writer.path());
    let names = |round: usize| (0..400).map(move |number| format!("{round}-{number}"));
    for round in 0..14 {
        let names: Vec<String> = names(round).collect();
        let payload: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), b"".as_slice())).collect();
        writer.publish(&payload);
        for name in &names {
            fs.look_up(ROOT, name).unwrap();
        }
    }
    // All but the current ones were taken when there were more than 4096 of them beside.
    assert!(fs.statistics().live_nodes <= 400 + 4096, "{:?}", fs.statistics());
    assert!(fs.statistics().volumes[0].evictions > 0);
}

/// One full walk to `..data/NAME` for two files of one generation, and one to `token`.
fn read_all(fs: &ProjectedFs) -> (u64, u64, u64) {
    let number = |content: Vec<u8>| String::from_utf8(content).unwrap().trim().parse().unwrap();
    let token = number(fs.open_and_read("token").unwrap());
    let opened = fs.walk_from(ROOT, "..data").unwrap();
    let pair = ["a/key", "crt"].map(|path| {
        let walk = fs.walk_from(opened.id, path).unwrap();
        let content = number(fs.content(walk.id).unwrap());
        fs.forget_all(&walk.looked_up);
        content
    });
    fs.forget_all(&opened.looked_up);
    (token, pair[0], pair[1])
}

#[test]
fn readers_never_see_stale_torn_or_missing_files_while_the_writer_runs_as_fast_as_it_can() {
    const READS: u64 = 1500;
    const READS_AFTER_A_RISE: u64 = 200;
    let writer = Writer::with(&[("token", b"0"), ("a/key", b"0"), ("crt", b"0")]);
    let fs = serve(writer.path());
    let (floor, readers_left) = (AtomicU64::new(0), AtomicUsize::new(2));
    let read = || {
        // Also when it panics, or the writer would go on for ever.
        let _leave = OnDrop(|| {
            readers_left.fetch_sub(1, Ordering::Release);
        });
        let (mut reads, mut last, mut risen) = (0, 0, 0);
        while reads < READS || risen < READS_AFTER_A_RISE {
            let published = floor.load(Ordering::Acquire);
            risen += u64::from(published > last);
            last = published;
            let (token, key, crt) = read_all(&fs);
            assert!(token >= published && key >= published, "{token} {key} < {published}");
            assert_eq!(key, crt, "torn pair");
            reads += 1;
        }
    };
    thread::scope(|scope| {
        let readers = [scope.spawn(read), scope.spawn(read)];
        let mut number = 0_u64;
        while readers_left.load(Ordering::Acquire) > 0 {
            number += 1;
            let content = number.to_string().into_bytes();
            let payload: [(&str, &[u8]); 3] = [("token", &content), ("a/key", &content), ("crt", &content)];
            writer.publish_and(&payload, || floor.store(number, Ordering::Release));
            // Bursts without a pause, then single updates: else the readers' turns would come only when the
            // scheduler stops the writer.
            thread::sleep(Duration::from_micros(50 * u64::from(number % 100 > 50)));
        }
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    let statistics = fs.statistics();
    assert_eq!((statistics.live_nodes, statistics.generations), (0, 1));
    assert_eq!((statistics.volumes[0].load_failures, statistics.volumes[0].evictions), (0, 0));
}

/// Runs a closure when the scope is left, however that is.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
