// SPDX-License-Identifier: GPL-2.0
//! System calls on a mapping that a clumsy or hostile owner of a device may make.

use std::io;

use crate::case::{Case, Outcome};
use crate::child::{Child, End};
use crate::kernel_log::KernelLog;
use crate::mapping::{Map, Mapping};
use crate::pattern::Pattern;
use crate::probe;
use crate::region::{GIB, KIB, MIB};
use crate::{check, check_eq, fail, say};

use super::holes::patched;
use super::page_less;

const PAGE: u64 = 4 * KIB;
const HUGE: u64 = 2 * MIB;
/// Where mappings are cut: in the middle of a 2 MiB and of a 1 GiB leaf, at a 2 MiB boundary, at the edges.
const CUTS: [u64; 5] = [
    5 * PAGE,
    300 * MIB + 7 * PAGE,
    512 * MIB,
    GIB - PAGE,
    GIB + HUGE,
];
const BOTH: i32 = libc::PROT_READ | libc::PROT_WRITE;

pub const CASES: &[Case] = &[
    Case {
        name: "refused-mappings",
        shows: "mmap of a private mapping, or of more than there is, is refused at once and said why in the log",
        run: refused,
        ..Case::DEFAULT
    },
    Case {
        name: "unmap-parts",
        shows: "munmap of single pages inside 1 GiB and 2 MiB leaves leaves everything else as it was",
        run: unmap_parts,
        ..Case::DEFAULT
    },
    Case {
        name: "protect-parts",
        shows: "mprotect of single pages inside 1 GiB and 2 MiB leaves protects these and nothing else",
        run: protect_parts,
        ..Case::DEFAULT
    },
    Case {
        name: "move-mappings",
        shows: "mremap to any address, of the whole and of a part, keeps the contents",
        run: move_mappings,
        ..Case::DEFAULT
    },
    Case {
        name: "move-beside-faults",
        shows: "while one process moves its mapping, others fault 1 GiB leaves in again and again",
        limit: 60,
        run: move_beside_faults,
        ..Case::DEFAULT
    },
    Case {
        name: "grow-refused",
        shows: "mremap cannot make a mapping larger",
        run: grow,
        ..Case::DEFAULT
    },
    Case {
        name: "fork-shares",
        shows: "a child shares the memory, and keeps it when its parent is gone",
        run: fork_shares,
        ..Case::DEFAULT
    },
    Case {
        name: "every-advice",
        shows: "no advice to madvise harms contents or kernel, and each answers as documented",
        limit: 40,
        run: every_advice,
        ..Case::DEFAULT
    },
    Case {
        name: "many-threads",
        shows: "64 threads that touch the same leaf at once all see its memory",
        run: many_threads,
        ..Case::DEFAULT
    },
    Case {
        name: "huge-pages-switched",
        shows: "huge leaves allowed and forbidden by prctl while threads fault disturb nobody",
        run: huge_pages_switched,
        ..Case::DEFAULT
    },
    Case {
        name: "no-pages-for-the-kernel",
        shows: "what copies from the memory works, what wants its pages is refused with EFAULT",
        run: no_pages,
        ..Case::DEFAULT
    },
];

fn refused() -> Outcome {
    let device = page_less(GIB, &[(0, GIB)])?;
    let file = device.open()?;
    let mut log = KernelLog::open()?;
    log.read_new();
    let attempts: [(Map, &str); 4] = [
        (Map::new(PAGE).flags(libc::MAP_PRIVATE), "MAP_SHARED"),
        (Map::new(GIB + PAGE), "beyond the end"),
        (Map::new(2 * PAGE).offset(GIB - PAGE), "beyond the end"),
        (Map::new(PAGE).offset(1 << 50), "beyond the end"),
    ];
    for (map, reason) in attempts {
        match map.file(&file) {
            Ok(_) => fail!("a mapping that should be refused ({reason}) was made"),
            Err(error) => check_eq!(error.raw_os_error(), Some(libc::EINVAL), "errno ({reason})"),
        }
        let lines = log.read_new();
        let told = lines
            .iter()
            .any(|line| line.contains(&device.name) && line.contains(reason));
        check!(told, "the log does not say '{reason}': {lines:?}");
    }
    // The last page can be had.
    let last = Map::new(PAGE).offset(GIB - PAGE).file(&file)?;
    last.write(0, 1);
    Ok(())
}

