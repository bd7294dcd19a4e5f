//! The promises of this crate, tested on real directories through the `FileSystem` trait, as the server of a
//! virtio-fs device calls it.

mod atomic_writer;
mod attributes;
mod bad_input;
mod guest;
pub(crate) mod host;
mod logged;
mod plain;
mod pressure;
mod requests;
mod source_lost;
mod volumes;
