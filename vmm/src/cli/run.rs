//! `laterna run`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use log::Level;
use projection::{DEFAULT_MAX_SIZE_BYTES, Ownership, VolumeSpec};

use super::{FAILURE, USAGE};
use crate::event_loop::HostSignals;
use crate::lifecycle::ExitReason;
use crate::spec::{Exposure, OnReboot, ProjectedSpec, SerialSpec, VmSpec};
use crate::{machine, units};

const EXIT_CODES: &str = "\
Exit codes:
  0  the guest powered off
  1  Laterna failed; stderr says why
  2  the arguments are wrong
  3  the guest asked for a reset (with --on-reboot exit); with panic=-1 also a panic before its pvpanic driver is loaded
  4  the guest's kernel panicked (pvpanic)
  5  the guest met a triple fault
  6  the VM was stopped at once (second signal, end of the grace, Ctrl-A x)
  7  this host's KVM cannot run the guest

Signals:
  SIGTERM, SIGINT  press the power button; a second one, or the end of --shutdown-grace, stops the VM at once
  SIGHUP, SIGQUIT  stop the VM at once
  SIGUSR1          log statistics: FUSE requests by opcode, exits, what the volumes hold

Example:
  laterna run --kernel /boot/vmlinuz --initramfs initramfs.cpio --cmdline 'console=ttyS0' \\
              --projected tag=token,path=/var/run/secrets/tokens
  and in the guest: mount -t virtiofs token /mnt";

/// Boot a Linux guest.
///
/// The kernel is a bzImage or an ELF with PVH note. Each projected directory is seen in the guest over virtio-fs; a
/// file opened there after a rotation on the host never shows the old content.
#[derive(Debug, Args)]
#[command(override_usage = "laterna run --kernel <FILE> [OPTIONS]", after_help = EXIT_CODES)]
pub(super) struct RunArguments {
    /// Kernel image (required).
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM file system.
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0 panic=-1", allow_hyphen_values = true)]
    cmdline: String,
    /// Number of vCPUs, 1 to 32.
    #[arg(long, value_name = "N", default_value = "1", allow_hyphen_values = true)]
    cpus: String,
    /// Guest RAM, such as 512M or 4G.
    #[arg(long, value_name = "SIZE", default_value = "256M", allow_hyphen_values = true)]
    memory: String,
    /// A projected directory: tag= makes a virtio-fs device of its own, name= a child of the device tagged "laterna".
    ///
    /// uid, gid: owner that the guest sees (default 0). mode: permissions of files that the guest sees, octal (default:
    /// the file's own). max-size: most bytes that the directory may hold (default 16M).
    #[arg(long, value_name = "tag=NAME|name=NAME,path=DIR[,uid=N,gid=N,mode=OCTAL,max-size=SIZE]")]
    projected: Vec<String>,
    /// Where the guest's serial port leads.
    #[arg(long, value_name = "stdio|file=PATH|off", default_value = "stdio")]
    serial: String,
    /// What a reset by the guest does.
    #[arg(long, value_name = "exit|reset", default_value = "exit")]
    on_reboot: String,
    /// How long the guest may take to power off after SIGTERM or SIGINT.
    #[arg(long, value_name = "SECONDS", default_value = "30", allow_hyphen_values = true)]
    shutdown_grace: String,
}

/// Runs the VM; returns the exit code.
pub(super) fn run(arguments: RunArguments, adjust: impl FnOnce(&mut VmSpec)) -> u8 {
    let signals = match HostSignals::take() {
        Ok(signals) => signals,
        Err(error) => {
            log::error!("Signals cannot be handled: {error}");
            return FAILURE;
        }
    };
    let mut mistakes = Vec::new();
    let mut spec = arguments.into_spec(&mut mistakes);
    adjust(&mut spec);
    mistakes.extend(spec.mistakes());
    if !mistakes.is_empty() {
        for mistake in mistakes {
            log::error!("{mistake}");
        }
        return USAGE;
    }
    match machine::run(&spec, signals) {
        Ok(reason) => {
            log::log!(level_of(&reason), "{reason}");
            reason.code()
        }
        Err(error) => {
            log::error!("{error}");
            // A kernel that shows only when it is loaded that it cannot be is the user's mistake all the same.
            if matches!(error, machine::Error::Boot(_) | machine::Error::SerialFile { .. }) {
                USAGE
            } else {
                FAILURE
            }
        }
    }
}

fn level_of(reason: &ExitReason) -> Level {
    match reason {
        ExitReason::PowerOff | ExitReason::Reset => Level::Info,
        ExitReason::Panic | ExitReason::TripleFault | ExitReason::Stopped => Level::Warn,
        ExitReason::KvmFailure(_) => Level::Error,
    }
}

impl RunArguments {
    /// The spec; what cannot be understood is put into `mistakes` and replaced by something harmless.
    fn into_spec(self, mistakes: &mut Vec<String>) -> VmSpec {
        let cpus = or_mistake("--cpus", &self.cpus, parse_cpus(&self.cpus), 1, mistakes);
        let memory = units::parse_size(&self.memory);
        let memory_bytes = or_mistake("--memory", &self.memory, memory, 256 << 20, mistakes);
        let serial =
            or_mistake("--serial", &self.serial, parse_serial(&self.serial), SerialSpec::Off, mistakes);
        let on_reboot = parse_on_reboot(&self.on_reboot);
        let on_reboot = or_mistake("--on-reboot", &self.on_reboot, on_reboot, OnReboot::Exit, mistakes);
        let grace = parse_grace(&self.shutdown_grace);
        let shutdown_grace =
            or_mistake("--shutdown-grace", &self.shutdown_grace, grace, Duration::ZERO, mistakes);
        let mut projected = Vec::new();
        for text in &self.projected {
            let (spec, flaws) = parse_projected(text);
            projected.extend(spec);
            if !flaws.is_empty() {
                mistakes.push(format!("--projected {text}: {}", flaws.join("; ")));
            }
        }
        if self.kernel.is_none() {
            mistakes.push("--kernel FILE is missing; give a bzImage, or an ELF with PVH note".to_owned());
        }
        VmSpec {
            kernel: self.kernel.unwrap_or_default(),
            initramfs: self.initramfs,
            cmdline: self.cmdline,
            cpus,
            memory_bytes,
            projected,
            serial,
            on_reboot,
            shutdown_grace,
        }
    }
}

