// SPDX-License-Identifier: GPL-2.0
//! Holes of the stock kernel: each case has to see its hole on a stock kernel, and to see it closed on a kernel
//! with mm/patches, or of a series that has the fix. Which of them it is the kernel's name says; no case guesses.

use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use crate::case::{errno, Case, Outcome};
use crate::child::Child;
use crate::device::Device;
use crate::kernel_log::{complaints, KernelLog};
use crate::mapping::{Map, Mapping};
use crate::pattern::Pattern;
use crate::region::{GIB, KIB, MIB};
use crate::vfio::Bar;
use crate::{check, check_eq, fail, module, payload, probe, say, skip, sysfs};

use super::page_less;

pub(super) const PAGE: u64 = 4 * KIB;
pub(super) const HUGE: u64 = 2 * MIB;
/// Inside a 1 GiB leaf, at no boundary of 2 MiB.
const CUT: u64 = 300 * MIB + 7 * PAGE;
/// Closes the hole of mbind on stock kernels before 7.3.
const GUARD: &str = "dax_dmem_guard";
/// Exit code of a process that did what it should and found wrong bytes.
const WRONG_BYTES: i32 = 200;
/// What an Oops says in lines of its own.
const OOPS: &[&str] = &[
    "BUG: unable to handle page fault",
    "BUG: kernel NULL pointer dereference",
    "Oops: ",
    "Call Trace",
];

/// A hole that ends in an Oops leaves locks behind: nothing else runs in that VM.
pub(super) const CRASH: Case = Case {
    limit: 60,
    fresh: true,
    dies: true,
    expects_log: OOPS,
    ..Case::DEFAULT
};

pub const CASES: &[Case] = &[
    Case {
        name: "hole-mbind-strict",
        shows: "mbind with MPOL_MF_STRICT over special 2 MiB leaves: Oops on stock 7.2, 0 with the patch and from 7.3 on",
        run: mbind_strict,
        ..CRASH
    },
    Case {
        name: "guard-closes-mbind",
        shows: "dax_dmem_guard lets mbind pass over page-less memory and changes no other answer; from 7.3 on it is not needed",
        machine: "numa",
        run: guard,
        limit: 60,
        ..Case::DEFAULT
    },
    Case {
        name: "hole-split-leaf",
        shows: "munmap of a page inside a 1 GiB leaf of VFIO: Oops on the stock kernel, unmapped with the patch",
        machine: "vfio",
        run: split_leaf,
        ..CRASH
    },
    Case {
        name: "hole-leaf-over-edge",
        shows: "a child keeps away from a part with MADV_DONTFORK inside a 1 GiB leaf only with the patch",
        machine: "vfio",
        run: leaf_over_edge,
        limit: 60,
        ..Case::DEFAULT
    },
    Case {
        name: "hole-mremap-leaf",
        shows: "mremap of a 1 GiB leaf of VFIO: 'bad pud' on the stock kernel, moved or split with the patch",
        machine: "vfio",
        run: mremap_leaf,
        limit: 60,
        expects_log: &["bad pud"],
        ..Case::DEFAULT
    },
    Case {
        name: "hole-smaps-unmaps",
        shows: "reading smaps or numa_maps unmaps 1 GiB leaves on the stock kernel, and leaves them with the patch",
        run: smaps_unmaps,
        ..Case::DEFAULT
    },
];

/// The kernel's name.
pub(super) fn release() -> String {
    sysfs::read("/proc/sys/kernel/osrelease").unwrap_or_default()
}

/// Whether the kernel has mm/patches: tests/lab/debug-kernel, who gives this name, puts them in.
pub(super) fn patched() -> bool {
    release().ends_with("-daxdmem-debug")
}

/// Whether the kernel's own mbind knows leaves without a page: since 7.3.
pub(super) fn knows_special(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse::<u32>());
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (7, 3),
        _ => false,
    }
}

/// What became of a system call that may take the kernel down.
pub(super) struct Attempt {
    /// Exit code of the process that made it; `None`: it never came back.
    code: Option<i32>,
    /// What the kernel said meanwhile.
    lines: Vec<String>,
}

