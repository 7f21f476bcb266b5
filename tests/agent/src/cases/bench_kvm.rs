// SPDX-License-Identifier: GPL-2.0
//! Benchmarks: what it takes KVM until a guest has touched all of its memory.

use crate::case::{Case, Outcome};
use crate::figure::{self, count, figure};
use crate::kvm;
use crate::peer::{self, Peer, HUGE, IN_REGION};
use crate::region::{GIB, KIB, MIB};
use crate::scrub::Policy;
use crate::walker::Walker;

use super::bench_guest::{MOST_FAULTS, WARM};

pub const CASES: &[Case] = &[
    Case {
        name: "bench-kvm-region",
        shows: "counts guests of 1 and 4 GiB that warm up on dax_dmem and device_dax",
        machine: "bench",
        limit: 900,
        hidden: true,
        run: || {
            peer::load_drivers()?;
            warm(&IN_REGION)
        },
        ..Case::DEFAULT
    },
    Case {
        name: "bench-kvm-pages",
        shows: "counts guests of 1 and 4 GiB that warm up on hugetlbfs and memfd",
        machine: "bench-pages",
        limit: 900,
        hidden: true,
        run: || {
            // What optimises struct pages does nothing here.
            warm(&[HUGE[0], HUGE[2]])?;
            warm(&[Peer::Shared(2 * MIB), Peer::Shared(4 * KIB)])
        },
        ..Case::DEFAULT
    },
];

const SIZES: [u64; 2] = [GIB, 4 * GIB];

fn warm(peers: &[Peer]) -> Outcome {
    figure::kernel()?;
    kvm::load()?;
    for peer in peers {
        guest(*peer, peer.leaf().max(WARM), false)?;
        let few = |size: &u64| size / peer.leaf() <= MOST_FAULTS;
        for size in SIZES.into_iter().filter(few) {
            guest(*peer, size, true)?;
        }
    }
    Ok(())
}

/// A guest whose memory its process has not touched, and one whose memory it has.
fn guest(peer: Peer, size: u64, say: bool) -> Outcome {
    for (row, populated) in [("kvm-warm", false), ("kvm-warm-populated", true)] {
        let ready = peer.prepare(size)?;
        peer.ready(&ready, size, Policy::Never)?;
        let file = peer.open(&ready, size)?;
        let mapping = peer.map(&file, size)?;
        if populated {
            peer.populate(&mapping);
        }
        let guest = Walker::new(mapping.address(), size)?;
        let before = kvm::faults_fixed()?;
        let (_, instructions) = count(|| guest.walk())?;
        let faults = kvm::faults_fixed()? - before;
        // All of it in the order in which it was made.
        drop((guest, mapping, file));
        ready.give_back()?;
        if say {
            let name = peer.to_string();
            figure(row, &name, size, "instructions", instructions);
            if !populated {
                figure("kvm-faults", &name, size, "faults", faults);
            }
        }
    }
    Ok(())
}