/// Maps 2 GiB with 1 GiB leaves, or with 2 MiB leaves, and marks each cut's surroundings.
fn marked(file: &std::fs::File, large: bool) -> Outcome<Mapping> {
    // 2 MiB leaves come from an address that is 2 MiB off the 1 GiB congruence.
    let mapping = if large {
        Map::new(2 * GIB).file(file)?
    } else {
        let space = Map::new(4 * GIB).protection(libc::PROT_NONE).anonymous()?;
        let start = (space.address() as u64).next_multiple_of(GIB) + HUGE;
        std::mem::forget(space);
        Map::new(2 * GIB).at(start as usize).file(file)?
    };
    for offset in around_cuts() {
        mapping.write(offset, mark(offset));
    }
    Ok(mapping)
}

/// The pages at and beside every cut.
fn around_cuts() -> impl Iterator<Item = u64> {
    CUTS.into_iter()
        .flat_map(|cut| [cut - PAGE, cut, cut + PAGE])
}

fn mark(offset: u64) -> u64 {
    Pattern::new(77).word(offset)
}

fn unmap_parts() -> Outcome {
    let device = page_less(GIB, &[(0, 2 * GIB)])?;
    for large in [true, false] {
        let mapping = marked(&device.open()?, large)?;
        for cut in CUTS {
            mapping.unmap(cut, PAGE)?;
        }
        for offset in around_cuts() {
            let result = probe::read(mapping.address() + offset as usize);
            if CUTS.contains(&offset) {
                let signal = result.map_err(|fault| fault.signal);
                check_eq!(
                    signal,
                    Err(libc::SIGSEGV),
                    "access to the unmapped page at {offset:#x}"
                );
            } else {
                check_eq!(
                    result,
                    Ok(mark(offset)),
                    "page at {offset:#x}, beside an unmapped one"
                );
            }
        }
        // The memory behind the holes is untouched.
        let whole = Map::new(2 * GIB).file(&device.open()?)?;
        for offset in around_cuts() {
            check_eq!(
                whole.read(offset),
                mark(offset),
                "page at {offset:#x} through another mapping"
            );
        }
    }
    Ok(())
}

fn protect_parts() -> Outcome {
    let device = page_less(GIB, &[(0, 2 * GIB)])?;
    for large in [true, false] {
        let mapping = marked(&device.open()?, large)?;
        for (protection, readable) in [
            (libc::PROT_READ, true),
            (libc::PROT_NONE, false),
            (BOTH, true),
        ] {
            for cut in CUTS {
                mapping.protect(cut, PAGE, protection)?;
            }
            for offset in around_cuts() {
                let protected = CUTS.contains(&offset) && protection != BOTH;
                let address = mapping.address() + offset as usize;
                let read = probe::read(address).map_err(|fault| fault.signal);
                let expected = if readable || !protected {
                    Ok(mark(offset))
                } else {
                    Err(libc::SIGSEGV)
                };
                check_eq!(
                    read,
                    expected,
                    "reading {offset:#x} under protection {protection}"
                );
                let write = probe::write(address, mark(offset)).map_err(|fault| fault.signal);
                let expected = if protected {
                    Err(libc::SIGSEGV)
                } else {
                    Ok(())
                };
                check_eq!(
                    write,
                    expected,
                    "writing {offset:#x} under protection {protection}"
                );
            }
        }
    }
    Ok(())
}

