// SPDX-License-Identifier: GPL-2.0
//! Real machine checks, by the monitor of the QEMU around the VM.

use std::time::{Duration, Instant};

use crate::case::{Failure, Outcome};
use crate::cmdline::patient;
use crate::control::Control;
use crate::spinner::{last_cpu, MAGIC};

/// A bank that no processor's quirk is about.
const BANK: u32 = 9;
// IA32_MCi_STATUS (Intel SDM 3B, 16.3.2.2).
const VALID: u64 = 1 << 63;
const UNCORRECTED: u64 = 1 << 61;
const ENABLED: u64 = 1 << 60;
const MISC_VALID: u64 = 1 << 59;
const ADDRESS_VALID: u64 = 1 << 58;
const SIGNALED: u64 = 1 << 56;
const ACTION_REQUIRED: u64 = 1 << 55;
/// A load of data that met an error in the cache hierarchy.
const DATA_LOAD: u64 = 0x134;
/// Found by the memory controller's patrol, on no channel in particular.
const PATROL_SCRUB: u64 = 0xcf;
// IA32_MCG_STATUS.
const IP_RESTARTS: u64 = 1 << 0;
const IP_IS_OF_ERROR: u64 = 1 << 1;
const IN_PROGRESS: u64 = 1 << 2;
/// IA32_MCi_MISC: the address is physical, its lowest 12 bits are not known.
const PAGE_OF_PHYSICAL: u64 = (2 << 6) | 12;

/// What can be said of the instruction at which the processor was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// It can be executed again.
    Possible,
    /// It cannot, as far as the processor knows.
    Unknown,
}

fn command(cpu: usize, status: u64, global: u64, address: u64) -> String {
    let status = status | VALID | UNCORRECTED | ENABLED | MISC_VALID | ADDRESS_VALID | SIGNALED;
    let global = global | IN_PROGRESS;
    format!("mce -b {cpu} {BANK} {status:#x} {global:#x} {address:#x} {PAGE_OF_PHYSICAL:#x}")
}

/// Has a load on the last CPU meet an error at this physical address ("action required"), in a process that is in
/// [`crate::probe::read_until_fault`] there.
pub fn load(address: u64, restart: Restart) -> Outcome {
    let cpu = last_cpu()?;
    let global = match restart {
        Restart::Possible => IP_RESTARTS | IP_IS_OF_ERROR,
        Restart::Unknown => IP_IS_OF_ERROR,
    };
    let command = command(cpu, ACTION_REQUIRED | DATA_LOAD, global, address);
    let request = format!("strike {cpu} {MAGIC:x} {command}");
    let mut control = Control::inherited()?;
    let deadline = Instant::now() + patient(Duration::from_secs(10));
    while Instant::now() < deadline {
        match control.request(&request)?.as_str() {
            "hit" => return Ok(()),
            "missed" => std::thread::sleep(Duration::from_millis(5)),
            other => return Err(Failure::Fail(format!("QEMU's monitor says {other}"))),
        }
    }
    Err(Failure::Fail(format!("CPU {cpu} is not in the loop")))
}

/// Has the memory controller find an error at this physical address that nobody has consumed ("action optional").
pub fn patrol(address: u64) -> Outcome {
    let command = command(0, PATROL_SCRUB, IP_RESTARTS, address);
    match Control::inherited()?
        .request(&format!("hmp {command}"))?
        .trim()
    {
        "" => Ok(()),
        refusal => Err(Failure::Fail(format!("QEMU's monitor says {refusal}"))),
    }
}
