// SPDX-License-Identifier: GPL-2.0
//! Resets of the first-level VM in the middle of a case: all that survives is what was in its memory.
//!
//! The process of the case ends, PID 1 makes sure that the kernel log is clean so far, and the runner has QEMU reset
//! the machine: like a reset button, nothing is shut down or written back. The same case then runs once more in the
//! new boot, and [`count`] tells which of its parts it is in.

use crate::case::Outcome;

/// Tells the process of a case how many resets it has seen.
pub const VARIABLE: &str = "DMEM_RESETS";
/// Exit code of a case's process that wants a reset.
pub const CODE: i32 = 5;
/// The same for one that wants another boot, with the parameters in [`PARAMETERS`].
pub const BOOT_CODE: i32 = 6;
/// The same for one that has loaded another kernel, which is to take over.
pub const KEXEC_CODE: i32 = 7;
/// The same for one that has loaded a kernel for the case of a crash: the kernel is to panic.
pub const CRASH_CODE: i32 = 8;
/// Further kernel parameters for the next boot.
pub const PARAMETERS: &str = "/run/dmem/parameters";

/// How many times the running case had the VM reset, booted again or gone on in another kernel, after a crash or not.
pub fn count() -> u32 {
    let text = std::env::var(VARIABLE).unwrap_or_default();
    text.parse().unwrap_or(0)
}

/// Has the VM reset, with devices, processes and the driver's work as they are at this moment.
///
/// Only for the process of a case itself, not for its children. No value is dropped, so nothing is destroyed.
pub fn vm() -> ! {
    std::process::exit(CODE)
}

/// Has the machine powered off and booted with further kernel parameters: nothing survives, memory neither.
///
/// For the process of a case itself, as [`vm`].
pub fn boot_with(parameters: &str) -> Outcome {
    std::fs::write(PARAMETERS, parameters)?;
    std::process::exit(BOOT_CODE)
}

/// Has the kernel that was loaded by kexec_file_load(2) take over. Memory survives, and disks do.
///
/// For the process of a case itself, as [`vm`].
pub fn kexec() -> ! {
    std::process::exit(KEXEC_CODE)
}

/// Has the kernel panic, and the one that was loaded for that take over, with a dump of the first one's memory.
///
/// For the process of a case itself, as [`vm`].
pub fn crash() -> ! {
    std::process::exit(CRASH_CODE)
}
