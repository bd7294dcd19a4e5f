//! How a VM ends, and how it is asked to.
//!
//! ```text
//!             power-off, panic, triple fault, KVM error
//!   running ─────────────────────────────────────────────────────────► ended (ExitReason)
//!    │   ▲                                                               ▲   ▲
//!    │   └── reset register, --on-reboot reset (a new machine, same process) │
//!    │ SIGTERM, SIGINT: power button                                     │   │
//!    └──────────────► stopping ── power-off ─────────────────────────────┘   │
//!                        └── second signal, or --shutdown-grace over ────────┘
//! ```
//! The first reason wins; whoever meets one (a vCPU, a device, a signal) [raises](ExitLatch::raise) it.

use std::fmt;
use std::io;

use devices::GuestEvent;
use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Why the VM ended. Each has an exit code of its own ([`ExitReason::code`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest powered off.
    PowerOff,
    /// The guest reset the machine by the ACPI reset register.
    Reset,
    /// The guest reported a panic by pvpanic.
    Panic,
    /// A vCPU met a triple fault.
    TripleFault,
    /// Stopped at once: second signal, end of the grace, or the console's escape sequence.
    Stopped,
    /// KVM gave up on the guest.
    KvmFailure(String),
}

impl ExitReason {
    /// The exit code of `laterna run`. 1 is a failure of Laterna itself, 2 a mistake in the arguments.
    pub fn code(&self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Reset => 3,
            Self::Panic => 4,
            Self::TripleFault => 5,
            Self::Stopped => 6,
            Self::KvmFailure(_) => 7,
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("The guest powered off"),
            Self::Reset => f.write_str("The guest asked for a reset"),
            Self::Panic => f.write_str("The guest's kernel panicked"),
            Self::TripleFault => f.write_str("The guest met a triple fault"),
            Self::Stopped => f.write_str("The VM was stopped at once"),
            Self::KvmFailure(what) => {
                write!(f, "This host's KVM cannot run the guest: {what} (try: laterna doctor)")
            }
        }
    }
}

/// Holds the first [`ExitReason`] and wakes the event loop.
#[derive(Debug)]
pub struct ExitLatch {
    reason: Mutex<Option<ExitReason>>,
    event: EventFd,
}

impl ExitLatch {
    /// An empty latch.
    ///
    /// # Errors
    /// When there is no eventfd to be had.
    pub fn new() -> io::Result<Self> {
        Ok(Self { reason: Mutex::new(None), event: EventFd::new(EFD_NONBLOCK)? })
    }

    /// Ends the VM with `reason`, unless it has ended already.
    pub fn raise(&self, reason: ExitReason) {
        let mut slot = self.reason.lock();
        if slot.is_none() {
            *slot = Some(reason);
            // Fails only when the counter is full: the loop has its wake-up already.
            let _ = self.event.write(1);
        }
    }

    /// What a guest's own report means.
    pub fn raise_guest_event(&self, event: GuestEvent) {
        match event {
            GuestEvent::PowerOff => self.raise(ExitReason::PowerOff),
            GuestEvent::Reset => self.raise(ExitReason::Reset),
            GuestEvent::Panic => self.raise(ExitReason::Panic),
            GuestEvent::CrashLoaded => log::info!("The guest panicked and goes on with its crash kernel"),
        }
    }

    /// The reason, once there is one.
    pub fn reason(&self) -> Option<ExitReason> {
        self.reason.lock().clone()
    }

    /// Becomes readable when there is a reason.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}
