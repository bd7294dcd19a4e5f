//! Runs a few instructions in 64-bit ring 0 under the real KVM: what every kernel executes, one VM for each.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use kvm_bindings::kvm_segment;
use kvm_ioctls::VcpuExit;
use linux_loader::bootparam::setup_header;
use vm_memory::{Bytes, GuestAddress};

use super::Check;
use crate::boot::kernel::Entry;
use crate::boot::x86_64;
use crate::kvm::{BareVm, describe_internal_error};
use crate::memory;

/// RAM of the payload's VM: up to the end of the boot page tables.
const RAM_LEN_BYTES: u64 = 0x1_0000;
const IDT: u64 = 0x1000;
const CODE: u64 = 0x2000;
const HANDLER: u64 = 0x3000;
const DATA: u64 = 0x6000;
/// Beyond RAM, within the identity map.
const MMIO: u64 = 0x10_0000;
const MMIO_VALUE: u32 = 0x1234_5678;
const CODE_SELECTOR: u64 = 0x10;
const DONE_PORT: u16 = 0x99;
const TIMEOUT: Duration = Duration::from_secs(5);
/// More exits than any payload makes.
const MAX_EXITS: usize = 16;

/// Instructions, and what they are.
struct Payload {
    name: &'static str,
    code: &'static [u8],
}

/// `mov al,1; out 0x99,al; hlt`
const DONE: &[u8] = &[0xb0, 0x01, 0xe6, 0x99, 0xf4];

const PAYLOADS: [Payload; 5] = [
    Payload {
        name: "cmpxchg16b",
        code: &[
            0xbf, 0x00, 0x60, 0x00, 0x00, // mov edi, DATA
            0x31, 0xc0, 0x31, 0xd2, // xor eax, eax; xor edx, edx
            0xbb, 0x01, 0x00, 0x00, 0x00, // mov ebx, 1
            0xb9, 0x02, 0x00, 0x00, 0x00, // mov ecx, 2
            0xf0, 0x48, 0x0f, 0xc7, 0x0f, // lock cmpxchg16b [rdi]
            0x48, 0x83, 0x3f, 0x01, // cmp qword [rdi], 1
            0x75, 0x04, // jne past the report
        ],
    },
    Payload {
        name: "xsave and xrstor",
        code: &[
            0x0f, 0x20, 0xe0, // mov rax, cr4
            0x0d, 0x00, 0x02, 0x04, 0x00, // or eax, OSFXSR | OSXSAVE
            0x0f, 0x22, 0xe0, // mov cr4, rax
            0x31, 0xc9, // xor ecx, ecx
            0xb8, 0x03, 0x00, 0x00, 0x00, // mov eax, x87 | SSE
            0x31, 0xd2, // xor edx, edx
            0x0f, 0x01, 0xd1, // xsetbv
            0xbf, 0x00, 0x60, 0x00, 0x00, // mov edi, DATA
            0x48, 0x0f, 0xae, 0x27, // xsave64 [rdi]
            0x48, 0x0f, 0xae, 0x2f, // xrstor64 [rdi]
        ],
    },
    Payload {
        name: "int3 with a handler",
        code: &[
            0xcc, // int3
            0x80, 0xf9, 0x01, // cmp cl, 1
            0x75, 0x04, // jne past the report
        ],
    },
    Payload {
        name: "MMIO read and write",
        code: &[
            0xbf, 0x00, 0x00, 0x10, 0x00, // mov edi, MMIO
            0x8b, 0x07, // mov eax, [rdi]
            0x89, 0x47, 0x04, // mov [rdi+4], eax
        ],
    },
    Payload { name: "hlt", code: &[] },
];

/// `mov cl,1; iretq`
const HANDLER_CODE: &[u8] = &[0xb1, 0x01, 0x48, 0xcf];

const ADVICE: &str = "this host's KVM cannot run unmodified kernels; use a host with hardware virtualisation";

