//! `laterna doctor`: whether this host can boot guests, found out by trying.

mod host;
mod payload;

use serde::Serialize;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Pass,
    /// Guests boot, but something else will not do.
    Warn,
    /// Guests cannot boot.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it came out.
    pub status: Status,
    /// What was seen.
    pub detail: String,
    /// What to do about it; empty when nothing needs doing.
    pub advice: String,
}

impl Check {
    fn pass(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Pass, detail: detail.into(), advice: String::new() }
    }

    fn warn(name: impl Into<String>, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Warn, detail: detail.into(), advice: advice.into() }
    }

    fn fail(name: impl Into<String>, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Fail, detail: detail.into(), advice: advice.into() }
    }
}

/// All checks and their verdict.
#[derive(Debug, Serialize)]
pub struct Report {
    /// No check failed.
    pub can_boot_guests: bool,
    /// In the order in which they were made.
    pub checks: Vec<Check>,
}

/// Examines this host; takes a few seconds at most.
pub fn examine() -> Report {
    let mut checks = host::access();
    if checks.iter().all(|check| check.status != Status::Fail) {
        checks.extend(host::capabilities());
        checks.extend(payload::checks());
    }
    checks.extend(host::limits());
    let can_boot_guests = checks.iter().all(|check| check.status != Status::Fail);
    Report { can_boot_guests, checks }
}