fn move_mappings() -> Outcome {
    let device = page_less(GIB, &[(0, 2 * GIB)])?;
    let space = Map::new(16 * GIB).protection(libc::PROT_NONE).anonymous()?;
    let base = (space.address() as u64).next_multiple_of(GIB);
    for large in [true, false] {
        // Congruent modulo 1 GiB, modulo 2 MiB only, and not even that.
        for shift in [0, HUGE, 3 * PAGE] {
            let mapping = marked(&device.open()?, large)?;
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            let moved = mapping.remap(2 * GIB, flags, (base + 4 * GIB + shift) as usize)?;
            for offset in around_cuts() {
                check_eq!(
                    moved.read(offset),
                    mark(offset),
                    "page at {offset:#x}, moved by {shift:#x}"
                );
            }
            // And back to a place where 1 GiB leaves fit again.
            let back = moved.remap(2 * GIB, flags, (base + 8 * GIB) as usize)?;
            for offset in around_cuts() {
                check_eq!(
                    back.read(offset),
                    mark(offset),
                    "page at {offset:#x}, moved back"
                );
            }
        }
        part_moved(&device.open()?, large, base + 12 * GIB + 5 * PAGE)?;
    }
    Ok(())
}

/// Moves pages from the middle of a mapping to `target`; both ends stay.
/// A move removes the leaves of every process, however small the part that moves. Two others bring a 1 GiB leaf back
/// at once, so that the kernel meets an entry that becomes a leaf while it looks at it.
fn move_beside_faults() -> Outcome {
    // The debug kernel takes many times as long for each.
    let moves = if patched() { 2_000 } else { 50_000 };
    let device = page_less(GIB, &[(0, GIB)])?;
    let file = device.open()?;
    let mut others = Vec::new();
    for _ in 0..2 {
        others.push(Child::start(|_| {
            let mapping = Map::new(GIB).file(&file)?;
            mapping.write(0, 1);
            loop {
                check_eq!(mapping.read(0), 1, "the first word");
            }
        })?);
    }
    let space = Map::new(4 * HUGE).protection(libc::PROT_NONE).anonymous()?;
    let base = (space.address() as u64).next_multiple_of(HUGE);
    let places = [base, base + HUGE];
    let mut mapping = Map::new(PAGE).at(places[0] as usize).file(&file)?;
    mapping.write(0, 1);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    for turn in 1..=moves {
        mapping = mapping.remap(PAGE, flags, places[(turn % 2) as usize] as usize)?;
    }
    check_eq!(mapping.read(0), 1, "the first word");
    for mut child in others {
        check_eq!(
            child.kill()?,
            End::Signal(libc::SIGKILL),
            "how the child ended"
        );
    }
    Ok(())
}

fn part_moved(file: &std::fs::File, large: bool, target: u64) -> Outcome {
    let mapping = marked(file, large)?;
    let (cut, length) = (CUTS[1], 3 * MIB);
    let source = (mapping.address() as u64 + cut) as *mut libc::c_void;
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the target lies in address space this case reserved, the source in its own mapping.
    let moved = unsafe {
        libc::mremap(
            source,
            length as usize,
            length as usize,
            flags,
            target as *mut libc::c_void,
        )
    };
    check!(
        moved != libc::MAP_FAILED,
        "moving a part: {}",
        io::Error::last_os_error()
    );
    check_eq!(
        probe::read(target as usize),
        Ok(mark(cut)),
        "first page of the moved part"
    );
    check_eq!(
        probe::read((target + PAGE) as usize),
        Ok(mark(cut + PAGE)),
        "second page of the moved part"
    );
    check_eq!(
        mapping.read(cut - PAGE),
        mark(cut - PAGE),
        "page below the moved part"
    );
    let gap = probe::read(mapping.address() + cut as usize).map_err(|fault| fault.signal);
    check_eq!(gap, Err(libc::SIGSEGV), "the place the part was moved from");
    check_eq!(
        mapping.read(CUTS[2]),
        mark(CUTS[2]),
        "page above the moved part"
    );
    Ok(())
}