/// Tries each payload.
pub(super) fn checks() -> Vec<Check> {
    PAYLOADS
        .iter()
        .map(|payload| {
            let name = format!("guest executes {}", payload.name);
            match run_with_timeout(payload) {
                Ok(()) => Check::pass(name, "works"),
                Err(what) => Check::fail(name, what, ADVICE),
            }
        })
        .collect()
}

/// A payload that hangs is left behind in its thread.
fn run_with_timeout(payload: &'static Payload) -> Result<(), String> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new()
        .name("payload".to_owned())
        .spawn(move || {
            // Nobody listens any more after the time-out.
            let _ = sender.send(run(payload));
        })
        .map_err(|error| format!("no thread to run it: {error}"))?;
    receiver
        .recv_timeout(TIMEOUT)
        .unwrap_or_else(|_| Err(format!("did not end within {} s", TIMEOUT.as_secs())))
}

/// What the payload did that the host can see.
#[derive(Default)]
struct Seen {
    is_done: bool,
    has_halted: bool,
    mmio: Option<u32>,
}

fn run(payload: &Payload) -> Result<(), String> {
    let memory = memory::allocate(RAM_LEN_BYTES).map_err(|error| error.to_string())?;
    let write = |address, bytes: &[u8]| {
        memory.write_slice(bytes, GuestAddress(address)).map_err(|error| error.to_string())
    };
    x86_64::write_boot_tables(&memory).map_err(|error| error.to_string())?;
    write(IDT + 16 * 3, &interrupt_gate(HANDLER))?;
    write(HANDLER, HANDLER_CODE)?;
    write(CODE, &[payload.code, DONE].concat())?;

    let mut vm = BareVm::create(&memory).map_err(|error| error.to_string())?;
    let entry = Entry::Linux64(GuestAddress(CODE), setup_header::default());
    vm.start_at(entry, kvm_segment { base: IDT, limit: 0xfff, ..Default::default() })
        .map_err(|error| format!("KVM refused the vCPU's state: {error}"))?;
    let seen = exits_of(&mut vm)?;

    let exchanged: [u64; 2] = memory.read_obj(GuestAddress(DATA)).map_err(|error| error.to_string())?;
    match payload.name {
        "cmpxchg16b" if exchanged != [1, 2] => Err("it did not exchange the value".to_owned()),
        "MMIO read and write" if seen.mmio != Some(MMIO_VALUE) => Err("the value was lost".to_owned()),
        _ if !seen.is_done => Err("it ended without its report".to_owned()),
        _ if !seen.has_halted => Err("it did not halt".to_owned()),
        _ => Ok(()),
    }
}

fn exits_of(vm: &mut BareVm) -> Result<Seen, String> {
    let mut seen = Seen::default();
    for _ in 0..MAX_EXITS {
        match vm.vcpu.run() {
            Ok(VcpuExit::IoOut(DONE_PORT, _)) => seen.is_done = true,
            Ok(VcpuExit::MmioRead(MMIO, data)) => {
                for (byte, value) in data.iter_mut().zip(MMIO_VALUE.to_le_bytes()) {
                    *byte = value;
                }
            }
            Ok(VcpuExit::MmioWrite(_, data)) => seen.mmio = data.try_into().ok().map(u32::from_le_bytes),
            Ok(VcpuExit::Hlt) => {
                seen.has_halted = true;
                return Ok(seen);
            }
            Ok(VcpuExit::InternalError) => return Err(describe_internal_error(&mut vm.vcpu)),
            Ok(VcpuExit::Shutdown) => return Err("triple fault".to_owned()),
            Ok(exit) => return Err(format!("unexpected exit {exit:?}")),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(format!("KVM_RUN failed: {error}")),
        }
    }
    Err(format!("more than {MAX_EXITS} exits"))
}

/// A 64-bit interrupt gate to `handler` (SDM vol. 3 §6.14.1).
fn interrupt_gate(handler: u64) -> [u8; 16] {
    let present_interrupt_gate = 0x8e;
    let low = (handler & 0xffff)
        | CODE_SELECTOR << 16
        | present_interrupt_gate << 40
        | (handler >> 16 & 0xffff) << 48;
    (u128::from(low) | u128::from(handler >> 32) << 64).to_le_bytes()
}
