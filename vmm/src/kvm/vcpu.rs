//! vCPUs: one thread each, which runs the guest and carries its exits to the buses.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::exit::{ExitCounters, describe_internal_error};
use super::vm::{Error, Vm};
use crate::bus::Bus;
use crate::lifecycle::{ExitLatch, ExitReason};

/// The address spaces, the place for bad news and the counters that all vCPUs share.
#[derive(Debug)]
pub struct Shared {
    /// I/O ports.
    pub ports: Bus,
    /// Physical addresses that are not RAM.
    pub mmio: Bus,
    /// Where a vCPU says that the VM has ended.
    pub exit: Arc<ExitLatch>,
    /// Exits so far.
    pub counters: ExitCounters,
}

/// The signal that makes a vCPU leave the guest.
fn kick_signal() -> i32 {
    SIGRTMIN()
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Makes the kick signal harmless to everything but a blocking call. Once per process.
///
/// # Errors
/// When the handler cannot be installed.
pub fn prepare_kick_signal() -> io::Result<()> {
    register_signal_handler(kick_signal(), on_kick).map_err(io::Error::from)
}

/// The VM's vCPUs; dropping them stops their threads.
#[derive(Debug)]
pub struct Vcpus {
    is_stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Vcpus {
    /// Creates `count` vCPUs in `vm`, not yet running.
    ///
    /// # Errors
    /// When KVM refuses one.
    pub fn create(vm: &Vm, count: u8) -> Result<Vec<VcpuFd>, Error> {
        (0..u64::from(count))
            .map(|id| vm.fd.create_vcpu(id).map_err(Error::call("KVM_CREATE_VCPU")))
            .collect()
    }

    /// Starts a thread `vcpu-N` for each.
    ///
    /// # Errors
    /// When the host does not give a thread.
    pub fn start(vcpus: Vec<VcpuFd>, shared: &Arc<Shared>) -> io::Result<Self> {
        let mut running = Self { is_stopping: Arc::default(), threads: Vec::new() };
        for (id, vcpu) in vcpus.into_iter().enumerate() {
            let (shared, is_stopping) = (Arc::clone(shared), Arc::clone(&running.is_stopping));
            let thread = thread::Builder::new()
                .name(format!("vcpu-{id}"))
                .spawn(move || run(vcpu, &shared, &is_stopping))?;
            running.threads.push(thread);
        }
        Ok(running)
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // A kick that arrives between the check of the flag and KVM_RUN is lost, so it is repeated.
            while !thread.is_finished() {
                if thread.kill(kick_signal()).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(1));
            }
            let _ = thread.join();
        }
    }
}

fn run(mut vcpu: VcpuFd, shared: &Shared, is_stopping: &AtomicBool) {
    while !is_stopping.load(Ordering::SeqCst) {
        if let Some(reason) = run_once(&mut vcpu, shared) {
            shared.exit.raise(reason);
            return;
        }
    }
}

/// Runs the guest until its next exit and handles that; a reason means that the VM has ended.
fn run_once(vcpu: &mut VcpuFd, shared: &Shared) -> Option<ExitReason> {
    let counters = &shared.counters;
    match vcpu.run() {
        Ok(VcpuExit::IoIn(port, data)) => {
            ExitCounters::count(&counters.pio);
            shared.ports.read(port.into(), data);
            None
        }
        Ok(VcpuExit::IoOut(port, data)) => {
            ExitCounters::count(&counters.pio);
            shared.ports.write(port.into(), data);
            None
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            ExitCounters::count(&counters.mmio);
            shared.mmio.read(address, data);
            None
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            ExitCounters::count(&counters.mmio);
            shared.mmio.write(address, data);
            None
        }
        Ok(VcpuExit::Shutdown) => Some(ExitReason::TripleFault),
        Ok(VcpuExit::InternalError) => Some(ExitReason::KvmFailure(describe_internal_error(vcpu))),
        Ok(VcpuExit::FailEntry(reason, cpu)) => Some(ExitReason::KvmFailure(format!(
            "entry failed on host CPU {cpu}, hardware reason {reason:#x}"
        ))),
        Ok(VcpuExit::Intr) => {
            ExitCounters::count(&counters.other);
            None
        }
        Ok(exit) => Some(ExitReason::KvmFailure(format!("unexpected exit {exit:?}"))),
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
            ExitCounters::count(&counters.other);
            None
        }
        Err(error) => Some(ExitReason::KvmFailure(format!("KVM_RUN failed: {error}"))),
    }
}
