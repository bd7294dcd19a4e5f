//! The content of a volume's directory at one moment, and whether the directory still has it.
//!
//! A [`Snapshot`] is complete: it was read from a directory that had not changed when the reading was done.
//! For an AtomicWriter directory that is proven by `..data` naming the same directory before and after,
//! because the writer removes the old directory only after the rename. For a plain directory every entry is
//! looked at again afterwards.

mod load;
mod verify;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::directory::{HostAttr, open_volume, read_link};
use crate::error::Error;
use crate::secret_memory::SecretBytes;

use load::{LoadError, Loader};
pub(crate) use load::{MAX_ENTRIES, as_path};

/// The writer's link to the published directory.
pub(crate) const DATA_LINK: &[u8] = b"..data";
/// Where the writer prepares the next one.
const DATA_LINK_TEMPORARY: &[u8] = b"..data_tmp";
/// What the target of a writer's link begins with; the rest is the link's own name.
pub(crate) const WRITER_LINK_PREFIX: &[u8] = b"..data/";

/// How long reading is begun anew because the directory changed meanwhile, and how often at least. Each time
/// means a whole update by the writer within one read, so even a few in a row are rare.
const GIVE_UP_AFTER: Duration = Duration::from_millis(500);
const MIN_ATTEMPTS: usize = 8;

/// An entry of the host's tree with what was read from it.
#[derive(Debug, Clone)]
pub(crate) struct HostNode {
    pub(crate) attr: HostAttr,
    pub(crate) content: HostContent,
}

/// What an entry holds.
#[derive(Debug, Clone)]
pub(crate) enum HostContent {
    Directory(BTreeMap<Vec<u8>, HostNode>),
    File(Arc<SecretBytes>),
    Symlink(Vec<u8>),
}

impl HostNode {
    /// The entries of a directory; none for anything else.
    pub(crate) fn children(&self) -> impl Iterator<Item = (&Vec<u8>, &HostNode)> {
        match &self.content {
            HostContent::Directory(children) => Some(children),
            HostContent::File(_) | HostContent::Symlink(_) => None,
        }
        .into_iter()
        .flatten()
    }

    fn child(&self, name: &[u8]) -> Option<&HostNode> {
        match &self.content {
            HostContent::Directory(children) => children.get(name),
            HostContent::File(_) | HostContent::Symlink(_) => None,
        }
    }

    /// Whether both stand for the same unchanged entries; files by identity of what was read.
    fn is_same_as(&self, other: &HostNode) -> bool {
        if self.attr != other.attr {
            return false;
        }
        match (&self.content, &other.content) {
            (HostContent::File(mine), HostContent::File(theirs)) => Arc::ptr_eq(mine, theirs),
            (HostContent::Symlink(mine), HostContent::Symlink(theirs)) => mine == theirs,
            (HostContent::Directory(mine), HostContent::Directory(theirs)) => {
                mine.len() == theirs.len()
                    && mine.iter().zip(theirs).all(|((name, node), (other_name, other_node))| {
                        name == other_name && node.is_same_as(other_node)
                    })
            }
            _ => false,
        }
    }

    /// Whether every path in `other` exists here too.
    fn has_all_paths_of(&self, other: &HostNode) -> bool {
        other.children().all(|(name, node)| self.child(name).is_some_and(|mine| mine.has_all_paths_of(node)))
    }
}

/// The writer's links beside the published directory, by name.
pub(crate) type WriterLinks = BTreeMap<Vec<u8>, HostAttr>;

/// How a volume's directory is laid out.
#[derive(Debug, Clone)]
pub(crate) enum Layout {
    /// Kubelet's AtomicWriter: `..data` links to a directory that is replaced as a whole.
    AtomicWriter {
        /// Name of the published directory, the target of `..data`.
        directory_name: Vec<u8>,
        /// The writer's links (`NAME -> ..data/NAME`) that exist on the host, for their ownership.
        links: WriterLinks,
        /// Other entries beside them, which are not shown.
        ignored: Vec<Vec<u8>>,
    },
    /// Any other directory, shown as it is.
    Plain {
        /// Whether a change right after the reading is sure to show in a timestamp. Timestamps advance with
        /// the kernel's tick, so a second change within a tick of the first leaves them as they are.
        is_settled: bool,
    },
}

