use std::io::Write;

use super::*;

fn image_of(bytes: &[u8]) -> Result<Image, Error> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    Image::open(file.path())
}

fn message_of(bytes: &[u8]) -> String {
    image_of(bytes).unwrap_err().to_string()
}

/// The head of a bzImage that says it has `code_len` bytes of code and needs `init_size` bytes from 16 MiB on.
fn bzimage(code_len: u32, init_size: u32) -> Vec<u8> {
    let header = setup_header {
        setup_sects: 1,
        header: BZIMAGE_MAGIC,
        version: 0x20f,
        loadflags: 1,
        xloadflags: XLF_KERNEL_64,
        syssize: code_len / 16,
        pref_address: 16 << 20,
        init_size,
        initrd_addr_max: 0x7fff_ffff,
        ..Default::default()
    };
    let mut bytes = vec![0; 1024];
    bytes[0x1f1..0x1f1 + header.as_slice().len()].copy_from_slice(header.as_slice());
    bytes.resize(1024 + code_len as usize, 0x90);
    bytes
}

fn elf(phdrs: &[Elf64_Phdr]) -> Vec<u8> {
    let mut header = Elf64_Ehdr::default();
    header.e_ident[..6].copy_from_slice(b"\x7fELF\x02\x01");
    header.e_machine = 62;
    header.e_entry = 16 << 20;
    header.e_phoff = size_of::<Elf64_Ehdr>() as u64;
    header.e_phentsize = u16::try_from(size_of::<Elf64_Phdr>()).unwrap();
    header.e_phnum = u16::try_from(phdrs.len()).unwrap();
    let mut bytes = header.as_slice().to_vec();
    for phdr in phdrs {
        bytes.extend_from_slice(phdr.as_slice());
    }
    bytes
}

fn load_segment(filesz: u64, memsz: u64) -> Elf64_Phdr {
    Elf64_Phdr {
        p_type: PT_LOAD,
        p_offset: 0,
        p_paddr: 16 << 20,
        p_filesz: filesz,
        p_memsz: memsz,
        ..Default::default()
    }
}

#[test]
fn a_bzimage_names_the_ram_that_its_init_size_takes() {
    let image = image_of(&bzimage(4096, 50 << 20)).unwrap();
    assert_eq!(image.end(), 66 << 20);
    assert!(image.check_ram(66 << 20, 0).is_ok());
    let message = image.check_ram(64 << 20, 0).unwrap_err().to_string();
    assert!(message.contains("64 MiB is too small") && message.contains("--memory 66M"), "{message}");
    let message = image.check_ram(66 << 20, 5000).unwrap_err().to_string();
    assert!(message.contains("and its initramfs") && message.contains("--memory 67M"), "{message}");
}

#[test]
fn what_is_no_kernel_is_said_to_be_none() {
    for bytes in [&b""[..], b"abc", &[0; 4096], b"#!/bin/sh\n"] {
        assert!(message_of(bytes).contains("neither a bzImage nor an ELF"), "{}", message_of(bytes));
    }
}

#[test]
fn truncation_is_found_before_anything_is_loaded() {
    let whole = bzimage(4096, 1 << 20);
    assert!(message_of(&whole[..whole.len() - 1]).contains("truncated, 5119 bytes of 5120"));
    let whole = elf(&[load_segment(0x1000, 0x1000)]);
    assert!(message_of(&whole).contains("truncated"));
    assert!(message_of(&whole[..70]).contains("truncated"));
    assert!(message_of(&whole[..20]).contains("truncated"));
}

#[test]
fn an_elf_without_pvh_note_says_how_to_get_one() {
    let image = image_of(&elf(&[load_segment(16, 4096)])).unwrap();
    let memory = crate::memory::allocate(32 << 20).unwrap();
    let message = image.load(&memory).unwrap_err().to_string();
    assert!(message.contains("CONFIG_PVH=y"), "{message}");
}

#[test]
fn absurd_program_headers_neither_overflow_nor_load() {
    let phdr = Elf64_Phdr { p_offset: u64::MAX, ..load_segment(u64::MAX, u64::MAX) };
    assert!(message_of(&elf(&[phdr])).contains("truncated"));
    let image = image_of(&elf(&[load_segment(0, u64::MAX)])).unwrap();
    assert!(image.check_ram(1 << 40, 1 << 30).is_err());
    assert!(message_of(&elf(&[])).contains("without anything to load"));
}
