// SPDX-License-Identifier: GPL-2.0
//! A process that maps memory and then spins in user mode, so that the QEMU monitor sees its page table.
//!
//! The monitor knows CPUs, not processes. The spinner is pinned to the last CPU and keeps a magic number in a
//! register: a look at that CPU counts only when it is in user mode with that number in place.

use crate::case::{Failure, Named, Outcome};
use crate::child::{Child, Link};
use crate::control::Control;
use crate::mapping::Mapping;
use crate::pages::{Leaves, View};
use crate::probe::{self, Fault};

/// What a spinning process has in R15.
pub const MAGIC: u64 = 0x6461_7864_6d65_6d21;
/// Interrupts and kernel work on that CPU make a look miss now and then.
const LOOKS: u32 = 60;

/// The spinning process.
pub struct Spinner {
    // Killed on drop.
    child: Child,
    cpu: usize,
    low: u64,
    high: u64,
}

impl Spinner {
    /// Runs the closure in a child, then spins there with the mapping it made.
    pub fn start(map: impl FnOnce() -> Outcome<Mapping>) -> Outcome<Spinner> {
        Self::begin(map, |_, _| spin())
    }

    fn begin(
        map: impl FnOnce() -> Outcome<Mapping>,
        body: impl FnOnce(Mapping, &mut Link) -> Outcome,
    ) -> Outcome<Spinner> {
        let cpu = last_cpu()?;
        let mut child = Child::start(|link| {
            pin(cpu)?;
            let mapping = map()?;
            link.send(&format!("{} {}", mapping.address(), mapping.len()))?;
            body(mapping, link)
        })?;
        let place = child.link().receive()?;
        let mut numbers = place.split(' ').filter_map(|word| word.parse::<u64>().ok());
        let (Some(low), Some(length)) = (numbers.next(), numbers.next()) else {
            return Err(Failure::Fail(format!("the spinner said '{place}'")));
        };
        Ok(Spinner {
            child,
            cpu,
            low,
            high: low + length,
        })
    }

    /// Runs the closure in a child, which then reads the word at this offset of the mapping until that fails, says
    /// how (see [`describe`]), and does what `after` says.
    pub fn reading(
        map: impl FnOnce() -> Outcome<Mapping>,
        offset: u64,
        after: impl FnOnce(&Mapping, &mut Link) -> Outcome,
    ) -> Outcome<Spinner> {
        Self::begin(map, |mapping, link| {
            let fault = probe::read_until_fault(mapping.address() + offset as usize, MAGIC);
            link.send(&describe(&fault))?;
            after(&mapping, link)
        })
    }

    /// The process.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for the end of a process that reads.
    pub fn finish(self) -> Outcome {
        self.child.finish()
    }

    /// Process id.
    pub fn pid(&self) -> libc::pid_t {
        self.child.pid()
    }

    /// First virtual address of the mapping in the spinner.
    pub fn address(&self) -> u64 {
        self.low
    }

    /// The leaves of the whole mapping.
    pub fn leaves(&self) -> Outcome<Leaves> {
        self.leaves_between(self.low, self.high)
    }

    /// The leaves that start in these virtual addresses of the spinner.
    pub fn leaves_between(&self, low: u64, high: u64) -> Outcome<Leaves> {
        let mut control = Control::inherited()?;
        for _ in 0..LOOKS {
            let reply = control.request(&format!("tlb {} {low:x} {high:x}", self.cpu))?;
            let view = View::parse(&reply)?;
            if view.user_mode && view.r15 == MAGIC {
                return Ok(view.leaves);
            }
        }
        Err(Failure::Fail(format!(
            "CPU {} never showed the spinner in {LOOKS} looks",
            self.cpu
        )))
    }
}

/// The CPU that spinners are pinned to.
pub fn last_cpu() -> Outcome<usize> {
    let online = crate::sysfs::read("/sys/devices/system/cpu/online")?;
    let last = online
        .rsplit(['-', ','])
        .next()
        .and_then(|text| text.parse().ok());
    last.ok_or_else(|| Failure::Fail(format!("online CPUs '{online}'")))
}

/// Pins the calling process to a CPU.
pub fn pin(cpu: usize) -> Outcome {
    // SAFETY: `set` is plain data; the macros only set bits in it.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, std::mem::size_of_val(&set), &set)
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error()).named(format_args!("pinning to CPU {cpu}"));
    }
    Ok(())
}

/// A fault in a line: signal, code, address, log2 of the bytes lost.
pub fn describe(fault: &Fault) -> String {
    let Fault {
        signal,
        code,
        address,
        lsb,
    } = fault;
    format!("{signal} {code} {address:#x} {lsb}")
}

/// Keeps the CPU in user mode with [`MAGIC`] in R15 until the process is killed.
pub fn spin() -> ! {
    // SAFETY: an endless loop that touches one register, which nobody needs afterwards.
    unsafe {
        std::arch::asm!("2: jmp 2b", in("r15") MAGIC, options(noreturn, nomem, nostack));
    }
}
