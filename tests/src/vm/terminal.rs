//! A pseudo-terminal for tests of what happens to the user's terminal.

use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::tcgetattr;
use std::fs::File;
use std::os::fd::OwnedFd;

/// A pseudo-terminal with both of its sides open.
#[derive(Debug)]
pub struct Terminal {
    controller: OwnedFd,
    user: OwnedFd,
}

impl Terminal {
    /// A new terminal, with the settings that the kernel gives to one.
    pub fn open() -> Result<Self> {
        let controller =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).context("No terminal")?;
        grantpt(&controller)?;
        unlockpt(&controller)?;
        let name = ptsname(&controller, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let user = openat(CWD, name.as_c_str(), flags, Mode::empty()).context("Cannot open the terminal")?;
        Ok(Self { controller, user })
    }

    /// What a program sees as its terminal.
    pub(super) fn user_side(&self) -> Result<OwnedFd> {
        Ok(self.user.try_clone()?)
    }

    /// Where the test types and reads.
    pub(super) fn controller(&self) -> Result<File> {
        Ok(File::from(self.controller.try_clone()?))
    }

    /// All settings of the terminal, in a form to compare and to show.
    pub fn settings(&self) -> Result<String> {
        Ok(format!("{:?}", tcgetattr(&self.user)?))
    }
}