fn grow() -> Outcome {
    let device = page_less(GIB, &[(0, 2 * GIB)])?;
    let mapping = Map::new(GIB).file(&device.open()?)?;
    match mapping.remap(2 * GIB, libc::MREMAP_MAYMOVE, 0) {
        Ok(_) => fail!("a mapping was made larger"),
        Err(error) => check_eq!(error.raw_os_error(), Some(libc::EFAULT), "errno of growing"),
    }
    // Smaller is possible.
    let mapping = marked(&device.open()?, true)?;
    let smaller = mapping.remap(CUTS[1] + PAGE, 0, 0)?;
    check_eq!(
        smaller.read(CUTS[1]),
        mark(CUTS[1]),
        "last page after shrinking"
    );
    let beyond =
        probe::read(smaller.address() + (CUTS[1] + PAGE) as usize).map_err(|fault| fault.signal);
    check_eq!(
        beyond,
        Err(libc::SIGSEGV),
        "page behind the end after shrinking"
    );
    Ok(())
}

fn fork_shares() -> Outcome {
    let device = page_less(GIB, &[(0, 2 * GIB)])?;
    for large in [true, false] {
        let mapping = marked(&device.open()?, large)?;
        let mut child = Child::start(|link| {
            for offset in around_cuts() {
                check_eq!(
                    mapping.read(offset),
                    mark(offset),
                    "page at {offset:#x} in the child"
                );
            }
            mapping.write(CUTS[0], 1);
            link.send("written")?;
            link.receive()?;
            check_eq!(
                mapping.read(CUTS[1]),
                2,
                "what the parent wrote after the fork"
            );
            link.send("read")?;
            // The parent has unmapped its own by now.
            link.receive()?;
            check_eq!(
                mapping.read(CUTS[2]),
                mark(CUTS[2]),
                "page after the parent unmapped it"
            );
            Ok(())
        })?;
        child.link().receive()?;
        check_eq!(mapping.read(CUTS[0]), 1, "what the child wrote");
        mapping.write(CUTS[1], 2);
        child.link().send("written")?;
        child.link().receive()?;
        drop(mapping);
        child.link().send("unmapped")?;
        check_eq!(child.wait()?, End::Exit(0), "end of the child");
    }
    Ok(())
}

fn every_advice() -> Outcome {
    let device = page_less(GIB, &[(0, 2 * GIB)])?;
    let file = device.open()?;
    let mut accepted = Vec::new();
    let mut errors = Vec::new();
    // All of uapi/asm-generic/mman-common.h, and numbers nobody has given a meaning to yet.
    for advice in (0..32).chain(100..106) {
        for large in [true, false] {
            let mapping = marked(&file, large)?;
            let result = mapping.advise(CUTS[1], 3 * MIB, advice);
            for offset in around_cuts() {
                check_eq!(
                    mapping.read(offset),
                    mark(offset),
                    "page at {offset:#x} after advice {advice}"
                );
            }
            if large {
                match result {
                    Ok(()) => accepted.push(advice),
                    Err(error) => errors.push((advice, error.raw_os_error().unwrap_or(0))),
                }
            }
        }
    }
    say!("accepted: {accepted:?}; refused (advice, errno): {errors:?}");
    // NORMAL to WILLNEED, DONTFORK, MERGEABLE and HUGEPAGE with their opposites, DONTDUMP, KEEPONFORK.
    check_eq!(
        accepted,
        [0, 1, 2, 3, 10, 12, 13, 14, 15, 16, 19],
        "advice the kernel accepts"
    );
    let with = |errno: i32| {
        errors
            .iter()
            .filter(|(_, e)| *e == errno)
            .map(|(a, _)| *a)
            .collect::<Vec<_>>()
    };
    // Poisoning and soft-offlining go by pages, and there are none.
    check_eq!(
        with(libc::EFAULT),
        [libc::MADV_HWPOISON, libc::MADV_SOFT_OFFLINE],
        "advice with EFAULT"
    );
    Ok(())
}

