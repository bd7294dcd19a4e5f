//! All that a stream has said, and waiting for something in it.

use anyhow::Result;
use parking_lot::{Condvar, Mutex};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    text: String,
    is_closed: bool,
}

/// Collects a stream in a thread of its own, which ends with the stream.
#[derive(Debug)]
pub(super) struct Transcript(Arc<Shared>);

impl Transcript {
    pub(super) fn of(stream: File) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        thread::Builder::new().name("transcript".into()).spawn(move || collect(stream, &writer))?;
        Ok(Self(shared))
    }

    /// Waits until `find` finds something. `None` when the time is over, or the stream with nothing found.
    pub(super) fn wait<T>(&self, timeout: Duration, mut find: impl FnMut(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + timeout;
        let mut state = self.0.state.lock();
        loop {
            if let Some(found) = find(&state.text) {
                return Some(found);
            }
            if state.is_closed || self.0.changed.wait_until(&mut state, deadline).timed_out() {
                return find(&state.text);
            }
        }
    }

    pub(super) fn text(&self) -> String {
        self.0.state.lock().text.clone()
    }

    pub(super) fn tail(&self) -> String {
        let text = self.text();
        let lines = text.lines().collect::<Vec<_>>();
        lines.get(lines.len().saturating_sub(30)..).unwrap_or_default().join("\n")
    }
}

fn collect(mut stream: File, shared: &Shared) {
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer);
        let mut state = shared.state.lock();
        match read {
            // Lossy for bytes that are no text or are cut in two; markers and test output are ASCII.
            Ok(len @ 1..) => {
                let bytes = buffer.get(..len).unwrap_or_default();
                // A terminal may end its lines with a carriage return, too.
                state.text.push_str(&String::from_utf8_lossy(bytes).replace('\r', ""));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // A terminal whose user is gone reads as EIO.
            Ok(0) | Err(_) => state.is_closed = true,
        }
        shared.changed.notify_all();
        if state.is_closed {
            return;
        }
    }
}
