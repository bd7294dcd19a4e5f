//! The machine that the user wants, as plain data, and every check of it.

use std::path::PathBuf;
use std::time::Duration;

use devices::pci::MAX_FUNCTIONS;
use devices::virtio::fs::MAX_TAG_LEN;
use projection::{Volume, VolumeSpec};

use crate::boot::{self, Image, initramfs};

/// Most vCPUs of a VM.
pub const MAX_CPUS: u8 = 32;
/// The tag of the one device that carries all volumes given by `name=`.
pub const SHARED_TAG: &str = "laterna";
/// Least RAM: boot data and ACPI tables lie below 1 MiB.
const MIN_MEMORY_BYTES: u64 = 2 << 20;

/// The wanted machine.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// Kernel image: bzImage, or ELF with PVH note. Empty when there is none, which is a mistake named elsewhere.
    pub kernel: PathBuf,
    /// Initial RAM file system.
    pub initramfs: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Number of vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// Guest RAM in bytes, whole MiB.
    pub memory_bytes: u64,
    /// Projected volumes.
    pub projected: Vec<ProjectedSpec>,
    /// Where the serial port leads.
    pub serial: SerialSpec,
    /// What a reset by the guest does.
    pub on_reboot: OnReboot,
    /// How long the guest may take to power off after the power button.
    pub shutdown_grace: Duration,
}

/// A projected volume and how the guest finds it.
#[derive(Debug, Clone)]
pub struct ProjectedSpec {
    /// Its place in the guest's view.
    pub exposure: Exposure,
    /// The directory and how it is shown.
    pub volume: VolumeSpec,
}

/// How the guest finds a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exposure {
    /// A virtio-fs device of its own with this tag.
    Tag(String),
    /// A child of this name in the root of the device tagged [`SHARED_TAG`].
    Name(String),
}

/// Where the serial port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialSpec {
    /// stdin and stdout.
    Stdio,
    /// Output into a file.
    File(PathBuf),
    /// Nowhere.
    Off,
}

/// What a reset by the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReboot {
    /// Laterna exits with the code of a reset.
    Exit,
    /// The VM starts anew.
    Reset,
}

