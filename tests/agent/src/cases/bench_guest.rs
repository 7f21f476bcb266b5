// SPDX-License-Identifier: GPL-2.0
//! Benchmarks: what it takes to make, first touch, share and release the memory of a guest.

use std::time::Instant;

use crate::case::{Case, Failure, Outcome};
use crate::figure::{self, count, counted, figure};
use crate::peer::{self, Peer, HUGE, IN_REGION};
use crate::region::{Region, GIB, KIB, MIB};
use crate::scrub::{self, Policy, Progress};
use crate::{check_eq, say};

use super::scrub::forget;

pub const CASES: &[Case] = &[
    Case {
        name: "bench-guest-page-less",
        shows: "counts guests of 1, 4 and 8 GiB on dax_dmem",
        machine: "bench",
        limit: 900,
        hidden: true,
        run: page_less,
        ..Case::DEFAULT
    },
    Case {
        name: "bench-guest-device-dax",
        shows: "counts guests of 1, 4 and 8 GiB on device_dax",
        machine: "bench",
        limit: 900,
        hidden: true,
        run: device_dax,
        ..Case::DEFAULT
    },
    Case {
        name: "bench-guest-pages",
        shows: "counts guests of 1, 4 and 8 GiB on hugetlbfs and memfd",
        machine: "bench-pages",
        limit: 900,
        hidden: true,
        run: on_pages,
        ..Case::DEFAULT
    },
    Case {
        name: "bench-scrub",
        shows: "counts the scrub of 1, 4 and 8 GiB",
        machine: "bench",
        limit: 900,
        hidden: true,
        run: scrubs,
        ..Case::DEFAULT
    },
];

/// Guests, in GiB.
const SIZES: [u64; 3] = [1, 4, 8];
/// Bytes of the first one, which does not count, at least.
pub(super) const WARM: u64 = 32 * MIB;
/// Guests that take so many faults are tried several times.
const FEW_FAULTS: u64 = 4096;
const TRIES: usize = 5;
/// Forks are tried this often: most take up to 2 % more than the cheapest, as the kernel has to get new pages for what it
/// allocates.
const FORKS: usize = 50;
/// Faults of a guest at most: a page each for 1 GiB.
pub(super) const MOST_FAULTS: u64 = 1 << 18;

fn page_less() -> Outcome {
    in_region(&IN_REGION[..3])?;
    bare_fork()
}

fn device_dax() -> Outcome {
    in_region(&IN_REGION[3..])
}

fn in_region(peers: &[Peer]) -> Outcome {
    figure::kernel()?;
    peer::load_drivers()?;
    check_eq!(Region::first()?.size, 8 * GIB, "size of the region");
    peers.iter().copied().try_for_each(guests)
}

fn on_pages() -> Outcome {
    figure::kernel()?;
    let shared = [Peer::Shared(2 * MIB), Peer::Shared(4 * KIB)];
    HUGE.into_iter().chain(shared).try_for_each(guests)
}

/// What all other forks are to be compared with.
fn bare_fork() -> Outcome {
    figure(
        "fork",
        "without",
        0,
        "instructions",
        cheapest_fork(FORKS, || {})?,
    );
    Ok(())
}

fn guests(peer: Peer) -> Outcome {
    // What happens once only is behind us when it is counted.
    guest(peer, peer.leaf().max(WARM), false)?;
    // A fault for each page takes its time: what takes a million of them is left out.
    let sizes = SIZES.map(|size| size * GIB);
    let counted = |size: &u64| size / peer.leaf() <= MOST_FAULTS || peer == IN_REGION[2];
    sizes
        .into_iter()
        .filter(counted)
        .try_for_each(|size| guest(peer, size, true))
}

