//! What of the host a VM depends on: /dev/kvm and who may open it, KVM's capabilities, CPU features, limits.

use std::fs;
use std::os::unix::fs::MetadataExt;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};
use rustix::process::{Resource, geteuid, getgroups, getrlimit};

use super::Check;
use crate::kvm;

const DEVICE: &str = "/dev/kvm";
/// Set in every container of a pod.
const POD_VARIABLE: &str = "KUBERNETES_SERVICE_HOST";

/// Whether /dev/kvm is there and can be opened.
pub(super) fn access() -> Vec<Check> {
    let name = format!("access to {DEVICE}");
    match kvm::open() {
        Ok(_) => vec![Check::pass(name, device_owner())],
        Err(error) => vec![Check::fail(name, format!("{error}; {}", device_owner()), access_advice(&error))],
    }
}

fn device_owner() -> String {
    let whoami = format!("this process is uid {}", geteuid().as_raw());
    match fs::metadata(DEVICE) {
        Ok(device) => format!(
            "{DEVICE} has mode {:o}, owner {}:{}; {whoami}, groups {}",
            device.mode() & 0o777,
            device.uid(),
            device.gid(),
            groups()
        ),
        Err(error) => format!("{DEVICE}: {error}; {whoami}"),
    }
}

fn groups() -> String {
    let groups = getgroups().unwrap_or_default();
    let groups: Vec<_> = groups.iter().map(|group| group.as_raw().to_string()).collect();
    if groups.is_empty() { "none".to_owned() } else { groups.join(" ") }
}

fn access_advice(error: &kvm::Error) -> String {
    let is_pod = std::env::var_os(POD_VARIABLE).is_some();
    match error {
        kvm::Error::Missing if is_pod => {
            "request the device of a KVM device plugin in the container's resources \
             limits (such as squat.ai/kvm or devices.kubevirt.io/kvm); privileged is not needed"
                .to_owned()
        }
        kvm::Error::Permission if is_pod => "the device's group is not the container's: set \
             securityContext.supplementalGroups to it, or have containerd give devices the container's user \
             (device_ownership_from_security_context = true)"
            .to_owned(),
        kvm::Error::Missing => {
            "modprobe kvm_intel or kvm_amd; switch VT-x or SVM on in the firmware, or nested \
             virtualisation in the cloud"
                .to_owned()
        }
        kvm::Error::Permission => {
            format!("usermod -aG kvm $USER and log in again, or run as the owner of {DEVICE}")
        }
        _ => "use a newer host kernel".to_owned(),
    }
}

/// What KVM says of itself and of the CPU.
pub(super) fn capabilities() -> Vec<Check> {
    let Ok(kvm) = kvm::open() else { return Vec::new() };
    let mut checks = vec![Check::pass("KVM", format!("up to {} vCPUs", kvm.get_max_vcpus()))];
    match kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES) {
        Ok(cpuid) => checks.extend(cpu_features(&kvm, &cpuid)),
        Err(error) => {
            checks.push(Check::fail("CPU features", format!("KVM does not list them: {error}"), ""));
        }
    }
    checks
}

/// Bit positions are those of CPUID (SDM vol. 2, CPUID; AMD APM vol. 3, appendix E).
fn cpu_features(kvm: &Kvm, cpuid: &CpuId) -> Vec<Check> {
    let has = |function: u32, bit_of: fn(&kvm_bindings::kvm_cpuid_entry2) -> u32, bit: u32| {
        cpuid.as_slice().iter().any(|entry| entry.function == function && bit_of(entry) >> bit & 1 == 1)
    };
    let needed = [
        ("long mode", has(0x8000_0001, |entry| entry.edx, 29)),
        ("cx16", has(1, |entry| entry.ecx, 13)),
        ("xsave", has(1, |entry| entry.ecx, 26)),
        ("pat", has(1, |entry| entry.edx, 16)),
    ];
    let useful = [
        ("x2apic", has(1, |entry| entry.ecx, 21)),
        ("tsc-deadline", kvm.check_extension(Cap::TscDeadlineTimer)),
        ("invariant TSC", has(0x8000_0007, |entry| entry.edx, 8)),
        ("kvm-clock", has(0x4000_0001, |entry| entry.eax, 3)),
    ];
    let list = |features: &[(&str, bool)], wanted: bool| {
        let names: Vec<_> =
            features.iter().filter(|(_, has)| *has == wanted).map(|(name, _)| *name).collect();
        names.join(", ")
    };
    let all: Vec<_> = needed.iter().chain(&useful).copied().collect();
    let mut checks = Vec::new();
    if needed.iter().any(|(_, has)| !has) {
        checks.push(Check::fail(
            "CPU features",
            format!("missing: {}", list(&needed, false)),
            "use another host",
        ));
    } else if useful.iter().any(|(_, has)| !has) {
        let detail = format!("{}; missing: {}", list(&all, true), list(&useful, false));
        checks.push(Check::warn("CPU features", detail, "guests run, with slower timers and interrupts"));
    } else {
        checks.push(Check::pass("CPU features", list(&all, true)));
    }
    checks
}

/// Limits that later bite: inotify for rotations, locked memory, open files.
pub(super) fn limits() -> Vec<Check> {
    let mut checks = vec![inotify_instances()];
    for (name, resource) in
        [("locked memory (memlock)", Resource::Memlock), ("open files (nofile)", Resource::Nofile)]
    {
        let limit = getrlimit(resource).current;
        checks.push(Check::pass(name, limit.map_or("unlimited".to_owned(), |limit| limit.to_string())));
    }
    checks
}

fn inotify_instances() -> Check {
    let name = "inotify instances per user";
    let path = "/proc/sys/fs/inotify/max_user_instances";
    let least = 128;
    match fs::read_to_string(path).map(|text| text.trim().parse::<u64>()) {
        Ok(Ok(limit)) if limit >= least => Check::pass(name, limit.to_string()),
        Ok(Ok(limit)) => {
            Check::warn(name, limit.to_string(), format!("sysctl fs.inotify.max_user_instances={least}"))
        }
        _ => Check::warn(name, format!("{path} cannot be read"), "mount /proc"),
    }
}
