// SPDX-License-Identifier: GPL-2.0
//! Processes that map a device, and what they are told of memory errors in it.

use std::time::Duration;

use crate::case::Outcome;
use crate::check_eq;
use crate::child::{Child, Link};
use crate::device::Device;
use crate::mapping::{Map, Mapping};
use crate::poison::PAGE;
use crate::probe::{self, Fault};
use crate::region::{GIB, MIB};

const HUGE: u64 = 2 * MIB;
/// `si_addr_lsb` of an error that costs 4 KiB.
pub const LSB: i16 = 12;
/// What a touch of the poisoned page at this address shows.
pub fn failed_at(address: usize) -> Fault {
    Fault {
        signal: libc::SIGBUS,
        code: libc::BUS_MCEERR_AR,
        address,
        lsb: LSB,
    }
}

/// Touches a page that must fail, and its neighbours, which must not.
pub fn touch_one_lost(mapping: &Mapping, lost: u64) -> Outcome {
    let address = mapping.address() + lost as usize;
    check_eq!(
        probe::read(address),
        Err(failed_at(address)),
        "a touch of it"
    );
    check_eq!(probe::read(address - 8).is_ok(), true, "a touch before it");
    check_eq!(
        probe::read(address + PAGE as usize).is_ok(),
        true,
        "a touch behind it"
    );
    Ok(())
}

/// Where a process has part of the device mapped, and how.
#[derive(Clone, Copy)]
pub struct View {
    pub offset: u64,
    pub length: u64,
    pub small: bool,
}

impl View {
    pub fn address_of(self, base: usize, at: u64) -> Option<usize> {
        let into = at
            .checked_sub(self.offset)
            .filter(|into| *into < self.length)?;
        Some(base + into as usize)
    }
}

/// Waits for SIGBUS: its code, address and size.
pub fn wait_for_signal(limit: Duration) -> Option<Fault> {
    // SAFETY: plain data, and a signal that this process has blocked.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGBUS);
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let time = libc::timespec {
            tv_sec: limit.as_secs() as i64,
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        if libc::sigtimedwait(&set, &mut info, &time) != libc::SIGBUS {
            return None;
        }
        // si_addr_lsb lies behind si_addr.
        let lsb = (&raw const info).cast::<u8>().add(24).cast::<i16>().read();
        Some(Fault {
            signal: libc::SIGBUS,
            code: info.si_code,
            address: info.si_addr() as usize,
            lsb,
        })
    }
}

pub fn block_sigbus(block: bool) {
    // SAFETY: plain data; only this thread's mask changes.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGBUS);
        let how = if block {
            libc::SIG_BLOCK
        } else {
            libc::SIG_UNBLOCK
        };
        libc::sigprocmask(how, &set, std::ptr::null_mut());
    }
}

/// Has errors told to this process as soon as they are known, as QEMU does.
pub fn want_early_signals() -> Outcome {
    // SAFETY: a setting of this process.
    let result = unsafe {
        libc::prctl(
            libc::PR_MCE_KILL,
            libc::PR_MCE_KILL_SET as libc::c_ulong,
            libc::PR_MCE_KILL_EARLY as libc::c_ulong,
            0,
            0,
        )
    };
    check_eq!(result, 0, "prctl");
    Ok(())
}

/// A process with a view: says when it is there, waits for a signal, says what came.
pub fn user(device: &Device, view: View, with_child: bool) -> Outcome<Child> {
    Child::start(|link| {
        block_sigbus(true);
        want_early_signals()?;
        let mapping = Map::new(view.length)
            .offset(view.offset)
            .file(&device.open()?)?;
        if view.small {
            mapping.advise(0, view.length, libc::MADV_NOHUGEPAGE)?;
        }
        mapping.touch(if view.small {
            PAGE.max(view.length / 64)
        } else {
            HUGE
        });
        link.send(&mapping.address().to_string())?;
        if !with_child {
            return tell(link);
        }
        let mut child = Child::start(|link| {
            link.send("there")?;
            tell(link)
        })?;
        child.link().receive()?;
        link.send("both")?;
        tell(link)?;
        child.link().send("go")?;
        let said = child.link().receive()?;
        link.send(&said)?;
        child.finish()
    })
}

/// A process with this view, which has the page that is to fail, with the address of its mapping; and one that maps another GiB
/// of a device of two. Both are there.
pub fn near_and_far(device: &Device, view: View, lost: u64) -> Outcome<((Child, usize), Child)> {
    let elsewhere = View {
        offset: if lost < GIB { GIB } else { 0 },
        length: GIB,
        small: false,
    };
    let mut near = user(device, view, false)?;
    let mut far = user(device, elsewhere, false)?;
    let base = near.link().receive()?.parse().unwrap_or(0);
    far.link().receive()?;
    Ok(((near, base), far))
}

/// Waits to be asked, then says what signal came: `nothing`, or its code, address and size.
pub fn tell(link: &mut Link) -> Outcome {
    link.receive()?;
    let text = match wait_for_signal(Duration::from_millis(300)) {
        None => "nothing".to_owned(),
        Some(fault) => format!("{} {:#x} {}", fault.code, fault.address, fault.lsb),
    };
    link.send(&text)
}