fn guest(peer: Peer, size: u64, say: bool) -> Outcome {
    let name = peer.to_string();
    let report = |row: &str, value| {
        if say {
            figure(row, &name, size, "instructions", value);
        }
    };
    let ready = peer.prepare(size)?;
    let (_, bind) = count(|| peer.ready(&ready, size, Policy::Never))?;
    let (file, open) = count(|| peer.open(&ready, size))?;
    let (mut map, mut touch, mut unmap) = (u64::MAX, u64::MAX, u64::MAX);
    let (mut faults, mut fork, mut shared, mut apart) = (0, u64::MAX, u64::MAX, u64::MAX);
    // The cheapest counts: the others met a timer. Pages that are there already would be no first touch.
    let few = peer.in_region() && size / peer.leaf() <= FEW_FAULTS;
    let tries = if few { TRIES } else { 1 };
    for _ in 0..tries {
        let begin = Instant::now();
        let mapping = peer.map(&file, size)?;
        map = map.min(begin.elapsed().as_nanos() as u64);
        let before = figure::faults();
        let begin = Instant::now();
        peer.touch(&mapping);
        touch = touch.min(begin.elapsed().as_nanos() as u64);
        faults = figure::faults() - before;
        let forks = FORKS / tries;
        // A million page-table entries are copied each time.
        let copies = if peer == IN_REGION[2] { 1 } else { forks };
        fork = fork.min(cheapest_fork(copies, || {})?);
        let touches = if peer.leaf() == 4 * KIB { 1 } else { forks };
        shared = shared.min(cheapest_fork(touches, || peer.touch(&mapping))?);
        mapping.advise(0, size, libc::MADV_DONTFORK)?;
        apart = apart.min(cheapest_fork(forks, || {})?);
        let begin = Instant::now();
        drop(mapping);
        unmap = unmap.min(begin.elapsed().as_nanos() as u64);
    }
    let (_, close) = count(|| {
        drop(file);
        Ok(())
    })?;
    let (_, release) = count(|| ready.give_back())?;
    report("ready", bind);
    report("map", open + map);
    report("touch", touch);
    report("fork", fork);
    report("fork-touch", shared);
    report("fork-apart", apart);
    report("unmap", unmap);
    report("close", close);
    report("give-back", release);
    if say {
        figure("faults", &name, size, "faults", faults);
    }
    Ok(())
}

/// The cheapest of some forks of a child that does this.
fn cheapest_fork(tries: usize, child: impl Fn()) -> Outcome<u64> {
    let mut best = u64::MAX;
    for _ in 0..tries {
        best = best.min(count(|| fork(&child))?.1);
    }
    Ok(best)
}

/// Forks a child that does this and ends, and waits for it.
fn fork(child: impl Fn()) -> Outcome {
    let mut status = 0;
    // SAFETY: this process has one thread, and the child but accesses memory and calls _exit; the parent waits for it with a
    // valid place for the result.
    let reaped = unsafe {
        match libc::fork() {
            0 => {
                child();
                libc::_exit(0)
            }
            pid => libc::waitpid(pid, &mut status, 0),
        }
    };
    if reaped <= 0 || status != 0 {
        return Err(Failure::Fail(format!("a child ended with {status}")));
    }
    Ok(())
}

/// From an unbound device to a guest that has touched all of its memory, with the scrub at either end.
fn scrubs() -> Outcome {
    peer::load_drivers()?;
    for size in SIZES.map(|size| size * GIB) {
        let parts = [(0, size)];
        scrub::settle()?;
        forget(&parts)?;
        let peer = Peer::PageLess(GIB);
        let name = peer.to_string();
        let start = |policy: Policy| {
            let ready = peer.prepare(size)?;
            // On the only CPU there is nothing else to do while open waits.
            let (all, instructions) = count(|| {
                peer.ready(&ready, size, policy)?;
                let file = peer.open(&ready, size)?;
                let mapping = peer.map(&file, size)?;
                peer.touch(&mapping);
                Ok((file, mapping))
            })?;
            let peer::Ready::Device(device) = &ready else {
                return Err(Failure::Fail(format!("{name} has no device")));
            };
            let scrubbed = Progress::of(device)?.total;
            drop(all);
            Ok((ready, instructions, scrubbed))
        };
        let (ready, instructions, scrubbed) = start(Policy::HandOut)?;
        check_eq!(scrubbed, size, "bytes scrubbed at hand-out");
        figure("start-hand-out", &name, size, "instructions", instructions);
        drop(ready);

        // It was opened, so it is dirty: the next release scrubs, and the guest behind it starts at once.
        let (ready, _, _) = start(Policy::Release)?;
        counted("release-scrub", &name, size, || {
            ready.give_back()?;
            scrub::settle()
        })?;
        drop(ready);
        let (ready, instructions, scrubbed) = start(Policy::Release)?;
        check_eq!(scrubbed, 0, "bytes scrubbed at the start after a release");
        figure("start", &name, size, "instructions", instructions);
        say!("{size:#x}: scrubbed as expected");
        // Nothing of the next size is to be scrubbed here.
        if let peer::Ready::Device(device) = &ready {
            crate::sysfs::write(device.attribute("dax_dmem/scrub_policy"), "never")?;
        }
    }
    Ok(())
}