impl Attempt {
    /// Has a process of its own do it. That process exits with the closure's value, or never.
    ///
    /// `keep` is the one file that it may use.
    pub(super) fn make(keep: Option<RawFd>, call: impl FnOnce() -> i32) -> Outcome<Attempt> {
        let mut log = KernelLog::open()?;
        log.read_new();
        let child = Child::start(|_| {
            // A process that dies inside the kernel keeps its files open: let none of them be one that the
            // supervisor waits for the end of.
            let kept = keep.and_then(|fd| libc::c_uint::try_from(fd).ok());
            let ranges = match kept {
                Some(fd) => [(0, fd - 1), (fd + 1, libc::c_uint::MAX)],
                None => [(0, libc::c_uint::MAX); 2],
            };
            for (first, last) in ranges {
                // SAFETY: nothing in this process uses a closed file from here on.
                unsafe { libc::close_range(first, last, 0) };
            }
            let code = call();
            // SAFETY: ends the process as `Child` would, without a word.
            unsafe { libc::_exit(code) }
        })?;
        let pid = child.pid();
        // Dropping it would wait for its end.
        std::mem::forget(child);
        let mut attempt = Attempt {
            code: None,
            lines: Vec::new(),
        };
        for _ in 0..300 {
            let mut status = 0;
            // SAFETY: `status` is a valid place for the result.
            let ended = unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } == pid;
            if ended && libc::WIFEXITED(status) {
                attempt.code = Some(libc::WEXITSTATUS(status));
            }
            attempt.lines.extend(log.read_new());
            let complained = !complaints(&attempt.lines, &[]).is_empty();
            if complained && !ended {
                // The rest of an Oops.
                std::thread::sleep(Duration::from_millis(500));
                attempt.lines.extend(log.read_new());
            }
            if ended || complained {
                return Ok(attempt);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        fail!("neither an answer nor a complaint of the kernel within 30 s")
    }

    /// Demands that it came back with 0 and the kernel did not complain.
    fn check_harmless(&self) -> Outcome {
        check_eq!(self.complaints(), [""; 0], "complaints of the kernel");
        check_eq!(self.code, Some(0), "exit code of the process that tried");
        Ok(())
    }

    /// Demands that the kernel died in this function, or in one that it called.
    pub(super) fn check_oops_in(&self, function: &str) -> Outcome {
        let says = |text: &str| self.lines.iter().find(|line| line.contains(text));
        say!("{}", says("RIP: 0010:").map_or("no Oops", String::as_str));
        check!(
            self.code.is_none()
                && says("Oops: ").is_some()
                && says(&format!("{function}+")).is_some(),
            "no Oops in {function}: code {:?}, log {:?}",
            self.code,
            self.lines
        );
        Ok(())
    }

    fn complaints(&self) -> Vec<&str> {
        complaints(&self.lines, &[])
    }
}

/// The error number of a system call's result, 0 for success.
fn answer(result: libc::c_long) -> i32 {
    match result {
        -1 => std::io::Error::last_os_error().raw_os_error().unwrap_or(-1),
        _ => 0,
    }
}

// include/uapi/linux/mempolicy.h
const STRICT: libc::c_int = 1;
const MOVE: libc::c_int = 2;

/// mbind(2) of memory to one node.
fn mbind(address: usize, length: usize, node: u32, flags: libc::c_int) -> i32 {
    let nodes: u64 = 1 << node;
    // SAFETY: sets a policy, and at most moves pages, which their contents survive.
    answer(unsafe {
        libc::syscall(
            libc::SYS_mbind,
            address,
            length,
            libc::MPOL_BIND,
            &nodes,
            64,
            flags,
        )
    })
}

fn mbind_strictly(mapping: &Mapping) -> i32 {
    mbind(mapping.address(), mapping.len(), 0, STRICT)
}

/// Page faults of this process so far.
fn faults() -> i64 {
    // SAFETY: `usage` is plain data that the call fills.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage.ru_minflt + usage.ru_majflt
    }
}

