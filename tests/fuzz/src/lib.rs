//! What the fuzz targets do with an input. See README.md for how to run them.
//!
//! Inputs are structured: a list of a driver's actions, most of them sensible in themselves, so that the fuzzer gets
//! past the first check and wrong things happen in states that matter. A broken promise is a panic.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a fuzz target reports by panicking"
)]

mod host;
pub mod pci_registers;
pub mod virtio_fs;

#[cfg(test)]
mod tests {
    use arbitrary::{Arbitrary, Unstructured};

    use crate::{pci_registers, virtio_fs};

    /// Bytes that are the same on every run (xorshift64).
    fn bytes(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        std::iter::repeat_with(&mut next).flatten().take(len).collect()
    }

    fn inputs<I: for<'a> Arbitrary<'a>>() -> impl Iterator<Item = I> {
        (0..1500).filter_map(|seed| {
            let bytes = bytes(seed, 200 + 40 * usize::try_from(seed % 50).unwrap());
            I::arbitrary_take_rest(Unstructured::new(&bytes)).ok()
        })
    }

    #[test]
    fn virtio_fs_keeps_its_promises_on_random_inputs() {
        inputs().for_each(|input| virtio_fs::run(&input));
    }

    #[test]
    fn pci_registers_keep_their_promises_on_random_inputs() {
        inputs().for_each(|input| pci_registers::run(&input));
    }
}
