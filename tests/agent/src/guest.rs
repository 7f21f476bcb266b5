// SPDX-License-Identifier: GPL-2.0
//! /init of a second-level guest: tries out the memory it was given, and says what it found.
//!
//! With `dmem.commands=1` it waits for commands on its console instead, and answers each with a line:
//!
//! | command | what it does |
//! |---|---|
//! | `page` | starts a program with a page of its own; says its guest-physical address |
//! | `read`, `write` | has the program touch its page; says what it was told, and forgets the program |
//! | `look` | has the kernel look at the machine check banks each second, not each five minutes |
//! | `check` | looks whether all other memory holds what was written |
//! | `disk …`, `net …` | reads or writes a disk, or talks to the host by TCP, see [`crate::guest_io`] |
//! | `clock`, `stolen …`, `late-pages`, `hypervisor` | what it has from KVM beside memory, see [`crate::guest_kvm`] |
//! | `reboot`, `off` | what they say, without an answer |

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

use crate::case::{Failure, Outcome};
use crate::child::Child;
use crate::mapping::{Map, Mapping};
use crate::memory::Meminfo;
use crate::pattern::Pattern;
use crate::poison::PAGE;
use crate::probe;
use crate::region::MIB;
use crate::spinner::describe;
use crate::{cmdline, fail, guest_io, guest_kvm, mount, supervisor, sysfs};

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
    let mut console = File::options().read(true).write(true).open("/dev/ttyS0")?;
    if cmdline::value("dmem.commands").is_some() {
        return obey(&mut console);
    }
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

/// Bytes at the start of the memory that `dmem.write=1` has written over and over.
const WRITTEN: u64 = 32 * MIB;

/// Reads all of the memory over and over until the host says `off`. With `dmem.write=1` the first of it is written
/// anew in each round, each time with another pattern, and the rest is read at the end. Asked for `rounds`, says how
/// many there were.
fn hold(console: &mut File, pattern: Pattern, memory: &Mapping) -> Outcome {
    // SAFETY: a plain system call on an open descriptor.
    if unsafe { libc::fcntl(console.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    let length = memory.len() as u64;
    let writes = cmdline::value("dmem.write").is_some();
    let mut first = pattern;
    let mut heard = String::new();
    for round in 1.. {
        first.verify(memory.words(0, WRITTEN), 0)?;
        if writes {
            first = Pattern::new(round);
            first.fill(memory.words(0, WRITTEN), 0);
        } else {
            pattern.verify(memory.words(WRITTEN, length - WRITTEN), WRITTEN)?;
        }
        let mut bytes = [0; 64];
        if let Ok(count) = console.read(&mut bytes) {
            heard.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        if heard.contains("rounds") {
            heard.clear();
            writeln!(console, "guest: rounds {round}")?;
        }
        if heard.contains("off") {
            first.verify(memory.words(0, WRITTEN), 0)?;
            pattern.verify(memory.words(WRITTEN, length - WRITTEN), WRITTEN)?;
            writeln!(console, "guest: held for {round} rounds ok")?;
            break;
        }
    }
    Ok(())
}

/// Memory that is checked for being what was written.
const CHECKED: u64 = 64 * MIB;

/// Seconds between two looks at the machine check banks.
const INTERVAL: &str = "/sys/devices/system/machinecheck/machinecheck0/check_interval";

/// Executes commands until one ends the guest.
fn obey(console: &mut File) -> Outcome {
    silence(console)?;
    let memory = Map::new(CHECKED).anonymous()?;
    let pattern = Pattern::new(CHECKED);
    pattern.fill(memory.words(0, CHECKED), 0);
    writeln!(console, "\nguest: ready")?;
    let mut program = None;
    for line in BufReader::new(console.try_clone()?).lines() {
        let answer = match line?.trim() {
            "page" => {
                let mut child = program_with_page()?;
                let answer = format!("page {}", child.link().receive()?);
                program = Some(child);
                answer
            }
            command @ ("read" | "write") => {
                let Some(mut child) = program.take() else {
                    fail!("there is no program");
                };
                child.link().send(command)?;
                let answer = format!("told {}", child.link().receive()?);
                child.finish()?;
                answer
            }
            "look" => {
                mount::mount("sys", "/sys", "sysfs", 0, "")?;
                sysfs::write(INTERVAL, "1")?;
                "looks".to_owned()
            }
            "check" => {
                pattern.verify(memory.words(0, CHECKED), 0)?;
                "checked".to_owned()
            }
            "reboot" => {
                // SAFETY: plain system call; there is nothing to be written to a disk.
                unsafe { libc::reboot(libc::RB_AUTOBOOT) };
                fail!("it did not reboot");
            }
            "off" => return Ok(()),
            "" => continue,
            command if guest_io::knows(command) => guest_io::obey(command),
            command if guest_kvm::knows(command) => guest_kvm::obey(command)?,
            other => format!("knows no {other}"),
        };
        // At once: the kernel's own messages come to the same console.
        console.write_all(format!("guest: {answer}\n").as_bytes())?;
    }
    Ok(())
}

/// Keeps the terminal from sending back what it gets.
fn silence(console: &File) -> Outcome {
    // SAFETY: plain data, and calls on an open terminal.
    let result = unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        match libc::tcgetattr(console.as_raw_fd(), &mut settings) {
            0 => {
                settings.c_lflag &= !libc::ECHO;
                libc::tcsetattr(console.as_raw_fd(), libc::TCSANOW, &settings)
            }
            failed => failed,
        }
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error().into()),
    }
}

/// A program with one page: says where that is in the guest's memory, touches it when told, says what came of it.
fn program_with_page() -> Outcome<Child> {
    Child::start(|link| {
        let page = Map::new(PAGE).anonymous()?;
        page.write(0, 1);
        link.send(&format!("{:#x}", physical(page.address())?))?;
        let fault = match link.receive()?.as_str() {
            "read" => probe::read(page.address()).err(),
            _ => probe::write(page.address(), 2).err(),
        };
        let told = match fault {
            Some(mut fault) => {
                // What matters is the place in the page.
                fault.address -= page.address();
                describe(&fault)
            }
            None => "nothing".to_owned(),
        };
        link.send(&told)
    })
}

/// The physical address of a page of this process.
pub fn physical(address: usize) -> Outcome<u64> {
    const PRESENT: u64 = 1 << 63;
    let mut entry = [0; 8];
    let at = address as u64 / PAGE * 8;
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, at)?;
    let entry = u64::from_ne_bytes(entry);
    if entry & PRESENT == 0 {
        fail!("there is no page at {address:#x}");
    }
    Ok((entry & ((1 << 55) - 1)) * PAGE)
}
