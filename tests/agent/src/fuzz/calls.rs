// SPDX-License-Identifier: GPL-2.0
//! The system calls and accesses that operations are made of, and what they answer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::op::{
    address, Hole, Look, Observed, Seen, Shown, Span, Touch, ARENA, ARENA_PAGES, BLOCK,
    FLAG_DONTFORK, FLAG_HUGEPAGE, FLAG_NOHUGEPAGE, FLAG_READ, FLAG_WRITE, PAGE, SLOTS,
};
use crate::case::{Named, Outcome};
use crate::fail;
use crate::probe;
use crate::sysfs;

pub fn pointer(span: Span) -> *mut libc::c_void {
    span.address() as *mut libc::c_void
}

pub fn length(span: Span) -> usize {
    span.bytes() as usize
}

pub fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

pub fn outcome(result: libc::c_int) -> Seen {
    match result {
        0 => Seen::Done,
        _ => Seen::Errno(errno()),
    }
}

/// Success if an address is the expected one.
pub fn done_if(expected: bool, got: u64) -> Seen {
    if expected {
        Seen::Done
    } else {
        Seen::Number(got)
    }
}

/// mremap from one number of pages to another; without a target the place has to stay.
pub fn remap(from: u64, (old, new): (u64, u64), flags: i32, target: Option<u64>) -> Seen {
    // SAFETY: both places belong to the operations; no Rust value lives there.
    let got = unsafe {
        libc::mremap(
            from as *mut libc::c_void,
            (old * PAGE) as usize,
            (new * PAGE) as usize,
            flags,
            target.unwrap_or(0) as *mut libc::c_void,
        )
    };
    if got == libc::MAP_FAILED {
        return Seen::Errno(errno());
    }
    done_if(got as u64 == target.unwrap_or(from), got as u64)
}

fn fault(fault: probe::Fault, address: u64) -> Seen {
    if fault.address as u64 == address {
        Seen::Fault(fault.signal, fault.code)
    } else {
        Seen::Number(fault.address as u64)
    }
}

pub fn read(address: u64) -> Seen {
    match probe::read(address as usize) {
        Ok(word) => Seen::Word(word),
        Err(found) => fault(found, address),
    }
}

pub fn touch(touch: Touch) -> Seen {
    let address = address(touch.page) + SLOTS[touch.slot];
    match touch.write {
        None => read(address),
        Some(word) => match probe::write(address as usize, word) {
            Ok(()) => Seen::Done,
            Err(found) => fault(found, address),
        },
    }
}