/// The parsed value of an option; or `default`, and a mistake.
fn or_mistake<T>(
    option: &str,
    text: &str,
    parsed: Result<T, String>,
    default: T,
    mistakes: &mut Vec<String>,
) -> T {
    parsed.unwrap_or_else(|mistake| {
        mistakes.push(format!("{option} {text}: {mistake}"));
        default
    })
}

fn parse_cpus(text: &str) -> Result<u8, String> {
    text.parse::<u8>().map_err(|_| format!("no number of CPUs; give 1 to {}", crate::spec::MAX_CPUS))
}

fn parse_serial(text: &str) -> Result<SerialSpec, String> {
    match text.split_once('=') {
        None if text == "stdio" => Ok(SerialSpec::Stdio),
        None if text == "off" => Ok(SerialSpec::Off),
        Some(("file", path)) if !path.is_empty() => Ok(SerialSpec::File(path.into())),
        _ => Err("give stdio, file=PATH or off".to_owned()),
    }
}

fn parse_on_reboot(text: &str) -> Result<OnReboot, String> {
    match text {
        "exit" => Ok(OnReboot::Exit),
        "reset" => Ok(OnReboot::Reset),
        _ => Err("give exit or reset".to_owned()),
    }
}

fn parse_grace(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<u32>().map_err(|_| "no number of seconds; give 0 or more".to_owned())?;
    Ok(Duration::from_secs(seconds.into()))
}

/// Parses `tag=NAME|name=NAME,path=DIR[,uid=N,gid=N,mode=OCTAL,max-size=SIZE]` into what can be understood of it, to be
/// checked further, and all that is wrong with it.
fn parse_projected(text: &str) -> (Option<ProjectedSpec>, Vec<String>) {
    let mut fields = ProjectedFields::default();
    let mut mistakes: Vec<_> = text.split(',').filter_map(|pair| fields.set(pair).err()).collect();
    let spec = fields.finish(&mut mistakes);
    (spec, mistakes)
}

#[derive(Default)]
struct ProjectedFields<'a> {
    seen: Vec<&'a str>,
    tag: Option<String>,
    name: Option<String>,
    path: Option<PathBuf>,
    uid: Option<u32>,
    gid: Option<u32>,
    mode: Option<u32>,
    max_size_bytes: Option<u64>,
}

impl<'a> ProjectedFields<'a> {
    fn set(&mut self, pair: &'a str) -> Result<(), String> {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(format!("\"{pair}\" is no key=value"));
        };
        if self.seen.contains(&key) {
            return Err(format!("{key}= is given twice"));
        }
        self.seen.push(key);
        match key {
            "tag" => self.tag = Some(value.to_owned()),
            "name" => self.name = Some(value.to_owned()),
            "path" if value.is_empty() => return Err("path= is empty; give a directory".to_owned()),
            "path" => self.path = Some(value.into()),
            "uid" => self.uid = Some(parse_id(key, value)?),
            "gid" => self.gid = Some(parse_id(key, value)?),
            "mode" => self.mode = Some(parse_mode(value)?),
            "max-size" => {
                let size =
                    units::parse_size(value).map_err(|mistake| format!("max-size={value}: {mistake}"))?;
                self.max_size_bytes = Some(size);
            }
            _ => {
                return Err(format!(
                    "unknown key {key}=; tag, name, path, uid, gid, mode and max-size are known"
                ));
            }
        }
        Ok(())
    }

    fn finish(self, mistakes: &mut Vec<String>) -> Option<ProjectedSpec> {
        let exposure = match (self.tag, self.name) {
            (Some(tag), None) => Some(Exposure::Tag(tag)),
            (None, Some(name)) => Some(Exposure::Name(name)),
            _ => {
                mistakes.push("give either tag=NAME or name=NAME".to_owned());
                None
            }
        };
        if self.path.is_none() && !self.seen.contains(&"path") {
            mistakes.push("path=DIR is missing".to_owned());
        }
        // On a host of one's own there is no pod whose users the files could belong to.
        let ownership = Ownership { uid: self.uid.or(Some(0)), gid: self.gid.or(Some(0)), mode: self.mode };
        let volume = VolumeSpec {
            ownership,
            max_size_bytes: self.max_size_bytes.unwrap_or(DEFAULT_MAX_SIZE_BYTES),
            ..VolumeSpec::new(self.path?)
        };
        Some(ProjectedSpec { exposure: exposure?, volume })
    }
}

fn parse_id(key: &str, value: &str) -> Result<u32, String> {
    // The highest value means "no change" to chown(2) and is nobody's ID.
    value
        .parse()
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| format!("{key}={value} is no user or group ID"))
}

fn parse_mode(value: &str) -> Result<u32, String> {
    u32::from_str_radix(value, 8)
        .ok()
        .filter(|mode| *mode <= 0o777 && !value.starts_with('+'))
        .ok_or_else(|| format!("mode={value} is no octal mode up to 777"))
}

#[cfg(test)]
mod tests;
