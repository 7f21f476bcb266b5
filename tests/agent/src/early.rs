// SPDX-License-Identifier: GPL-2.0
//! /init of a first-level VM, while it runs from the initramfs: finds the root file system and goes there.
//!
//! The initramfs holds this program, the few modules the root needs (`/modules/NN-name`, loaded in name
//! order) and the payload under test (`/payload`). The root is a read-only squashfs on a virtio disk with a
//! tmpfs over it, so that cases may write anywhere and leave nothing behind. A second squashfs, if the command
//! line names one (`dmem.overlay=`), lies between them: the modules of a kernel that the root knows nothing of.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::{cmdline, module, mount, payload, supervisor};

const DISK: &str = "/dev/vda";
const ROOT: &str = "/new/root";

/// Does not return unless something is wrong; the kernel then panics as PID 1 ends, which ends the VM.
pub fn main() -> ExitCode {
    match start() {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("dmem-agent: the first-level VM cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> io::Result<std::convert::Infallible> {
    mount::mount("dev", "/dev", "devtmpfs", 0, "")?;
    if !Path::new("/proc/self").exists() {
        mount::mount("proc", "/proc", "proc", 0, "")?;
    }
    mount::mount("sys", "/sys", "sysfs", 0, "")?;
    let mut modules: Vec<_> = std::fs::read_dir("/modules")?
        .filter_map(|e| Some(e.ok()?.path()))
        .collect();
    modules.sort();
    for path in modules {
        module::insert(&path)?;
    }
    wait_for(DISK)?;
    mount::mount(DISK, "/new/lower", "squashfs", libc::MS_RDONLY, "")?;
    mount::mount("rw", "/new/rw", "tmpfs", 0, "mode=755")?;
    std::fs::create_dir_all("/new/rw/upper")?;
    std::fs::create_dir_all("/new/rw/work")?;
    let mut lower = "/new/lower".to_owned();
    if let Some(disk) = cmdline::value("dmem.overlay") {
        wait_for(&disk)?;
        mount::mount(&disk, "/new/over", "squashfs", libc::MS_RDONLY, "")?;
        lower = format!("/new/over:{lower}");
    }
    let layers = format!("lowerdir={lower},upperdir=/new/rw/upper,workdir=/new/rw/work");
    mount::mount("root", ROOT, "overlay", 0, &layers)?;
    for name in ["dev", "proc", "sys", "run", "tmp"] {
        std::fs::create_dir_all(format!("{ROOT}/{name}"))?;
    }
    mount::mount("run", &format!("{ROOT}/run"), "tmpfs", 0, "mode=755")?;
    payload::carry(
        Path::new("/payload"),
        &Path::new(ROOT).join(payload::DIRECTORY.trim_start_matches('/')),
    )?;
    std::fs::copy("/init", format!("{ROOT}{}", supervisor::PROGRAM))?;
    mount::switch_root(ROOT)?;
    Err(std::process::Command::new(supervisor::PROGRAM)
        .arg(supervisor::ARGUMENT)
        .exec())
}

fn wait_for(path: &str) -> io::Result<()> {
    let deadline = Instant::now() + cmdline::patient(Duration::from_secs(20));
    while !Path::new(path).exists() {
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("{path} did not appear")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
