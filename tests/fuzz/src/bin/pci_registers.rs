//! libFuzzer target: [`fuzz::pci_registers`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: fuzz::pci_registers::Input| fuzz::pci_registers::run(&input));