pub fn run_threads(threads: &[Vec<Touch>]) -> Observed {
    let ready = AtomicUsize::new(0);
    let seen: Vec<Vec<Seen>> = std::thread::scope(|scope| {
        let ready = &ready;
        let running: Vec<_> = threads
            .iter()
            .map(|list| {
                scope.spawn(move || {
                    ready.fetch_add(1, Ordering::AcqRel);
                    while ready.load(Ordering::Acquire) < threads.len() {
                        std::thread::yield_now();
                    }
                    list.iter().map(|one| touch(*one)).collect()
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_default())
            .collect()
    });
    let mut observed = Observed::default();
    seen.into_iter()
        .flatten()
        .for_each(|seen| observed.push(seen));
    observed
}

/// Touches until the operation is over, and once more; each different thing that was seen.
pub fn race_touches(
    touches: &[Touch],
    ready: &AtomicUsize,
    over: &AtomicBool,
) -> Vec<(usize, Seen)> {
    let mut found: Vec<(usize, Seen)> = Vec::new();
    let mut last = false;
    loop {
        for (index, one) in touches.iter().enumerate() {
            let seen = (index, touch(*one));
            if !found.contains(&seen) {
                found.push(seen);
            }
        }
        if last {
            return found;
        }
        last = over.load(Ordering::Acquire);
        ready.fetch_add(1, Ordering::AcqRel);
    }
}

pub fn trace(pid: libc::pid_t, touch: Touch) -> Outcome<Seen> {
    let address = address(touch.page) + SLOTS[touch.slot];
    // SAFETY: `pid` is a child of this process that waits for a packet; `word` is a valid place for what is read.
    unsafe {
        let call = |request: libc::c_uint, at: u64, data: u64| {
            libc::syscall(libc::SYS_ptrace, request as libc::c_ulong, pid, at, data)
        };
        if call(libc::PTRACE_SEIZE, 0, 0) < 0 || call(libc::PTRACE_INTERRUPT, 0, 0) < 0 {
            return Err(io::Error::last_os_error()).named("tracing a process");
        }
        let mut status = 0;
        if libc::waitpid(pid, &mut status, libc::__WALL) != pid || !libc::WIFSTOPPED(status) {
            fail!("process {pid} did not stop for its tracer: status {status:#x}");
        }
        let mut word = 0u64;
        let result = match touch.write {
            None => call(libc::PTRACE_PEEKDATA, address, &raw mut word as u64),
            Some(word) => call(libc::PTRACE_POKEDATA, address, word),
        };
        let seen = match (result, touch.write) {
            (0, None) => Seen::Word(word),
            (0, Some(_)) => Seen::Done,
            _ => Seen::Errno(errno()),
        };
        if call(libc::PTRACE_DETACH, 0, 0) < 0 {
            return Err(io::Error::last_os_error()).named("letting a process go");
        }
        Ok(seen)
    }
}

// ---- looking ----

pub fn observe(span: Span, look: Look) -> Outcome<Observed> {
    let mut observed = Observed::default();
    match look {
        Look::Maps => observed.shown = vmas(&sysfs::read("/proc/self/maps")?, false),
        Look::Smaps => observed.shown = vmas(&sysfs::read("/proc/self/smaps")?, true),
        Look::NumaMaps => {
            sysfs::read("/proc/self/numa_maps")?;
        }
        Look::Pagemap => {
            let mut entries = vec![0u8; 8 * span.pages.min(8 * BLOCK) as usize];
            File::open("/proc/self/pagemap")?.read_at(&mut entries, span.address() / PAGE * 8)?;
        }
        Look::Mincore => {
            let pages = span.pages.min(8 * BLOCK);
            let mut entries = vec![0u8; pages as usize];
            // SAFETY: the vector has a byte for each page. Holes are refused, which is as good here.
            unsafe {
                libc::mincore(
                    pointer(span),
                    (pages * PAGE) as usize,
                    entries.as_mut_ptr().cast(),
                )
            };
        }
    }
    Ok(observed)
}

/// The arena's VMAs of /proc/PID/maps, or of smaps with flags.
fn vmas(text: &str, with_flags: bool) -> Vec<Shown> {
    let mut shown: Vec<Shown> = Vec::new();
    let mut in_arena = false;
    for line in text.lines() {
        if let Some(vma) = vma_of(line) {
            in_arena = vma.is_some();
            shown.extend(vma);
        } else if let (true, true, Some(flags)) =
            (with_flags, in_arena, line.strip_prefix("VmFlags:"))
        {
            if let Some([_, _, _, bits]) = shown.last_mut() {
                for word in flags.split_ascii_whitespace() {
                    *bits |= match word {
                        "dc" => FLAG_DONTFORK,
                        "nh" => FLAG_NOHUGEPAGE,
                        "hg" => FLAG_HUGEPAGE,
                        _ => 0,
                    };
                }
            }
        }
    }
    shown
}

/// `Some(Some(vma))`: a VMA of the arena; `Some(None)`: another one; `None`: some other line.
fn vma_of(line: &str) -> Option<Option<Shown>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (permissions, offset) = (words.next()?, words.next()?);
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end, offset) = (number(start)?, number(end)?, number(offset)?);
    if !(ARENA..ARENA + ARENA_PAGES * PAGE).contains(&start) {
        return Some(None);
    }
    let flag = |letter, flag| {
        if permissions.contains(letter) {
            flag
        } else {
            0
        }
    };
    Some(Some([
        (start - ARENA) / PAGE,
        (end - ARENA) / PAGE,
        offset / PAGE,
        flag('r', FLAG_READ) | flag('w', FLAG_WRITE),
    ]))
}

pub fn strict(span: Span, hole: Hole) -> Seen {
    const MPOL_DEFAULT: libc::c_long = 0;
    const MPOL_MF_STRICT: libc::c_long = 1;
    const MPOL_MF_MOVE: libc::c_long = 2;
    let flags = match hole {
        Hole::Strict => MPOL_MF_STRICT,
        Hole::StrictMove => MPOL_MF_STRICT | MPOL_MF_MOVE,
    };
    // SAFETY: a plain system call; the default policy has no mask of nodes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            span.address(),
            span.bytes(),
            MPOL_DEFAULT,
            0,
            0,
            flags,
        )
    };
    match result {
        0 => Seen::Done,
        _ => Seen::Errno(errno()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arenas_vmas_are_read_from_proc() {
        let text = "\
55d0-55d1 r--p 00000000 fd:01 7 /bin/x\n\
VmFlags: rd mr nh\n\
200000002000-200000005000 rw-s 00007000 00:06 9 /dev/dax0.1\n\
Size: 12 kB\n\
VmFlags: rd wr sh pf dc nh\n\
200000005000-200000006000 ---s 00000000 00:06 9 /dev/dax0.1\n\
VmFlags: sh pf hg\n";
        assert_eq!(
            vmas(text, false),
            [[2, 5, 7, FLAG_READ | FLAG_WRITE], [5, 6, 0, 0]]
        );
        let all = FLAG_READ | FLAG_WRITE | FLAG_DONTFORK | FLAG_NOHUGEPAGE;
        assert_eq!(vmas(text, true), [[2, 5, 7, all], [5, 6, 0, FLAG_HUGEPAGE]]);
    }
}
