// SPDX-License-Identifier: GPL-2.0
//! The payload: what is under test, carried into the VM beside the root file system.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::case::{Failure, Outcome};

/// Where the payload lies in a running first-level VM.
pub const DIRECTORY: &str = "/run/dmem";
/// The driver.
pub const MODULE: &str = "dax_dmem";

const TOOL: &str = "daxdmem";

/// Copies the payload out of the initramfs.
pub fn carry(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// A file of the payload.
pub fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Modules that second-level guests may have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum GuestModules {
    /// None.
    None,
    /// For disks and the network.
    Devices,
    /// For guests of its own.
    Hypervisor,
}

/// The initramfs of second-level guests with these modules.
pub fn guest_initramfs(modules: GuestModules) -> io::Result<PathBuf> {
    let plain = path("guest.cpio");
    let more = match modules {
        GuestModules::None => return Ok(plain),
        GuestModules::Devices => "guest-modules.cpio",
        GuestModules::Hypervisor => "guest-hypervisor.cpio",
    };
    let whole = path(&format!("whole-{more}"));
    if !whole.exists() {
        // The kernel unpacks archives that follow each other.
        let mut bytes = fs::read(plain)?;
        bytes.extend(fs::read(path(more))?);
        fs::write(&whole, bytes)?;
    }
    Ok(whole)
}

fn module_file() -> PathBuf {
    path(&format!("{MODULE}.ko"))
}

/// Puts module and tool where a host has them.
///
/// The module index of the root file system stays as it is: depmod over a whole kernel takes a minute under
/// emulation. An `install` line makes `modprobe dax_dmem` work all the same.
pub fn install() -> io::Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    if module_file().exists() {
        let updates = format!("/usr/lib/modules/{}/updates", release.trim_end());
        fs::create_dir_all(&updates)?;
        let installed = format!("{updates}/{MODULE}.ko");
        fs::copy(module_file(), &installed)?;
        fs::create_dir_all("/etc/modprobe.d")?;
        let line = format!("install {MODULE} /usr/sbin/insmod {installed} $CMDLINE_OPTS\n");
        fs::write(format!("/etc/modprobe.d/{MODULE}-lab.conf"), line)?;
    }
    let tool = path(TOOL);
    if tool.exists() {
        let installed = format!("/usr/bin/{TOOL}");
        fs::copy(&tool, &installed)?;
        fs::set_permissions(&installed, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Whether the driver was built and came along.
pub fn has_module() -> bool {
    module_file().exists()
}

/// Fails the case unless the driver came along, and loads it.
pub fn need_module() -> Outcome {
    if !has_module() {
        return Err(Failure::Fail(format!(
            "{MODULE}.ko did not come along: build it with 'make module' first"
        )));
    }
    crate::module::load(MODULE)
}

/// Fails the case unless the operator's tool came along.
pub fn need_tool() -> Outcome {
    if !path(TOOL).exists() {
        return Err(Failure::Fail(format!(
            "{TOOL} did not come along: build it with 'make tool' first"
        )));
    }
    Ok(())
}
