//! The guest's serial port: a 16550A by vm-superio, with flow control towards whoever feeds its input.

use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::BusDevice;
use crate::interrupt::Interrupt;

/// Length of the register block in bytes.
pub const LEN: u64 = 8;

struct Line(Arc<dyn Interrupt>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

struct InputDrained(EventFd);

impl SerialEvents for InputDrained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // Fails only when the counter is full, and then the reader has its wake-up already.
        let _ = self.0.write(1);
    }
}

/// A 16550A whose output goes to a writer and whose input is [fed](Serial::enqueue).
pub struct Serial {
    uart: Mutex<Uart<Line, InputDrained, Box<dyn Write + Send>>>,
}

impl std::fmt::Debug for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serial").finish_non_exhaustive()
    }
}

impl Serial {
    /// A port that raises `interrupt`, writes to `output` and signals `input_drained` when the guest has read all
    /// input, so that its feeder goes on. An `output` that blocks, blocks the vCPU that writes.
    pub fn new(interrupt: Arc<dyn Interrupt>, output: Box<dyn Write + Send>, input_drained: EventFd) -> Self {
        Self { uart: Mutex::new(Uart::with_events(Line(interrupt), InputDrained(input_drained), output)) }
    }

    /// How many bytes of input [`Serial::enqueue`] takes now.
    pub fn input_capacity(&self) -> usize {
        self.uart.lock().fifo_capacity()
    }

    /// Feeds input to the guest; returns how many bytes it took. In the UART's loop mode input is lost, as on hardware.
    pub fn enqueue(&self, input: &[u8]) -> usize {
        self.uart.lock().enqueue_raw_bytes(input).unwrap_or(0)
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let ([value], Ok(offset)) = (data, u8::try_from(offset)) {
            *value = self.uart.lock().read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (&[value], Ok(offset)) = (data, u8::try_from(offset)) {
            // A byte that the output did not take is lost, as on a line nobody listens to.
            let _ = self.uart.lock().write(offset, value);
        }
    }
}
