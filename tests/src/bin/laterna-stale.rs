//! Laterna with one thing changed: the guest may reuse `..data` for a second without asking.
//!
//! It is the control of the freshness test, which must fail against it: a test that passes here proves nothing.

use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    vmm::cli::main_with(|spec| {
        for projected in &mut spec.projected {
            projected.volume.data_timeout = Duration::from_secs(1);
        }
    })
}
