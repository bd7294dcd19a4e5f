//! The demonstration that `cargo xtask demo` runs on a KVM host: one guest, one token, three rotations.

use anyhow::{Result, ensure};
use std::time::Duration;
use std::{fs, thread};
use tests::atomic_writer::{AtomicWriter, Payload, file};
use tests::vm::Vm;

/// Long enough for a person to follow.
const PAUSE: Duration = Duration::from_secs(1);

fn main() -> Result<()> {
    let volume = tempfile::Builder::new().prefix("laterna-demo-").tempdir()?;
    let path = fs::canonicalize(volume.path())?;
    let writer = AtomicWriter::new(&path);
    rotate(&writer, 1)?;
    say("host ", &format!("a projected directory as the kubelet writes it: {}", path.display()));
    show_directory(&path)?;

    let projected = format!("tag=token,path={}", path.display());
    say("host ", &format!("$ laterna run --kernel vmlinuz --initramfs guest.cpio --projected {projected}"));
    let mut vm = Vm::builder().projected(&projected).spawn()?;
    vm.wait_for_boot()?;
    guest(&vm, "uname -sr")?;
    guest(&vm, "mount -t virtiofs token /mnt")?;
    guest(&vm, "ls -l /mnt")?;
    check(&vm, 1)?;
    for number in 2..=4 {
        thread::sleep(PAUSE);
        rotate(&writer, number)?;
        say("host ", &format!("rotated: ..data -> {}", fs::read_link(path.join("..data"))?.display()));
        check(&vm, number)?;
    }
    say("guest", "$ poweroff");
    vm.start_sh("guest-tool poweroff")?;
    let code = vm.wait_exit()?;
    say("host ", &format!("laterna exited with {code}"));
    ensure!(code == 0, "laterna exited with {code}");
    say("demo ", "each read after a rotation saw the new token at once");
    Ok(())
}

fn token(number: u32) -> String {
    format!("token-{number}")
}

fn rotate(writer: &AtomicWriter, number: u32) -> Result<()> {
    Ok(writer.write(&Payload::from([file("token", token(number)), file("namespace", "demo")]))?)
}

fn show_directory(path: &std::path::Path) -> Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let target =
            fs::read_link(entry.path()).map_or(String::new(), |target| format!(" -> {}", target.display()));
        say("host ", &format!("    {}{target}", entry.file_name().display()));
    }
    Ok(())
}

/// Runs a command in the guest in front of the user's eyes.
fn guest(vm: &Vm, command: &str) -> Result<String> {
    say("guest", &format!("$ {command}"));
    let text = vm.sh(command)?;
    text.lines().for_each(|line| say("guest", line));
    Ok(text)
}

fn check(vm: &Vm, number: u32) -> Result<()> {
    let seen = guest(vm, "cat /mnt/token")?;
    ensure!(seen == token(number), "The guest sees {seen}, the host wrote {}", token(number));
    Ok(())
}

fn say(who: &str, what: &str) {
    println!("[{who}] {what}");
}
