//! The reader of the freshness test: reads files of a projected volume and checks each read against a floor.
//!
//! The floor is the sequence number that the host last made visible. It arrives in a page of this process's memory
//! into which the host writes straight through its mapping of guest RAM: no file system, no cache, no device lies
//! between. The first output line says where the page is; see [`tests::freshness`] for its layout.

use super::pagemap::Pagemap;
use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tests::freshness::{Announcement, FLOOR, FLOOR_CHECK, MAGIC, READS, Report, STOP, sequence_of};

/// A read counts as close behind a rotation when the floor had risen less than this before.
const CLOSE: Duration = Duration::from_millis(5);

/// A page of its own; atomics, since the host writes behind the compiler's back.
#[repr(C, align(4096))]
struct Page([AtomicU64; 512]);

impl Page {
    fn word(&self, index: usize) -> &AtomicU64 {
        let [first, ..] = &self.0;
        self.0.get(index).unwrap_or(first)
    }

    fn floor(&self) -> u64 {
        loop {
            let (floor, check) = (self.word(FLOOR), self.word(FLOOR_CHECK));
            let floor = floor.load(Ordering::SeqCst);
            if floor == !check.load(Ordering::SeqCst) {
                return floor;
            }
        }
    }
}

/// Opens `file`, reads it to its end and closes it: these system calls and no others, for counting requests.
pub(crate) fn read_once(file: &str) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut content = Vec::new();
    let mut opened = File::open(file).with_context(|| format!("Cannot open {file}"))?;
    while let len @ 1.. = opened.read(&mut buffer).with_context(|| format!("Cannot read {file}"))? {
        content.extend_from_slice(buffer.get(..len).unwrap_or_default());
    }
    drop(opened);
    Ok(std::io::stdout().write_all(&content)?)
}

/// Reads `files` of the volume mounted at `volume` until the host says stop.
pub(crate) fn read_loop(volume: &str, files: &[&str]) -> Result<()> {
    let &[first, second, ..] = files else { bail!("read-loop needs two files") };
    // The page must stay where it is: no compaction. It is checked at the end.
    let _ = fs::write("/proc/sys/vm/compact_unevictable_allowed", "0");
    let _ = fs::write("/proc/sys/vm/compaction_proactiveness", "0");
    let page = Box::new(Page([const { AtomicU64::new(0) }; 512]));
    let magic = u64::from_le_bytes(random()?);
    page.word(FLOOR_CHECK).store(!0, Ordering::SeqCst);
    page.word(MAGIC).store(magic, Ordering::SeqCst);
    let pagemap = Pagemap::open()?;
    let address = *pagemap.physical_addresses(&page.0)?.first().context("No page")?;
    println!("{}", serde_json::to_string(&Announcement { address, magic })?);
    let floor = Floor::new(&page);
    let threads = thread::available_parallelism()?.get();
    let reports = thread::scope(|scope| {
        let reader = || Reader { floor: &floor, volume, report: Report::default() }.run(first, second);
        scope.spawn(|| floor.watch());
        let readers = (0..threads).map(|_| scope.spawn(reader)).collect::<Vec<_>>();
        readers.into_iter().map(|r| r.join().unwrap_or_default()).collect::<Vec<_>>()
    });
    ensure!(
        pagemap.physical_addresses(&page.0)?.first() == Some(&address),
        "The kernel moved the floor's page"
    );
    let mut total = Report::default();
    reports.iter().for_each(|report| total.add(report));
    println!("{}", serde_json::to_string(&total)?);
    Ok(())
}

fn random() -> Result<[u8; 8]> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

struct Reader<'a> {
    floor: &'a Floor<'a>,
    volume: &'a str,
    report: Report,
}

impl Reader<'_> {
    fn run(mut self, first: &str, second: &str) -> Report {
        while self.floor.page.word(STOP).load(Ordering::SeqCst) == 0 {
            for file in [first, second] {
                let floor = self.floor.look();
                let read = read_by_path(&format!("{}/{file}", self.volume));
                self.count(read, floor);
            }
            let floor = self.floor.look();
            let pair = read_pair(self.volume, first, second);
            if let Ok((Some(one), Some(two))) = &pair
                && one != two
            {
                self.report.torn += 1;
            }
            self.count(pair.map(|(one, two)| one.zip(two).map(|(one, two)| one.min(two))), floor);
        }
        self.report
    }

    /// `sequence` is none for a file that is itself torn.
    fn count(&mut self, sequence: std::io::Result<Option<u64>>, (floor, is_close): (u64, bool)) {
        self.report.reads += 1;
        self.report.close_reads += u64::from(is_close);
        self.floor.page.word(READS).fetch_add(1, Ordering::SeqCst);
        match sequence {
            Ok(Some(sequence)) if sequence < floor => {
                self.report.stale += 1;
                self.report.close_stale += u64::from(is_close);
            }
            Ok(Some(_)) => {}
            Ok(None) => self.report.torn += 1,
            Err(error) if error.kind() == ErrorKind::NotFound => self.report.not_found += 1,
            Err(error) => {
                self.report.other_errors += 1;
                self.report.first_error.get_or_insert_with(|| error.to_string());
            }
        }
    }
}

/// What all readers together know about the floor.
struct Floor<'a> {
    page: &'a Page,
    state: Mutex<FloorState>,
}

struct FloorState {
    value: u64,
    looked: Instant,
    /// The last time at which the floor had not yet risen to `value`.
    rose_after: Option<Instant>,
}

impl<'a> Floor<'a> {
    fn new(page: &'a Page) -> Self {
        Self { page, state: Mutex::new(FloorState { value: 0, looked: Instant::now(), rose_after: None }) }
    }

    /// The floor, and whether it certainly rose less than [`CLOSE`] before.
    fn look(&self) -> (u64, bool) {
        let mut state = self.state.lock();
        let value = self.page.floor();
        let now = Instant::now();
        if value > state.value {
            state.rose_after = Some(state.looked);
            state.value = value;
        }
        state.looked = now;
        (value, state.rose_after.is_some_and(|rose| now.duration_since(rose) < CLOSE))
    }

    /// Looks often, so that the time at which the floor rises is known well, until the host says stop.
    fn watch(&self) {
        while self.page.word(STOP).load(Ordering::SeqCst) == 0 {
            self.look();
            thread::sleep(Duration::from_micros(500));
        }
    }
}

fn read_by_path(path: &str) -> std::io::Result<Option<u64>> {
    Ok(sequence_of(&fs::read(path)?))
}

/// Both files through one opened `..data`, which is one generation.
fn read_pair(volume: &str, first: &str, second: &str) -> std::io::Result<(Option<u64>, Option<u64>)> {
    let directory =
        openat(CWD, format!("{volume}/..data"), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let read = |name: &str| {
        let mut content = Vec::new();
        let file = openat(directory.as_fd(), name, OFlags::RDONLY, Mode::empty())?;
        File::from(file).read_to_end(&mut content)?;
        std::io::Result::Ok(sequence_of(&content))
    };
    Ok((read(first)?, read(second)?))
}
