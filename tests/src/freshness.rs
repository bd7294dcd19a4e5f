//! What the freshness test and its reader in the guest agree on.
//!
//! The floor's page holds 64-bit words, little endian: [`MAGIC`] (written by the guest, so that the host finds the
//! page), [`FLOOR`], [`FLOOR_CHECK`] and [`STOP`] (written by the host), [`READS`] (counted up by the guest).

use serde::{Deserialize, Serialize};

/// Word of the page that holds [`Announcement::magic`].
pub const MAGIC: usize = 0;
/// Word of the page that holds the sequence number that every read begun from now on must reach.
pub const FLOOR: usize = 1;
/// Word of the page that holds the bitwise complement of the floor: the host's write is not atomic.
pub const FLOOR_CHECK: usize = 2;
/// Word of the page that ends the reader when it is not zero.
pub const STOP: usize = 3;
/// Word of the page that counts reads.
pub const READS: usize = 4;

/// The reader's first line.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Announcement {
    /// Guest-physical address of the page.
    pub address: u64,
    /// Its first word.
    pub magic: u64,
}

/// The reader's last line.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Reads, a pair of files read through one `..data` counted as one.
    pub reads: u64,
    /// Reads begun when the floor had risen less than 5 ms before.
    pub close_reads: u64,
    /// Reads below their floor.
    pub stale: u64,
    /// Those of `stale` that are also in `close_reads`.
    pub close_stale: u64,
    /// Files that mix two generations, and pairs whose files differ.
    pub torn: u64,
    /// Reads that failed with ENOENT.
    pub not_found: u64,
    /// Reads that failed otherwise.
    pub other_errors: u64,
    /// The first of `other_errors`.
    pub first_error: Option<String>,
}

impl Report {
    /// Adds another reader's counts.
    pub fn add(&mut self, other: &Report) {
        self.reads += other.reads;
        self.close_reads += other.close_reads;
        self.stale += other.stale;
        self.close_stale += other.close_stale;
        self.torn += other.torn;
        self.not_found += other.not_found;
        self.other_errors += other.other_errors;
        self.first_error = self.first_error.take().or_else(|| other.first_error.clone());
    }
}

/// The content of a file of sequence number `sequence`: large enough to span pages, so that tearing shows.
#[must_use]
pub fn content_of(sequence: u64) -> Vec<u8> {
    format!("{sequence:015}\n").repeat(512).into_bytes()
}

/// The sequence number in a file's content; none if the content is torn.
#[must_use]
pub fn sequence_of(content: &[u8]) -> Option<u64> {
    let text = str::from_utf8(content).ok()?;
    let sequence = text.lines().next()?.parse::<u64>().ok()?;
    (content == content_of(sequence)).then_some(sequence)
}

#[cfg(test)]
mod tests {
    use super::{content_of, sequence_of};

    #[test]
    fn a_file_of_two_generations_is_torn() {
        let mut content = content_of(41);
        assert_eq!(sequence_of(&content), Some(41));
        let len = content.len();
        content[len / 2..].copy_from_slice(&content_of(42)[len / 2..]);
        assert_eq!(sequence_of(&content), None);
        assert_eq!(sequence_of(&content_of(7)[..100]), None);
        assert_eq!(sequence_of(b""), None);
    }
}