/// Page faults that reading a word costs.
fn cost_of_reading(mapping: &Mapping, offset: u64) -> i64 {
    // The first round brings in what the counting itself touches.
    let mut cost = 0;
    for _ in 0..2 {
        let before = faults();
        mapping.read(offset);
        cost = cost.max(faults() - before);
    }
    cost
}

fn mark(offset: u64) -> u64 {
    Pattern::new(5).word(offset)
}

/// Maps with 2 MiB leaves: nothing is congruent modulo 1 GiB.
fn with_huge_leaves(device: &Device, length: u64) -> Outcome<Mapping> {
    let space = Map::new(length + 2 * GIB)
        .protection(libc::PROT_NONE)
        .anonymous()?;
    let start = (space.address() as u64).next_multiple_of(GIB) + HUGE;
    std::mem::forget(space);
    let mapping = Map::new(length).at(start as usize).file(&device.open()?)?;
    (0..length)
        .step_by(HUGE as usize)
        .for_each(|offset| mapping.write(offset, mark(offset)));
    Ok(mapping)
}

/// Reserves address space for ever, and gives its first 1 GiB boundary.
pub(super) fn space(length: u64) -> Outcome<u64> {
    let space = Map::new(length + GIB)
        .protection(libc::PROT_NONE)
        .anonymous()?;
    let start = (space.address() as u64).next_multiple_of(GIB);
    std::mem::forget(space);
    Ok(start)
}

/// A 1 GiB leaf of the BAR at that address, marked at and around `CUT`.
fn bar_leaf(bar: &Bar, address: u64) -> Outcome<Mapping> {
    let mapping = Map::new(GIB)
        .offset(bar.offset)
        .at(address as usize)
        .file(bar.file())?;
    mapping.write(0, mark(0));
    check_eq!(
        cost_of_reading(&mapping, 512 * MIB),
        0,
        "page faults for the second half: VFIO mapped no 1 GiB leaf"
    );
    for offset in [CUT - PAGE, CUT, CUT + PAGE, 512 * MIB] {
        mapping.write(offset, mark(offset));
    }
    Ok(mapping)
}

fn mbind_strict() -> Outcome {
    let device = page_less(GIB, &[(0, GIB)])?;
    let mapping = with_huge_leaves(&device, 64 * MIB)?;
    let attempt = Attempt::make(None, || mbind_strictly(&mapping))?;
    if patched() || knows_special(&release()) {
        attempt.check_harmless()?;
        check_eq!(mbind_strictly(&mapping), 0, "mbind in this process");
        for offset in (0..64 * MIB).step_by(HUGE as usize) {
            check_eq!(mapping.read(offset), mark(offset), "word at {offset:#x}");
        }
        return Ok(());
    }
    // The dead process holds the lock of a page table: whoever unmaps the device now waits for ever.
    std::mem::forget((device, mapping));
    attempt.check_oops_in("queue_folios_pte_range")
}

/// What mbind answers for memory of this process, page by page and huge, alone and before page-less memory.
///
/// The device is left out without one: the stock kernel would not survive it.
fn answers(beside: Option<&Device>) -> Outcome<Vec<i32>> {
    const LENGTH: u64 = 4 * HUGE;
    let mut answers = Vec::new();
    let kinds = [
        ("pages", libc::MADV_NOHUGEPAGE, None),
        ("huge pages", libc::MADV_HUGEPAGE, None),
        ("pages and device", libc::MADV_NOHUGEPAGE, beside),
    ];
    // Without the device the last is the same as the first.
    for (name, advice, beside) in kinds {
        let flags = [STRICT, STRICT | MOVE];
        for (flags, node) in flags.into_iter().flat_map(|flags| [(flags, 0), (flags, 1)]) {
            let start = space(GIB)?;
            let mapping = Map::new(LENGTH).at(start as usize).anonymous()?;
            let behind = start + LENGTH;
            let mut whole = LENGTH;
            let _device = match beside {
                // 2 MiB leaves: nothing is congruent modulo 1 GiB.
                Some(device) => {
                    let map = Map::new(LENGTH).at(behind as usize);
                    let mapping = map.file(&device.open()?)?;
                    mapping.touch(HUGE);
                    whole += LENGTH;
                    Some(mapping)
                }
                None => None,
            };
            check_eq!(
                mbind(mapping.address(), mapping.len(), 0, 0),
                0,
                "placing {name}"
            );
            mapping.advise(0, LENGTH, advice)?;
            (0..LENGTH)
                .step_by(PAGE as usize)
                .for_each(|offset| mapping.write(offset, mark(offset)));
            answers.push(mbind(mapping.address(), whole as usize, node, flags));
            for offset in (0..LENGTH).step_by(PAGE as usize) {
                check_eq!(
                    mapping.read(offset),
                    mark(offset),
                    "word of {name} at {offset:#x}"
                );
            }
        }
    }
    Ok(answers)
}

