// SPDX-License-Identifier: GPL-2.0
//! Benchmarks: what guests' memory costs the kernel, and how that and the work for it grow, on hosts larger than the machine
//! that plays them.

use std::time::Instant;

use crate::case::{Case, Failure, Outcome};
use crate::figure::{self, count, figure};
use crate::memory::Meminfo;
use crate::page_struct;
use crate::peer::{self, Peer, HUGE, IN_REGION};
use crate::region::{Region, GIB, KIB, MIB};
use crate::scrub::Policy;

pub const CASES: &[Case] = &[
    Case {
        name: "bench-memory-region",
        shows: "measures kernel memory and work for 1 to 64 GiB on dax_dmem and device_dax",
        machine: "icount200",
        limit: 900,
        hidden: true,
        run: in_region,
        ..Case::DEFAULT
    },
    Case {
        name: "bench-memory-pages",
        shows: "measures kernel memory and work for 1 to 64 GiB on hugetlbfs",
        machine: "bench-pages72",
        limit: 900,
        hidden: true,
        run: on_pages,
        ..Case::DEFAULT
    },
    Case {
        name: "bench-host-384",
        shows: "measures what is left of a host of 384 GiB, and kernel memory for nearly all of it",
        machine: "bench384",
        limit: 900,
        hidden: true,
        run: || {
            host(384)?;
            most_of_it()
        },
        ..Case::DEFAULT
    },
    Case {
        name: "bench-host-384-pages",
        shows: "measures a host of 384 GiB without reservation",
        machine: "bench384-pages",
        limit: 900,
        hidden: true,
        run: || host(384),
        ..Case::DEFAULT
    },
    Case {
        name: "bench-host-512",
        shows: "measures what is left of a host of 512 GiB",
        machine: "bench512",
        limit: 900,
        hidden: true,
        run: || host(512),
        ..Case::DEFAULT
    },
    Case {
        name: "bench-host-768",
        shows: "measures what is left of a host of 768 GiB",
        machine: "bench768",
        limit: 900,
        hidden: true,
        run: || host(768),
        ..Case::DEFAULT
    },
];

const SIZES: [u64; 4] = [1, 4, 16, 64];
/// Bytes of the first of each peer, which does not count, at least.
const WARM: u64 = 32 * MIB;
/// Faults beyond which a size is not touched: a page each for 1 GiB.
const MOST_FAULTS: u64 = 1 << 18;

fn in_region() -> Outcome {
    figure::kernel()?;
    peer::load_drivers()?;
    for peer in IN_REGION {
        grown(peer, peer.leaf().max(WARM), false)?;
        for size in SIZES {
            grown(peer, size * GIB, true)?;
        }
    }
    Ok(())
}

fn on_pages() -> Outcome {
    figure::kernel()?;
    for peer in HUGE {
        pool(peer, peer.leaf().max(WARM), false)?;
        for size in SIZES {
            pool(peer, size * GIB, true)?;
        }
    }
    Ok(())
}

/// Kernel memory in use, page tables of users apart.
fn used() -> Outcome<(u64, u64)> {
    let meminfo = Meminfo::settled()?;
    let (free, tables) = (meminfo.bytes("MemFree")?, meminfo.bytes("PageTables")?);
    Ok((meminfo.bytes("MemTotal")? - free - tables, tables))
}

fn grown(peer: Peer, size: u64, say: bool) -> Outcome {
    let name = peer.to_string();
    let report = |row: &str, unit: &str, value| {
        if say {
            figure(row, &name, size, unit, value);
        }
    };
    let ready = peer.prepare(size)?;
    let before = used()?;
    let (_, bind) = count(|| peer.ready(&ready, size, Policy::Never))?;
    let file = peer.open(&ready, size)?;
    let mapping = peer.map(&file, size)?;
    let faults = size / peer.leaf() <= MOST_FAULTS;
    let begin = Instant::now();
    if faults {
        peer.touch(&mapping);
    }
    let touch = begin.elapsed().as_nanos() as u64;
    let after = used()?;
    let begin = Instant::now();
    drop(mapping);
    let unmap = begin.elapsed().as_nanos() as u64;
    drop(file);
    let (_, release) = count(|| ready.give_back())?;
    report("grow-ready", "instructions", bind);
    report("grow-give-back", "instructions", release);
    report("kernel-memory", "bytes", after.0.saturating_sub(before.0));
    if faults {
        report("grow-touch", "instructions", touch);
        report("grow-unmap", "instructions", unmap);
        report("page-tables", "bytes", after.1.saturating_sub(before.1));
    }
    Ok(())
}

/// Struct pages of a pool that are still there: those of its size, less what the optimisation gave back.
fn pool(peer: Peer, size: u64, say: bool) -> Outcome {
    let name = peer.to_string();
    let ready = peer.prepare(size)?;
    let before = Meminfo::settled()?.bytes("MemFree")?;
    let (_, bind) = count(|| peer.ready(&ready, size, Policy::Never))?;
    let after = Meminfo::settled()?.bytes("MemFree")?;
    let (_, release) = count(|| ready.give_back())?;
    let taken = before.saturating_sub(after);
    let all = size / (4 * KIB) * page_struct::size()?;
    let cost = (all + taken).checked_sub(size).ok_or_else(|| {
        Failure::Fail(format!(
            "{name}: {size:#x} bytes took {taken:#x} of free memory"
        ))
    })?;
    if say {
        figure("grow-ready", &name, size, "instructions", bind);
        figure("grow-give-back", &name, size, "instructions", release);
        figure("kernel-memory", &name, size, "bytes", cost);
    }
    Ok(())
}

/// What the kernel has left of so many GiB installed, and how long it took to come up.
fn host(installed: u64) -> Outcome {
    figure::kernel()?;
    let size = installed * GIB;
    let total = Meminfo::read()?.bytes("MemTotal")?;
    let regions = Region::all().unwrap_or_default();
    let reserved: u64 = regions.iter().map(|region| region.size).sum();
    let name = if reserved > 0 {
        "dax_dmem"
    } else {
        "no reservation"
    };
    figure("memtotal", name, size, "bytes", total);
    figure("reserved", name, size, "bytes", reserved);
    figure("boot", name, size, "instructions", boot()?);
    Ok(())
}

/// The kernel's own clock when it started init, in ns.
fn boot() -> Outcome<u64> {
    let log = crate::command::Command::line("dmesg").run()?;
    let line = log
        .lines()
        .find(|line| line.contains("Run /init as init process"));
    let seconds = line.and_then(|line| {
        let text = line.trim_start().trim_start_matches('[');
        text.split(']').next()?.trim().parse::<f64>().ok()
    });
    match seconds {
        Some(seconds) => Ok((seconds * 1e9) as u64),
        None => Err(Failure::Fail("dmesg does not say when init began".into())),
    }
}

/// Kernel memory for all of the region.
fn most_of_it() -> Outcome {
    peer::load_drivers()?;
    let size = Region::first()?.size;
    // Struct pages of 4 KiB pages would take a quarter of the machine that plays this.
    for peer in IN_REGION.into_iter().filter(|peer| peer.leaf() > 4 * KIB) {
        grown(peer, peer.leaf().max(WARM), false)?;
        grown(peer, size, true)?;
    }
    Ok(())
}
