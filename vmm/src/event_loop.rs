//! The main thread's loop: queue notifications, console input, signals, the end.
//!
//! Nothing here polls: the loop sleeps until a device's queue, the user, a signal or the end of the grace wakes it.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::console::{ESCAPE_HELP, Input, Stdin};
use crate::lifecycle::ExitReason;
use crate::logging;
use crate::machine::{Error, Parts};
use crate::spec::{SerialSpec, VmSpec};

/// The signals that Laterna handles, taken over from their default actions.
#[derive(Debug)]
pub struct HostSignals(SignalDelivery<UnixStream, SignalOnly>);

impl HostSignals {
    /// Takes them over; what arrives from now on waits for the event loop. SIGHUP stays ignored under nohup(1).
    ///
    /// # Errors
    /// When the host refuses.
    pub fn take() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        let mut signals = vec![SIGTERM, SIGINT, SIGQUIT, SIGUSR1];
        if !is_ignored(SIGHUP) {
            signals.push(SIGHUP);
        }
        Ok(Self(SignalDelivery::with_pipe(read, write, SignalOnly, signals)?))
    }
}

/// Whether this process was started with a signal ignored (proc(5), `SigIgn`).
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

/// What outlives a reset of the guest: signals, our stdin, a requested stop.
pub(crate) struct Host {
    signals: HostSignals,
    stdin: Option<Stdin>,
    stop: Stop,
}

#[derive(Debug)]
struct Stop {
    grace: Duration,
    deadline: Option<Instant>,
}

impl Host {
    /// Takes over stdin, for a serial port on stdio.
    pub(crate) fn new(spec: &VmSpec, signals: HostSignals) -> io::Result<Self> {
        let stdin = (spec.serial == SerialSpec::Stdio).then(Stdin::take).transpose()?;
        if stdin.as_ref().is_some_and(Stdin::is_terminal) {
            log::info!("{ESCAPE_HELP}");
        }
        Ok(Self { signals, stdin, stop: Stop { grace: spec.shutdown_grace, deadline: None } })
    }

    /// Whether the VM was asked to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.deadline.is_some()
    }
}

/// The loop of one boot.
pub(crate) struct EventLoop<'a> {
    manager: EventManager<Box<dyn MutEventSubscriber + 'a>>,
    parts: Arc<Parts>,
    host: Rc<RefCell<&'a mut Host>>,
}

impl<'a> EventLoop<'a> {
    /// Subscribes to everything that can happen.
    pub(crate) fn new(parts: &Arc<Parts>, host: &'a mut Host) -> Result<Self, Error> {
        let manager = EventManager::new()
            .map_err(|error| Error::Host { what: "epoll", error: io::Error::other(error) })?;
        let has_stdin = host.stdin.is_some();
        let host = Rc::new(RefCell::new(host));
        let mut event_loop = Self { manager, parts: Arc::clone(parts), host: Rc::clone(&host) };
        event_loop.add(Ended(Arc::clone(parts)));
        event_loop.add(Signals { parts: Arc::clone(parts), host: Rc::clone(&host) });
        event_loop.add(Queues(Arc::clone(parts)));
        if has_stdin {
            event_loop.add(ConsoleInput { parts: Arc::clone(parts), host, is_reading: false });
        }
        Ok(event_loop)
    }

    fn add(&mut self, subscriber: impl MutEventSubscriber + 'a) {
        self.manager.add_subscriber(Box::new(subscriber));
    }

    /// Runs until the VM has ended.
    pub(crate) fn run(&mut self) -> Result<ExitReason, Error> {
        loop {
            if let Some(reason) = self.parts.exit.reason() {
                return Ok(reason);
            }
            let timeout = self.host.borrow().stop.timeout_ms();
            match self.manager.run_with_timeout(timeout) {
                Ok(_) => {}
                Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(Error::Host { what: "epoll", error: io::Error::other(error) }),
            }
            self.parts.wakeups.fetch_add(1, Ordering::Relaxed);
            if self.host.borrow().stop.is_over() {
                log::warn!("The guest did not power off in time");
                self.parts.exit.raise(ExitReason::Stopped);
            }
        }
    }
}

impl Stop {
    /// What epoll waits at most; -1 is for ever.
    fn timeout_ms(&self) -> i32 {
        let Some(deadline) = self.deadline else { return -1 };
        let left = deadline.saturating_duration_since(Instant::now());
        i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX)
    }

    fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

/// Wakes the loop when the VM has ended.
struct Ended(Arc<Parts>);

impl MutEventSubscriber for Ended {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {}

    fn init(&mut self, ops: &mut EventOps) {
        subscribe(ops, Events::new(self.0.exit.event(), EventSet::IN));
    }
}

