//! Kernel modules of a Debian kernel package: found by name, with what they depend on, decompressed.
//!
//! The package has no `modules.dep` (its installation scripts make it), so the `depends=` line of each
//! module's own `.modinfo` section is read.

use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A module ready for `finit_module(2)`.
#[derive(Debug, Clone)]
pub struct Module {
    /// As the kernel calls it, `_` instead of `-`.
    pub name: String,
    /// The decompressed ELF object.
    pub object: Vec<u8>,
}

/// The modules `names` and all they need from the tree `modules` (`lib/modules/VERSION`), in an order that loads.
pub fn resolve(modules: &Path, names: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    index(modules, &mut files)?;
    let mut resolver = Resolver { files, seen: BTreeSet::new(), ordered: Vec::new() };
    for name in names {
        resolver.add(name)?;
    }
    Ok(resolver.ordered)
}

struct Resolver {
    files: BTreeMap<String, PathBuf>,
    seen: BTreeSet<String>,
    ordered: Vec<Module>,
}

impl Resolver {
    fn add(&mut self, name: &str) -> Result<()> {
        let name = name.replace('-', "_");
        if !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let Some(file) = self.files.get(&name) else { bail!("The kernel package has no module {name}") };
        let object = read_object(file)?;
        for dependency in dependencies(&object) {
            self.add(&dependency)?;
        }
        self.ordered.push(Module { name, object });
        Ok(())
    }
}

fn index(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("Cannot list {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let file_name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            index(&entry.path(), files)?;
        } else if let Some((name, _)) = file_name.split_once(".ko") {
            files.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

fn read_object(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|e| e != "xz") {
        return fs::read(file).with_context(|| format!("Cannot read {}", file.display()));
    }
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(file).output();
    let output = output.context("Cannot run xz; `cargo xtask setup` installs it")?;
    if !output.status.success() {
        bail!("xz cannot decompress {}: {}", file.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// The names in the object's `depends=` entry, which like all of `.modinfo` is a string that ends in a zero byte.
fn dependencies(object: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = object.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value =
        object.iter().skip(start + KEY.len()).take_while(|byte| **byte != 0).copied().collect::<Vec<_>>();
    let value = String::from_utf8_lossy(&value).into_owned();
    value.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::{dependencies, resolve};
    use std::fs;

    #[test]
    fn what_a_module_needs_is_loaded_before_it() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("kvm")).unwrap();
        fs::write(tree.path().join("kvm/kvm-amd.ko"), b"x\0depends=kvm,ccp\0").unwrap();
        fs::write(tree.path().join("kvm/kvm.ko"), b"x\0depends=irqbypass\0").unwrap();
        fs::write(tree.path().join("ccp.ko"), b"x\0depends=\0").unwrap();
        fs::write(tree.path().join("irqbypass.ko"), b"no information").unwrap();
        let names = resolve(tree.path(), &["kvm-amd", "kvm"]).unwrap();
        let names = names.iter().map(|m| m.name.as_str()).collect::<Vec<_>>();
        assert_eq!(names, ["irqbypass", "kvm", "ccp", "kvm_amd"]);
        assert!(resolve(tree.path(), &["absent"]).is_err());
    }

    #[test]
    fn a_module_without_dependencies_has_none() {
        assert!(dependencies(b"junk\0depends=\0more").is_empty());
    }
}
