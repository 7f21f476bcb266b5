// SPDX-License-Identifier: GPL-2.0
//! /init of a second-level guest: tries out the memory it was given, and says what it found.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use crate::case::{Failure, Outcome};
use crate::mapping::{Map, Mapping};
use crate::memory::Meminfo;
use crate::pattern::Pattern;
use crate::region::MIB;
use crate::{cmdline, mount, supervisor};

/// Left to the kernel while the pattern fills everything else.
const SPARE: u64 = 60 * MIB;

/// Powers the guest off at the end, whatever the result.
pub fn main() -> ExitCode {
    if let Err(Failure::Fail(reason) | Failure::Skip(reason)) = try_memory() {
        println!("guest: failed: {reason}");
    }
    supervisor::power_off()
}

fn try_memory() -> Outcome {
    mount::mount("dev", "/dev", "devtmpfs", 0, "")?;
    let mut console = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/ttyS0")?;
    writeln!(console, "\nguest: up")?;
    let total = Meminfo::read()?.bytes("MemTotal")?;
    let free = Meminfo::read()?.bytes("MemFree")?;
    let length = free.saturating_sub(SPARE) / (2 * MIB) * (2 * MIB);
    let memory = Map::new(length).anonymous()?;
    // Fewer faults; without huge pages it only takes longer.
    let _ = memory.advise(0, length, libc::MADV_HUGEPAGE);
    let pattern = Pattern::new(total);
    pattern.fill(memory.words(0, length), 0);
    pattern.verify(memory.words(0, length), 0)?;
    writeln!(
        console,
        "guest: memory={}MiB pattern={}MiB ok",
        total / MIB,
        length / MIB
    )?;
    if cmdline::value("dmem.hold").is_some() {
        hold(&mut console, pattern, &memory)?;
    }
    Ok(())
}

/// Reads all of the memory over and over until the host says `off`.
fn hold(console: &mut std::fs::File, pattern: Pattern, memory: &Mapping) -> Outcome {
    // SAFETY: a plain system call on an open descriptor.
    if unsafe { libc::fcntl(console.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    let mut heard = String::new();
    for round in 1.. {
        pattern.verify(memory.words(0, memory.len() as u64), 0)?;
        let mut bytes = [0; 64];
        if let Ok(count) = console.read(&mut bytes) {
            heard.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        if heard.contains("off") {
            writeln!(console, "guest: held for {round} rounds ok")?;
            break;
        }
    }
    Ok(())
}
