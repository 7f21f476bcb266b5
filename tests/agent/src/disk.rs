// SPDX-License-Identifier: GPL-2.0
//! The further disks of a machine: the initramfs it was booted with, and an empty one for what has to outlive the kernel.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::case::{Failure, Outcome};
use crate::command::Command;
use crate::{module, mount, sysfs};

/// Where the empty disk's file system is.
pub const DISK: &str = "/mnt/disk";

/// Directories of the host that are on it.
const KEPT: &[&str] = &["/etc/daxdmem", "/var/lib/daxdmem"];

/// The disk of this serial number.
fn find(serial: &str) -> Outcome<PathBuf> {
    for disk in fs::read_dir("/sys/block")? {
        let disk = disk?;
        if sysfs::read(disk.path().join("serial")).is_ok_and(|found| found == serial) {
            return Ok(Path::new("/dev").join(disk.file_name()));
        }
    }
    Err(Failure::Fail(format!(
        "no disk has the serial number {serial}"
    )))
}

/// Mounts the disk, which gets a file system where it has none, and has what the tool keeps on disks be there.
pub fn attach() -> Outcome {
    let disk = find("empty")?;
    module::load("ext4")?;
    let source = disk.display().to_string();
    if mount::mount(&source, DISK, "ext4", 0, "").is_err() {
        Command::line(&format!("mke2fs -q -t ext4 {source}"))
            .limit(60)
            .run()?;
        mount::mount(&source, DISK, "ext4", 0, "")?;
    }
    for directory in KEPT {
        let there = format!("{DISK}{directory}");
        fs::create_dir_all(&there)?;
        mount::mount(&there, directory, "", libc::MS_BIND, "")?;
    }
    Ok(())
}

/// The kernel that runs, as a file.
pub fn kernel() -> Outcome<String> {
    let release = sysfs::read("/proc/sys/kernel/osrelease")?;
    Ok(format!("/usr/lib/modules/{release}/vmlinuz"))
}

/// The initramfs of this VM, as a file.
pub fn initramfs() -> Outcome<&'static str> {
    const FILE: &str = "/run/initramfs";
    // The kernel takes it from a file only, not from a disk.
    let mut disk = fs::File::open(find("initramfs")?)?;
    io::copy(&mut disk, &mut fs::File::create(FILE)?)?;
    Ok(FILE)
}