/// Has the guard loaded, which must refuse and say why.
fn refused(guard: &Path) -> Outcome {
    let mut log = KernelLog::open()?;
    check_eq!(
        errno(module::insert_with(guard, "")),
        Some(libc::ENODEV),
        "errno of loading the guard"
    );
    let lines = log.read_new();
    check!(
        lines
            .iter()
            .any(|line| line.contains("dax_dmem_guard: not needed: ")),
        "the guard gives no reason: {lines:?}"
    );
    Ok(())
}

fn guard() -> Outcome {
    let file = payload::path(&format!("{GUARD}.ko"));
    if !file.exists() {
        skip!("{GUARD}.ko was not built");
    }
    let device = page_less(GIB, &[(0, GIB)])?;
    let before = answers(None)?;
    let needed = !knows_special(&release());
    match needed {
        true => module::insert(&file)?,
        false => refused(&file)?,
    }
    let guarded = answers(Some(&device))?;
    let mapping = with_huge_leaves(&device, 64 * MIB)?;
    Attempt::make(None, || mbind_strictly(&mapping))?.check_harmless()?;
    check_eq!(
        cost_of_reading(&mapping, HUGE),
        0,
        "page faults after mbind"
    );
    if needed {
        check_eq!(
            errno(sysfs::try_write("/proc/sys/kernel/ftrace_enabled", "0")),
            Some(libc::EBUSY),
            "errno of turning ftrace off"
        );
    }
    drop(mapping);
    // To node 0, where it lies, and to node 1: STRICT alone sees that it is misplaced, with MOVE it is moved. A
    // device behind it changes nothing.
    let (fits, misplaced) = (0, libc::EIO);
    let expected = [fits, misplaced, fits, fits].repeat(3);
    check_eq!(before, expected, "answers of the kernel as it is");
    check_eq!(guarded, expected, "answers beside page-less memory");
    if !needed {
        return Ok(());
    }
    // It comes and goes while other processes are inside the guarded function.
    let memory = Map::new(64 * HUGE).anonymous()?;
    memory.touch(PAGE);
    let mut busy = Child::start(|_| loop {
        mbind_strictly(&memory);
    })?;
    for _ in 0..10 {
        module::unload(GUARD)?;
        module::insert(&file)?;
    }
    busy.kill()?;
    module::unload(GUARD)?;
    check_eq!(answers(None)?, expected, "answers after the guard is gone");
    Ok(())
}

fn split_leaf() -> Outcome {
    let bar = Bar::open()?;
    let start = space(GIB)?;
    // A process that dies in there keeps the lock of all mappings of the file: nobody else may have one, or it
    // could not even exit.
    let attempt = Attempt::make(Some(bar.file().as_raw_fd()), || {
        let Ok(mapping) = bar_leaf(&bar, start) else {
            return WRONG_BYTES;
        };
        let page = (start + CUT) as *mut libc::c_void;
        // SAFETY: unmaps a page that nothing but the lines below looks at.
        let code = answer(unsafe { libc::munmap(page, PAGE as usize) }.into());
        let beside = [CUT - PAGE, CUT + PAGE, 512 * MIB];
        let intact = beside
            .iter()
            .all(|offset| mapping.read(*offset) == mark(*offset));
        let gone = probe::read(page as usize).is_err();
        match (code, intact && gone) {
            (0, false) => WRONG_BYTES,
            _ => code,
        }
    })?;
    if patched() {
        return attempt.check_harmless();
    }
    attempt.check_oops_in("__split_huge_pmd")
}