impl VmSpec {
    /// Every mistake, each in one line that says what is wrong and what would be right. Opens each file once.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            mistakes.push(format!("--cpus {}: give 1 to {MAX_CPUS}", self.cpus));
        }
        mistakes.extend(self.memory_mistake());
        mistakes.extend(self.image_mistakes());
        if let Err(error) = boot::cmdline(&self.cmdline) {
            mistakes.push(format!("--cmdline: {error}"));
        }
        mistakes.extend(self.serial_mistake());
        mistakes.extend(self.exposure_mistakes());
        for projected in &self.projected {
            if let Err(error) = Volume::open(projected.volume.clone()) {
                mistakes.push(format!("--projected {}: {error}", projected.exposure.option()));
            }
        }
        mistakes
    }

    /// The number of virtio-fs devices.
    pub fn fs_devices(&self) -> usize {
        let tags =
            self.projected.iter().filter(|projected| matches!(projected.exposure, Exposure::Tag(_))).count();
        tags + usize::from(self.names().next().is_some())
    }

    /// The volumes of the shared device.
    pub fn names(&self) -> impl Iterator<Item = (&str, &VolumeSpec)> {
        self.projected.iter().filter_map(|projected| match &projected.exposure {
            Exposure::Name(name) => Some((name.as_str(), &projected.volume)),
            Exposure::Tag(_) => None,
        })
    }

    /// The volumes with a device of their own.
    pub fn tags(&self) -> impl Iterator<Item = (&str, &VolumeSpec)> {
        self.projected.iter().filter_map(|projected| match &projected.exposure {
            Exposure::Tag(tag) => Some((tag.as_str(), &projected.volume)),
            Exposure::Name(_) => None,
        })
    }

    fn serial_mistake(&self) -> Option<String> {
        let SerialSpec::File(path) = &self.serial else { return None };
        let mistake = |what: String| Some(format!("--serial file={}: {what}", path.display()));
        if let Some(parent) =
            path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir())
        {
            return mistake(format!("there is no directory {}", parent.display()));
        }
        if path.is_dir() {
            return mistake("it is a directory; give a file".to_owned());
        }
        let inputs = [Some(&self.kernel), self.initramfs.as_ref()];
        let is_input =
            |input: &PathBuf| path.exists() && path.canonicalize().ok() == input.canonicalize().ok();
        if inputs.into_iter().flatten().any(is_input) {
            return mistake(
                "it is the kernel or the initramfs and would be overwritten; give another file".to_owned(),
            );
        }
        None
    }

    fn memory_mistake(&self) -> Option<String> {
        let mib = self.memory_bytes >> 20;
        if self.memory_bytes < MIN_MEMORY_BYTES {
            return Some(format!("--memory: {} bytes are too little; give at least 2M", self.memory_bytes));
        }
        if !self.memory_bytes.is_multiple_of(1 << 20) {
            return Some(format!(
                "--memory: {} bytes are no whole MiB; give {}M",
                self.memory_bytes,
                mib + 1
            ));
        }
        let host_mib = host_memory_bytes() >> 20;
        (mib > host_mib).then(|| {
            format!("--memory: {mib} MiB is more than this host's {host_mib} MiB; give less than that")
        })
    }

    fn image_mistakes(&self) -> Vec<String> {
        let initramfs_len = self.initramfs.as_deref().map_or(Ok(0), initramfs::len_bytes);
        let mut mistakes: Vec<_> =
            initramfs_len.as_ref().err().map(ToString::to_string).into_iter().collect();
        if self.kernel.as_os_str().is_empty() {
            return mistakes;
        }
        match Image::open(&self.kernel) {
            Ok(image) if self.memory_bytes >= MIN_MEMORY_BYTES => {
                let fits = image.check_ram(self.memory_bytes, initramfs_len.unwrap_or(0));
                mistakes.extend(fits.err().map(|error| error.to_string()));
            }
            Ok(_) => {}
            Err(error) => mistakes.push(error.to_string()),
        }
        mistakes
    }

    fn exposure_mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        for (index, projected) in self.projected.iter().enumerate() {
            let (exposure, option) = (&projected.exposure, projected.exposure.option());
            mistakes.extend(exposure.mistake().map(|mistake| format!("--projected {option}: {mistake}")));
            if self.projected.iter().take(index).any(|other| other.exposure == *exposure) {
                mistakes
                    .push(format!("--projected {option}: given twice; each needs a tag or name of its own"));
            }
        }
        let uses_shared_tag = self.tags().any(|(tag, _)| tag == SHARED_TAG);
        if uses_shared_tag && self.names().next().is_some() {
            mistakes.push(format!(
                "--projected tag={SHARED_TAG}: that tag is the device of the volumes given by name=; give another"
            ));
        }
        // Slot 0 is the host bridge and one more is the entropy device's.
        let room = MAX_FUNCTIONS - 2;
        if self.fs_devices() > room {
            mistakes.push(format!(
                "--projected: {} devices do not fit, there is room for {room}; give name= instead of tag=",
                self.fs_devices()
            ));
        }
        mistakes
    }
}

impl Exposure {
    /// As the user wrote it.
    pub fn option(&self) -> String {
        match self {
            Self::Tag(tag) => format!("tag={tag}"),
            Self::Name(name) => format!("name={name}"),
        }
    }

    fn mistake(&self) -> Option<String> {
        match self {
            Self::Tag(tag) if tag.is_empty() => Some("the tag is empty".to_owned()),
            Self::Tag(tag) if tag.len() > MAX_TAG_LEN => {
                Some(format!("the tag has {} bytes; {MAX_TAG_LEN} are the most", tag.len()))
            }
            Self::Tag(tag) if tag.contains(|c: char| c.is_control()) => {
                Some("the tag has control characters; use letters, digits and dashes".to_owned())
            }
            Self::Tag(_) => None,
            Self::Name(name) => projection::check_volume_name(name).err().map(|error| error.to_string()),
        }
    }
}

/// RAM of this host in bytes.
fn host_memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit.max(1));
    info.totalram.saturating_mul(unit)
}
