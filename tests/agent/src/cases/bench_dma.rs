// SPDX-License-Identifier: GPL-2.0
//! Benchmarks: what it takes VFIO to give a guest's memory to a device, and to take it back.

use crate::case::{Case, Outcome};
use crate::figure::{self, count, figure};
use crate::peer::{self, Peer, HUGE, IN_REGION};
use crate::region::{GIB, KIB, MIB};
use crate::scrub::Policy;
use crate::vfio::Edu;

use super::dma::pins;

pub const CASES: &[Case] = &[
    Case {
        name: "bench-dma-region",
        shows: "counts DMA map and unmap of 1 to 16 GiB on dax_dmem and device_dax",
        machine: "bench-dma",
        limit: 900,
        hidden: true,
        run: || {
            peer::load_drivers()?;
            all(&IN_REGION)
        },
        ..Case::DEFAULT
    },
    Case {
        name: "bench-dma-pages",
        shows: "counts DMA map and unmap of 1 to 8 GiB on hugetlbfs",
        machine: "bench-dma-pages",
        limit: 900,
        hidden: true,
        run: || all(&HUGE),
        ..Case::DEFAULT
    },
];

/// Guests, in GiB.
const SIZES: [u64; 4] = [1, 4, 8, 16];
/// What is written for it the machine that plays this has to have: this much, of hugetlbfs.
const MOST_WRITTEN: u64 = 8 * GIB;
/// Bytes of the first one, which does not count, at least.
const WARM: u64 = 32 * MIB;
/// Faults beyond which a size is left out: a page each for 1 GiB.
const MOST_FAULTS: u64 = 1 << 18;
/// Where the device finds it: as round an address as that of the memory.
const IOVA: u64 = 64 * GIB;

fn all(peers: &[Peer]) -> Outcome {
    figure::kernel()?;
    for peer in peers {
        guest(*peer, peer.leaf().max(WARM), false)?;
        // Around each of its faults `dax_dmem` has 512 leaves of 4 KiB.
        let faults = |size: u64| match peer {
            Peer::PageLess(leaf) => size / leaf.max(&(2 * MIB)),
            _ => size / peer.leaf(),
        };
        let fits = |size: &u64| {
            faults(*size) <= MOST_FAULTS && (peer.in_region() || *size <= MOST_WRITTEN)
        };
        let sizes = SIZES.into_iter().map(|size| size * GIB);
        for size in sizes.filter(fits) {
            guest(*peer, size, true)?;
        }
    }
    Ok(())
}

/// A guest's memory, of which all leaves are there.
fn guest(peer: Peer, size: u64, say: bool) -> Outcome {
    let ready = peer.prepare(size)?;
    peer.ready(&ready, size, Policy::Never)?;
    let file = peer.open(&ready, size)?;
    let mapping = peer.map(&file, size)?;
    peer.populate(&mapping);
    // The IOMMU's tables of a container go when it is closed, and not before.
    let edu = Edu::open()?;
    let before = pins()?;
    let (_, map) = count(|| edu.map(IOVA, mapping.address(), size))?;
    let after = pins()?;
    let (_, unmap) = count(|| edu.unmap(IOVA, size))?;
    drop((mapping, file));
    ready.give_back()?;
    if say {
        let name = peer.to_string();
        figure("dma-map", &name, size, "instructions", map);
        figure("dma-unmap", &name, size, "instructions", unmap);
        figure("dma-pinned", &name, size, "pages", after.0 - before.0);
        let tables = after.1.saturating_sub(before.1);
        figure("dma-tables", &name, size, "bytes", tables * 4 * KIB);
    }
    Ok(())
}
