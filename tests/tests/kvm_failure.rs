//! Promise: when KVM gives up on a guest, `laterna run` says so with the instruction pointer, and nothing hangs.

use anyhow::Result;
use std::fs;
use tests::vm::Vm;

const LOAD_ADDRESS: u32 = 0x100_0000;
/// In the window of PCI BARs, where no BAR is: fetching instructions from there is what no KVM emulates.
const NOT_MEMORY: u32 = 0xd000_0000;
const KVM_FAILURE: i32 = 7;

/// A PVH kernel (ELF, one segment, `XEN_ELFNOTE_PHYS32_ENTRY`) that jumps to [`NOT_MEMORY`].
fn hopeless_kernel() -> Vec<u8> {
    let code = [&[0xb8][..], &NOT_MEMORY.to_le_bytes(), &[0xff, 0xe0]].concat(); // mov eax, NOT_MEMORY; jmp eax
    let note = [
        &4_u32.to_le_bytes()[..],
        &4_u32.to_le_bytes(),
        &18_u32.to_le_bytes(),
        b"Xen\0",
        &LOAD_ADDRESS.to_le_bytes(),
    ]
    .concat();
    let (headers_len, phdr_len) = (64 + 2 * 56, 56_u16);
    let (note_at, code_at) = (headers_len, headers_len + note.len() as u64);
    let mut image = Vec::new();
    image.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    image.extend([2_u16, 62].iter().flat_map(|field| field.to_le_bytes())); // ET_EXEC, EM_X86_64
    image.extend_from_slice(&1_u32.to_le_bytes());
    image.extend([u64::from(LOAD_ADDRESS), 64, 0].iter().flat_map(|field| field.to_le_bytes())); // entry, phoff, shoff
    image.extend_from_slice(&0_u32.to_le_bytes());
    image.extend([64, phdr_len, 2, 0, 0, 0].iter().flat_map(|field| field.to_le_bytes()));
    for (kind, at, len) in [(1_u32, code_at, code.len()), (4, note_at, note.len())] {
        let address = u64::from(LOAD_ADDRESS);
        image.extend([kind, 7].iter().flat_map(|field| field.to_le_bytes())); // type, flags
        image.extend(
            [at, address, address, len as u64, len as u64, 4].iter().flat_map(|field| field.to_le_bytes()),
        );
    }
    image.extend(note);
    image.extend(code);
    image
}

#[test]
fn a_guest_that_kvm_cannot_run_ends_with_the_instruction_pointer() -> Result<()> {
    let kernel = tempfile::NamedTempFile::new()?;
    fs::write(kernel.path(), hopeless_kernel())?;
    let mut vm = Vm::builder().kernel(&kernel.path().to_string_lossy()).spawn()?;
    assert_eq!(vm.wait_exit()?, KVM_FAILURE);
    let log = vm.stderr_lines().join("\n");
    assert!(log.contains("This host's KVM cannot run the guest"), "{log}");
    assert!(log.contains(&format!("at RIP {NOT_MEMORY:#x}")), "{log}");
    Ok(())
}