/// One complete reading of a volume.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) layout: Layout,
    /// The volume's directory.
    pub(crate) root: HostAttr,
    /// AtomicWriter: the published directory; plain: the volume's directory.
    pub(crate) tree: HostNode,
    /// Sum of the file sizes.
    pub(crate) len_bytes: u64,
    /// Number of files, directories and links in `tree`.
    pub(crate) entry_count: usize,
}

impl Snapshot {
    /// Whether a reader can tell the two apart.
    pub(crate) fn is_same_as(&self, other: &Snapshot) -> bool {
        self.directory_name() == other.directory_name() && self.tree.is_same_as(&other.tree)
    }

    /// Name of the published directory; `None` for a plain one.
    pub(crate) fn directory_name(&self) -> Option<&[u8]> {
        match &self.layout {
            Layout::AtomicWriter { directory_name, .. } => Some(directory_name),
            Layout::Plain { .. } => None,
        }
    }

    /// Entries beside the published directory that are not shown.
    pub(crate) fn ignored(&self) -> &[Vec<u8>] {
        match &self.layout {
            Layout::AtomicWriter { ignored, .. } => ignored,
            Layout::Plain { .. } => &[],
        }
    }

    /// Whether this is a plain directory and a later change is sure to show in its timestamps.
    fn is_settled(&self) -> bool {
        matches!(self.layout, Layout::Plain { is_settled: true })
    }
}

/// What looking at the directory found.
#[derive(Debug)]
pub(crate) enum Observed {
    /// The directory still is what the last snapshot says.
    Unchanged,
    /// It is something else, read completely.
    Changed(Box<Snapshot>),
    /// It is gone, emptied, or being taken down, which is no update; the text says how.
    Lost(String),
}

/// A volume's directory on the host, and what may be read from it.
#[derive(Debug)]
pub(crate) struct Source {
    /// The volume's path; resolved anew each time.
    pub(crate) path: PathBuf,
    /// Cap on the sum of the file sizes.
    pub(crate) max_size_bytes: u64,
}

impl Source {
    /// Reads the directory for the first time.
    pub(crate) fn load(&self) -> Result<Snapshot, Error> {
        match self.observe(None)? {
            Observed::Changed(snapshot) => Ok(*snapshot),
            // Both need an earlier snapshot.
            Observed::Unchanged | Observed::Lost(_) => {
                Err(Error::KeepsChanging { path: self.path.clone(), given_up_after: Duration::ZERO })
            }
        }
    }

    /// Compares the directory with an earlier snapshot and reads it when it differs.
    ///
    /// # Errors
    /// The directory differs and cannot be read (or, without an earlier snapshot, is not there).
    pub(crate) fn observe(&self, last: Option<&Snapshot>) -> Result<Observed, Error> {
        let started = Instant::now();
        let mut attempts = 0;
        while attempts < MIN_ATTEMPTS || started.elapsed() < GIVE_UP_AFTER {
            attempts += 1;
            let root = match open_volume(&self.path) {
                Ok(root) => root,
                Err(cause @ (Errno::NOENT | Errno::NOTDIR)) if last.is_some() => {
                    return Ok(Observed::Lost(format!("it cannot be opened: {cause}")));
                }
                Err(Errno::NOTDIR) => return Err(Error::NotADirectory { path: self.path.clone() }),
                Err(cause) => return Err(Error::OpenVolume { path: self.path.clone(), cause }),
            };
            let observed = match self.data_link_target(&root)? {
                Some(target) => self.observe_atomic_writer(&root, target, last)?,
                None => self.observe_plain(&root, last)?,
            };
            if let Some(observed) = observed {
                return Ok(observed);
            }
        }
        Err(Error::KeepsChanging { path: self.path.clone(), given_up_after: GIVE_UP_AFTER })
    }

