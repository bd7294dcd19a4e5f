//! Writes initramfs images: the "newc" cpio format (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Images are uncompressed (unpacking is slow in an emulated machine) and reproducible: owner root, time 0.

use std::collections::BTreeSet;
use std::io::{self, Write};

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// An initramfs image being written. Parent directories are added by themselves, with mode 0755.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    entries: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// An empty image, written to `out` as entries are added.
    pub fn new(out: W) -> Self {
        Self { out, entries: 0, directories: BTreeSet::new() }
    }

    /// Adds a directory; one that is there already is left as it is.
    pub fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || !self.directories.insert(path.to_owned()) {
            return Ok(());
        }
        self.parents(path)?;
        self.entry(path, S_IFDIR | mode, &[])
    }

    /// Adds a regular file.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let path = path.trim_matches('/');
        self.parents(path)?;
        self.entry(path, S_IFREG | mode, content)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        self.parents(path)?;
        self.entry(path, S_IFLNK | 0o777, target.as_bytes())
    }

    /// Ends the image. Without this the kernel takes it for truncated.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.directory(parent, 0o755),
            None => Ok(()),
        }
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let too_big =
            |_| io::Error::new(io::ErrorKind::FileTooLarge, format!("{name} does not fit in a cpio entry"));
        let size = u32::try_from(content.len()).map_err(too_big)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_big)?;
        self.entries += 1;
        // Magic, then 13 fields: inode, mode, uid, gid, links, mtime, size, device (4 fields), name size, check.
        write!(
            self.out,
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}",
            self.entries, 0, 0, 1, 0, 0, 0, 0, 0, 0
        )?;
        self.out.write_all(name.as_bytes())?;
        // The header has 110 bytes; name and content are each padded to a multiple of 4.
        self.pad_after(110 + name.len() + 1, 1)?;
        self.out.write_all(content)?;
        self.pad_after(content.len(), 0)
    }

    /// Writes `terminator` zero bytes and then as many as bring `len` to a multiple of 4.
    fn pad_after(&mut self, len: usize, terminator: usize) -> io::Result<()> {
        let padding = len.next_multiple_of(4) - len + terminator;
        for _ in 0..padding {
            self.out.write_all(&[0])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    /// Name, mode and content of each entry, read the way the kernel does.
    fn entries(mut image: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&image[..6], b"070701");
            let field = |n: usize| {
                let digits = str::from_utf8(&image[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(image[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(image[110 + name_size - 1], 0);
            let content = (110 + name_size).next_multiple_of(4);
            entries.push((name, mode, image[content..content + size].to_vec()));
            image = &image[(content + size).next_multiple_of(4)..];
            if entries.last().unwrap().0 == "TRAILER!!!" {
                assert!(image.is_empty());
                return entries;
            }
        }
    }

    #[test]
    fn an_image_holds_what_was_added_and_its_parents() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/etc/deep/name", 0o640, b"content").unwrap();
        archive.symlink("bin/sh", "busybox").unwrap();
        archive.directory("etc", 0o700).unwrap();
        let image = archive.finish().unwrap();
        let expected = [
            ("etc", 0o040_755, ""),
            ("etc/deep", 0o040_755, ""),
            ("etc/deep/name", 0o100_640, "content"),
            ("bin", 0o040_755, ""),
            ("bin/sh", 0o120_777, "busybox"),
            ("TRAILER!!!", 0, ""),
        ];
        let expected =
            expected.map(|(name, mode, content)| (name.to_owned(), mode, content.as_bytes().to_vec()));
        assert_eq!(entries(&image), expected);
    }
}