/// Driver notifications: serve the queue that was notified.
struct Queues(Arc<Parts>);

impl Queues {
    /// Which queue of which device an event is about, in one number.
    fn data(device: usize, queue: usize) -> u32 {
        u32::try_from(device << 16 | queue).unwrap_or(u32::MAX)
    }
}

impl MutEventSubscriber for Queues {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let (device, queue) = (events.data() >> 16, events.data() & 0xffff);
        let device = usize::try_from(device).ok().and_then(|index| self.0.virtio.get(index));
        let (Some(device), Ok(queue)) = (device, u16::try_from(queue)) else { return };
        if let Some(event) = device.queue_events().get(usize::from(queue)) {
            // Empty when another wake-up has already served this notification.
            let _ = event.read();
        }
        device.serve_queue(queue);
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (device_index, device) in self.0.virtio.iter().enumerate() {
            for (queue_index, event) in device.queue_events().iter().enumerate() {
                let data = Self::data(device_index, queue_index);
                subscribe(ops, Events::with_data(event, data, EventSet::IN));
            }
        }
    }
}

/// Signals: the power button, the end, statistics.
struct Signals<'a> {
    parts: Arc<Parts>,
    host: Rc<RefCell<&'a mut Host>>,
}

impl Signals<'_> {
    fn request_stop(&self, stop: &mut Stop) {
        if stop.deadline.is_some() {
            self.parts.exit.raise(ExitReason::Stopped);
            return;
        }
        stop.deadline = Some(Instant::now() + stop.grace);
        log::info!("Pressing the power button; the guest has {} s to power off", stop.grace.as_secs());
        if let Err(error) = self.parts.power_button.trigger() {
            log::warn!("The power button cannot be pressed: {error}");
        }
    }
}

impl MutEventSubscriber for Signals<'_> {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let mut host = self.host.borrow_mut();
        let pending: Vec<_> = host.signals.0.pending().collect();
        for signal in pending {
            match signal {
                SIGTERM | SIGINT => self.request_stop(&mut host.stop),
                SIGUSR1 => logging::report("statistics", "statistics", &self.parts.statistics()),
                _ => self.parts.exit.raise(ExitReason::Stopped),
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let host = self.host.borrow();
        subscribe(ops, Events::new(host.signals.0.get_read(), EventSet::IN));
    }
}

/// The user's input into the serial port, as fast as the guest takes it.
struct ConsoleInput<'a> {
    parts: Arc<Parts>,
    host: Rc<RefCell<&'a mut Host>>,
    is_reading: bool,
}

impl ConsoleInput<'_> {
    fn stdin_events() -> Events {
        Events::new(&rustix::stdio::stdin(), EventSet::IN)
    }

    /// Watches stdin only while the guest has room for what comes from there.
    fn set_reading(&mut self, is_reading: bool, ops: &mut EventOps) {
        if is_reading == self.is_reading {
            return;
        }
        let changed =
            if is_reading { ops.add(Self::stdin_events()) } else { ops.remove(Self::stdin_events()) };
        match changed {
            Ok(()) => self.is_reading = is_reading,
            // A regular file cannot be waited for; there is nothing to type into it either.
            Err(error) => {
                log::debug!("No console input: {error}");
                self.host.borrow_mut().stdin = None;
            }
        }
    }

    fn read(&mut self, ops: &mut EventOps) {
        let capacity = self.parts.serial.input_capacity();
        if capacity == 0 {
            self.set_reading(false, ops);
            return;
        }
        let input = match self.host.borrow_mut().stdin.as_mut() {
            Some(stdin) => stdin.read(capacity),
            None => Input::End,
        };
        match input {
            Input::Bytes(bytes) => {
                self.parts.serial.enqueue(&bytes);
            }
            Input::Quit => self.parts.exit.raise(ExitReason::Stopped),
            Input::End => {
                self.set_reading(false, ops);
                self.host.borrow_mut().stdin = None;
            }
        }
    }
}

impl MutEventSubscriber for ConsoleInput<'_> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.parts.input_drained.as_raw_fd() {
            let _ = self.parts.input_drained.read();
            let has_stdin = self.host.borrow().stdin.is_some();
            self.set_reading(has_stdin, ops);
        } else {
            self.read(ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        subscribe(ops, Events::new(&self.parts.input_drained, EventSet::IN));
        self.set_reading(true, ops);
    }
}

fn subscribe(ops: &mut EventOps, events: Events) {
    // Cannot fail: each of these is a descriptor of ours that epoll can watch, added once.
    if let Err(error) = ops.add(events) {
        log::error!("An event source cannot be watched: {error}");
    }
}