fn many_threads() -> Outcome {
    let device = page_less(GIB, &[(0, 2 * GIB)])?;
    let file = device.open()?;
    for round in 0..20 {
        let no_hugepage = round % 2 == 1;
        let mapping = Map::new(2 * GIB).file(&file)?;
        if no_hugepage {
            mapping.advise(0, 2 * GIB, libc::MADV_NOHUGEPAGE)?;
        }
        let barrier = std::sync::Barrier::new(64);
        std::thread::scope(|scope| {
            for thread in 0..64 {
                let (mapping, barrier) = (&mapping, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    mapping.write(GIB + thread * 8, (round << 32) | thread);
                    // Half of them read, half write the other leaf.
                    mapping.read(thread * PAGE);
                });
            }
        });
        for thread in 0..64 {
            check_eq!(
                mapping.read(GIB + thread * 8),
                (round << 32) | thread,
                "word of thread {thread} in round {round}"
            );
        }
    }
    Ok(())
}

fn huge_pages_switched() -> Outcome {
    let device = page_less(GIB, &[(0, GIB)])?;
    let file = device.open()?;
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let switch = scope.spawn(|| {
            let mut disabled = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                disabled ^= 1;
                // SAFETY: changes a flag of this process only.
                unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, disabled, 0, 0, 0) };
            }
        });
        let faults = scope.spawn(|| -> io::Result<()> {
            for round in 0..400 {
                let mapping = Map::new(64 * MIB).file(&file)?;
                std::thread::scope(|scope| {
                    for thread in 0..4 {
                        let mapping = &mapping;
                        scope.spawn(move || {
                            (0..32).for_each(|block| {
                                mapping.write(block * HUGE + thread * PAGE, round)
                            });
                        });
                    }
                });
            }
            Ok(())
        });
        let result = faults.join();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        // A panic of either thread is the case's failure.
        (result, switch.join())
    })
    .0
    .map_err(|_| crate::case::Failure::Fail("a faulting thread panicked".into()))??;
    Ok(())
}

/// Looks at what a system call has just returned that wanted pages.
fn unwanted(result: isize, what: &str) -> Outcome {
    let error = io::Error::last_os_error().raw_os_error();
    check_eq!((result, error), (-1, Some(libc::EFAULT)), "{what}");
    Ok(())
}

fn no_pages() -> Outcome {
    let device = page_less(GIB, &[(0, GIB)])?;
    let mapping = Map::new(GIB).file(&device.open()?)?;
    mapping.write(0, 1);

    let path = std::ffi::CString::new("/run/dmem/buffered")?;
    // SAFETY: plain system calls on memory of this case.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600);
        check!(fd >= 0, "open: {}", io::Error::last_os_error());
        let address = mapping.address() as *const libc::c_void;
        // Buffered I/O copies and works.
        check_eq!(
            libc::write(fd, address, 4096),
            4096,
            "buffered write from page-less memory"
        );
        libc::close(fd);
        let mut pipe = [0; 2];
        check_eq!(libc::pipe(pipe.as_mut_ptr()), 0, "pipe");
        let part = libc::iovec {
            iov_base: mapping.address() as *mut libc::c_void,
            iov_len: 4096,
        };
        // vmsplice takes pages, as direct I/O and RDMA do.
        unwanted(libc::vmsplice(pipe[1], &part, 1, 0), "vmsplice")?;

        let mut word = 0u64;
        let local = libc::iovec {
            iov_base: (&raw mut word).cast(),
            iov_len: 8,
        };
        let read = libc::process_vm_readv(libc::getpid(), &local, 1, &part, 1, 0);
        unwanted(read, "process_vm_readv")?;

        // Of `struct io_uring_params`, all defaults.
        let mut parameters = [0u32; 30];
        let ring = libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr());
        check!(ring >= 0, "io_uring_setup: {}", io::Error::last_os_error());
        const REGISTER_BUFFERS: libc::c_int = 0;
        let registered = libc::syscall(
            libc::SYS_io_uring_register,
            ring,
            REGISTER_BUFFERS,
            &raw const part,
            1,
        );
        unwanted(registered as isize, "io_uring's registered buffers")?;
        libc::close(ring as libc::c_int);
    }
    Ok(())
}
