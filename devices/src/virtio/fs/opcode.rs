//! FUSE opcodes: which the server knows, which expect a reply (Linux include/uapi/linux/fuse.h).

/// Number of opcodes with a counter of their own; higher numbers are counted as unknown.
pub(super) const COUNTED: usize = 64;

/// A request's opcode, sorted by who answers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opcode {
    /// fuse-backend-rs answers it.
    Served { number: u8 },
    /// The protocol has it, fuse-backend-rs 0.14.0 does not.
    Unserved { number: u8, changes_files: bool },
    /// No opcode of the protocol.
    Unknown,
}

const FORGET: u8 = 2;
const INTERRUPT: u8 = 36;
const DESTROY: u8 = 38;
const NOTIFY_REPLY: u8 = 41;
const BATCH_FORGET: u8 = 42;
const COPY_FILE_RANGE: u8 = 47;
const TMPFILE: u8 = 51;

impl Opcode {
    pub(super) fn from_header(opcode: u32) -> Self {
        let Ok(number) = u8::try_from(opcode) else { return Self::Unknown };
        match number {
            1..=6 | 8..=18 | 20..=40 | 42..=46 | 48..=49 => Self::Served { number },
            COPY_FILE_RANGE | TMPFILE => Self::Unserved { number, changes_files: true },
            NOTIFY_REPLY | 50 | 52 => Self::Unserved { number, changes_files: false },
            _ => Self::Unknown,
        }
    }

    pub(super) fn number(self) -> Option<u8> {
        match self {
            Self::Served { number } | Self::Unserved { number, .. } => Some(number),
            Self::Unknown => None,
        }
    }

    pub(super) fn expects_reply(self) -> bool {
        !matches!(self.number(), Some(FORGET | BATCH_FORGET | INTERRUPT))
    }

    pub(super) fn is_destroy(self) -> bool {
        self.number() == Some(DESTROY)
    }
}

/// The kernel's name of an opcode, without its `FUSE_`.
pub(super) fn name(number: usize) -> Option<&'static str> {
    let name = match number {
        1 => "LOOKUP",
        2 => "FORGET",
        3 => "GETATTR",
        4 => "SETATTR",
        5 => "READLINK",
        6 => "SYMLINK",
        8 => "MKNOD",
        9 => "MKDIR",
        10 => "UNLINK",
        11 => "RMDIR",
        12 => "RENAME",
        13 => "LINK",
        14 => "OPEN",
        15 => "READ",
        16 => "WRITE",
        17 => "STATFS",
        18 => "RELEASE",
        20 => "FSYNC",
        21 => "SETXATTR",
        22 => "GETXATTR",
        23 => "LISTXATTR",
        24 => "REMOVEXATTR",
        25 => "FLUSH",
        26 => "INIT",
        27 => "OPENDIR",
        28 => "READDIR",
        29 => "RELEASEDIR",
        30 => "FSYNCDIR",
        31 => "GETLK",
        32 => "SETLK",
        33 => "SETLKW",
        34 => "ACCESS",
        35 => "CREATE",
        36 => "INTERRUPT",
        37 => "BMAP",
        38 => "DESTROY",
        39 => "IOCTL",
        40 => "POLL",
        41 => "NOTIFY_REPLY",
        42 => "BATCH_FORGET",
        43 => "FALLOCATE",
        44 => "READDIRPLUS",
        45 => "RENAME2",
        46 => "LSEEK",
        47 => "COPY_FILE_RANGE",
        48 => "SETUPMAPPING",
        49 => "REMOVEMAPPING",
        50 => "SYNCFS",
        51 => "TMPFILE",
        52 => "STATX",
        _ => return None,
    };
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_opcode_of_the_protocol_is_sorted_and_named() {
        for number in 0..=u32::from(u8::MAX) + 1 {
            let opcode = Opcode::from_header(number);
            let has_name = name(number as usize).is_some();
            assert_eq!(opcode.number().is_some(), has_name, "opcode {number}");
        }
        assert_eq!(Opcode::from_header(0), Opcode::Unknown);
        assert_eq!(Opcode::from_header(7), Opcode::Unknown);
        assert_eq!(Opcode::from_header(19), Opcode::Unknown);
        assert_eq!(Opcode::from_header(1 << 20), Opcode::Unknown);
    }
}
