//! What the crate logs, kept for tests to look at. Tests run in parallel, so lines are told apart by the path
//! of the volume.

use std::path::Path;
use std::sync::Once;

use parking_lot::Mutex;

struct Recorder(Mutex<Vec<String>>);

static RECORDER: Recorder = Recorder(Mutex::new(Vec::new()));

impl log::Log for Recorder {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().push(format!("{} {}", record.level(), record.args()));
    }

    fn flush(&self) {}
}

/// Begins to record.
pub(super) fn record() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        log::set_logger(&RECORDER).unwrap();
        log::set_max_level(log::LevelFilter::Debug);
    });
}

/// All lines so far that name a volume.
pub(super) fn lines_about(volume: &Path) -> Vec<String> {
    let volume = format!("{volume:?}");
    RECORDER.0.lock().iter().filter(|line| line.contains(&volume)).cloned().collect()
}