    /// Reads `..data` and checks that it is what an AtomicWriter makes; `None` when there is none.
    fn data_link_target(&self, root: &OwnedFd) -> Result<Option<Vec<u8>>, Error> {
        let link = || self.path.join(as_path(DATA_LINK));
        match read_link(root, DATA_LINK) {
            Ok(target) if is_timestamped_name(&target) => Ok(Some(target)),
            Ok(target) => {
                Err(Error::DataLink { link: link(), found: format!("a link to {:?}", as_path(&target)) })
            }
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::INVAL) => Err(Error::DataLink { link: link(), found: "no symbolic link".into() }),
            Err(cause) => Err(Error::Read { path: link(), cause }),
        }
    }

    /// `Ok(None)`: it changed meanwhile, look again.
    fn observe_atomic_writer(
        &self,
        root: &OwnedFd,
        target: Vec<u8>,
        last: Option<&Snapshot>,
    ) -> Result<Option<Observed>, Error> {
        let loaded = last.filter(|last| last.directory_name() == Some(&target));
        if loaded.is_some_and(|last| verify::is_unchanged_at(root, &target, &last.tree)) {
            return Ok(Some(Observed::Unchanged));
        }
        let mut loader = Loader::new(self, None);
        let tree = loader.published_directory(root, &target);
        // The writer begins to remove a directory only after it has renamed the link away from it. So what was
        // read is complete exactly when the link still names it; and a failure is real only then.
        if !matches!(read_link(root, DATA_LINK), Ok(now) if now == target) {
            return Ok(None);
        }
        let attempt = tree.and_then(|tree| loader.with_links(root, &target, tree));
        match (attempt, loaded) {
            // A writer only ever adds to or removes from a directory that is not published.
            (Ok(snapshot), Some(last))
                if snapshot.tree.attr.is_same_file(&last.tree.attr)
                    && !snapshot.tree.has_all_paths_of(&last.tree) =>
            {
                Ok(Some(Observed::Lost("entries of its published directory have been removed".into())))
            }
            (Ok(snapshot), _) => Ok(Some(Observed::Changed(snapshot.into()))),
            (Err(LoadError::Missing), Some(_)) => {
                Ok(Some(Observed::Lost("its published directory has been removed".into())))
            }
            (Err(LoadError::Missing), None) => Err(Error::DanglingDataLink {
                link: self.path.join(as_path(DATA_LINK)),
                target: as_path(&target).to_owned(),
            }),
            (Err(LoadError::Changed), _) => Ok(None),
            (Err(LoadError::Refused(error)), _) => Err(error),
        }
    }

    /// `Ok(None)`: it changed meanwhile, look again.
    fn observe_plain(&self, root: &OwnedFd, last: Option<&Snapshot>) -> Result<Option<Observed>, Error> {
        let last_plain = last.filter(|last| last.directory_name().is_none());
        if let Some(last) = last_plain
            && last.is_settled()
            && verify::is_unchanged(root, &last.tree)
        {
            return Ok(Some(Observed::Unchanged));
        }
        let snapshot = match Loader::new(self, last_plain).plain(root) {
            Ok(snapshot) => snapshot,
            Err(LoadError::Missing | LoadError::Changed) => return Ok(None),
            Err(LoadError::Refused(Error::NotPublished { .. })) if last.is_some() => {
                return Ok(Some(Observed::Lost("its `..data` link is missing".into())));
            }
            Err(LoadError::Refused(error)) => return Err(error),
        };
        if !verify::is_unchanged(root, &snapshot.tree) {
            return Ok(None);
        }
        let had_entries = last.is_some_and(|last| last.tree.children().next().is_some());
        if had_entries && snapshot.tree.children().next().is_none() {
            return Ok(Some(Observed::Lost("it is empty".into())));
        }
        Ok(Some(Observed::Changed(snapshot.into())))
    }
}

/// Whether a name can be that of a published directory: one component with `..` before more.
fn is_timestamped_name(name: &[u8]) -> bool {
    name.len() > 2 && name.starts_with(b"..") && !name.contains(&b'/') && name != DATA_LINK
}

