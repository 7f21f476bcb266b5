// SPDX-License-Identifier: GPL-2.0
//! Second-level guests.

use std::time::{Duration, Instant};

use crate::case::{Case, Outcome};
use crate::kvm::{self, KvmPages};
use crate::memory::human;
use crate::region::MIB;
use crate::vmm::{self, Guest};
use crate::{check, check_eq, say};

pub const CASES: &[Case] = &[Case {
    name: "nested-guest",
    shows: "a second-level guest on ordinary memory boots, tries its memory and powers off",
    machine: "nested",
    limit: 90,
    run: nested_guest,
    ..Case::DEFAULT
}];

fn nested_guest() -> Outcome {
    let begin = Instant::now();
    kvm::load()?;
    say!(
        "kvm-amd loaded after {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    let mut guest = Guest::start("plain", 512 * MIB, &vmm::ram(512 * MIB), false)?;
    let report = guest.report(Duration::from_secs(300))?;
    say!(
        "guest reported after {:.1} s: {} in MemTotal, pattern over {}",
        begin.elapsed().as_secs_f64(),
        human(report.memory),
        human(report.pattern)
    );
    check!(
        (400 * MIB..512 * MIB).contains(&report.memory),
        "the guest sees {}",
        human(report.memory)
    );
    check!(
        report.pattern > 300 * MIB,
        "the pattern covered {} only",
        human(report.pattern)
    );
    let pages = KvmPages::read()?;
    say!("{pages:?}");
    check_eq!(
        guest.wait_end(Duration::from_secs(10))?,
        0,
        "QEMU's exit code"
    );
    Ok(())
}
