//! libFuzzer target: [`fuzz::virtio_fs`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: fuzz::virtio_fs::Input| fuzz::virtio_fs::run(&input));