/// Where the path of an entry is needed for a message.
fn join(directory: &Path, name: &[u8]) -> PathBuf {
    directory.join(as_path(name))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;
    use crate::tests::host::temporary_directory;

    fn source_of(directory: &tempfile::TempDir) -> Source {
        Source { path: directory.path().into(), max_size_bytes: 1000 }
    }

    fn number_in(snapshot: &Snapshot, name: &str) -> u64 {
        match &snapshot.tree.child(name.as_bytes()).unwrap().content {
            HostContent::File(bytes) => std::str::from_utf8(bytes.as_slice()).unwrap().parse().unwrap(),
            HostContent::Directory(_) | HostContent::Symlink(_) => panic!("{name} is a file"),
        }
    }

    /// Makes a snapshot look as if the change after it had not moved any timestamp.
    fn with_attributes_of(mut old: Snapshot, new: &Snapshot, is_settled: bool) -> Snapshot {
        old.layout = Layout::Plain { is_settled };
        old.tree.attr = new.tree.attr;
        if let HostContent::Directory(children) = &mut old.tree.content {
            for (name, node) in children {
                node.attr = new.tree.child(name).unwrap().attr;
            }
        }
        old
    }

    #[test]
    fn change_that_moves_no_timestamp_is_seen_while_the_clock_may_not_have_ticked() {
        let directory = temporary_directory();
        fs::write(directory.path().join("token"), "1").unwrap();
        let source = source_of(&directory);
        let old = source.load().unwrap();
        assert!(!old.is_settled(), "just written");
        fs::write(directory.path().join("token"), "2").unwrap();
        let new = source.load().unwrap();
        let unsettled = with_attributes_of(old.clone(), &new, false);
        match source.observe(Some(&unsettled)).unwrap() {
            Observed::Changed(snapshot) => {
                assert_eq!(number_in(&snapshot, "token"), 2);
                assert!(!snapshot.is_same_as(&unsettled));
            }
            other => panic!("{other:?}"),
        }
        // The control: this is what looking at timestamps alone would say.
        let settled = with_attributes_of(old, &new, true);
        assert!(matches!(source.observe(Some(&settled)).unwrap(), Observed::Unchanged));
    }

    #[test]
    fn directory_that_the_link_has_left_is_never_taken_for_whole() {
        let directory = temporary_directory();
        for name in ["..old", "..new"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        symlink("..new", directory.path().join("..data")).unwrap();
        let source = source_of(&directory);
        let root = open_volume(directory.path()).unwrap();
        let observe = |name: &[u8]| source.observe_atomic_writer(&root, name.to_vec(), None).unwrap();
        // As when the rename and the first removals come between reading the link and reading the directory.
        assert!(observe(b"..old").is_none());
        assert!(observe(b"..gone").is_none());
        assert!(matches!(observe(b"..new"), Some(Observed::Changed(_))));
    }

    #[test]
    fn directory_left_alone_settles_and_is_not_read_again() {
        let directory = temporary_directory();
        fs::write(directory.path().join("token"), "1").unwrap();
        let source = source_of(&directory);
        let mut snapshot = source.load().unwrap();
        loop {
            match source.observe(Some(&snapshot)).unwrap() {
                Observed::Unchanged => break,
                Observed::Changed(again) => {
                    assert!(again.is_same_as(&snapshot), "only read again");
                    snapshot = *again;
                }
                Observed::Lost(reason) => panic!("{reason}"),
            }
        }
    }

    #[test]
    fn plain_snapshot_is_of_one_moment() {
        let directory = temporary_directory();
        let publish = |name: &str, number: u64| {
            let temporary = directory.path().join("temporary");
            fs::write(&temporary, number.to_string()).unwrap();
            fs::rename(&temporary, directory.path().join(name)).unwrap();
        };
        for name in ["x", "y"] {
            publish(name, 0);
        }
        let is_done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..3000 {
                    publish("x", number);
                    publish("y", number);
                }
                is_done.store(true, Ordering::Release);
            });
            while !is_done.load(Ordering::Acquire) {
                match source_of(&directory).load() {
                    Ok(snapshot) => {
                        let (x, y) = (number_in(&snapshot, "x"), number_in(&snapshot, "y"));
                        assert!(x == y || x == y + 1, "{x} and {y} never were there together");
                    }
                    Err(error) => assert!(matches!(error, Error::KeepsChanging { .. }), "{error}"),
                }
            }
        });
        assert_eq!(number_in(&source_of(&directory).load().unwrap(), "y"), 2999);
    }
}