fn leaf_over_edge() -> Outcome {
    let bar = Bar::open()?;
    let mapping = bar_leaf(&bar, space(GIB)?)?;
    mapping.advise(512 * MIB, 512 * MIB, libc::MADV_DONTFORK)?;
    if patched() {
        check_eq!(
            cost_of_reading(&mapping, 0),
            1,
            "page faults for a leaf that was split"
        );
        check_eq!(
            mapping.read(512 * MIB),
            mark(512 * MIB),
            "word behind the edge"
        );
    }
    let address = mapping.address() + 512 * MIB as usize;
    let child = Child::start(|_| {
        let seen = probe::read(address).map_err(|fault| fault.signal);
        let demanded = if patched() {
            Err(libc::SIGSEGV)
        } else {
            Ok(mark(512 * MIB))
        };
        check_eq!(seen, demanded, "reading where the child has no mapping");
        Ok(())
    })?;
    child.finish()
}

fn mremap_leaf() -> Outcome {
    let bar = Bar::open()?;
    let place = space(8 * GIB)?;
    let mut log = KernelLog::open()?;
    // Congruent modulo 1 GiB, modulo 2 MiB only, and not even that.
    for (shift, moved_whole) in [(0, true), (HUGE, false), (3 * PAGE, false)] {
        let mapping = bar_leaf(&bar, place)?;
        let old = mapping.address();
        log.read_new();
        let target = place + 4 * GIB + shift;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let moved = mapping.remap(GIB, flags, target as usize)?;
        let stale = probe::read(old);
        say!("moved by {shift:#x}: the old address reads {stale:x?}");
        let lines = log.read_new();
        let cost = cost_of_reading(&moved, 0);
        for offset in [0, CUT - PAGE, CUT, CUT + PAGE, 512 * MIB] {
            check_eq!(
                moved.read(offset),
                mark(offset),
                "word at {offset:#x}, moved"
            );
        }
        if patched() {
            check_eq!(complaints(&lines, &[]), [""; 0], "complaints of the kernel");
            check_eq!(
                stale.map_err(|fault| fault.signal),
                Err(libc::SIGSEGV),
                "the old address, moved by {shift:#x}"
            );
            check_eq!(
                cost,
                i64::from(!moved_whole),
                "page faults, moved by {shift:#x}"
            );
        } else {
            check!(
                lines.iter().any(|line| line.contains("bad pud")),
                "moved by {shift:#x}: no complaint about a bad pud"
            );
            check_eq!(cost, 1, "page faults, moved by {shift:#x}");
        }
    }
    Ok(())
}

fn smaps_unmaps() -> Outcome {
    let device = page_less(GIB, &[(0, GIB)])?;
    let mapping = Map::new(GIB).file(&device.open()?)?;
    mapping.write(0, mark(0));
    for file in ["smaps", "smaps_rollup", "numa_maps"] {
        check_eq!(
            cost_of_reading(&mapping, 512 * MIB),
            0,
            "page faults with a leaf"
        );
        std::fs::read_to_string(format!("/proc/self/{file}"))?;
        check_eq!(
            cost_of_reading(&mapping, 512 * MIB),
            i64::from(!patched()),
            "page faults after reading {file}"
        );
    }
    check_eq!(mapping.read(0), mark(0), "first word");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::knows_special;

    #[test]
    fn mbind_is_mended_since_7_3() {
        for release in ["7.2.12+deb13-amd64", "6.12.48+deb13-amd64", "", "7.x"] {
            assert!(!knows_special(release), "{release}");
        }
        for release in ["7.3.4+deb13-amd64", "7.3-rc1", "7.10.1", "8.0"] {
            assert!(knows_special(release), "{release}");
        }
    }
}
