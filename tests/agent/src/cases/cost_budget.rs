// SPDX-License-Identifier: GPL-2.0
//! Operations against their budgets in instructions: bind, unbind, scrub, and the tool's verbs.

use crate::budget::Budgets;
use crate::case::{Case, Outcome};
use crate::check_eq;
use crate::device::DAX_DMEM;
use crate::figure::count;
use crate::region::{Region, GIB, MIB};
use crate::scrub::{self, Policy, Progress};

use super::scrub::forget;
use super::tool_host::need;
use super::tool_scale::cost;

pub const CASES: &[Case] = &[Case {
    name: "cost-budgets",
    shows: "bind, unbind, scrub and the tool's verbs take no more instructions than their budgets",
    machine: "icount",
    limit: 120,
    run: budgets,
    ..Case::DEFAULT
}];

/// Of so many tries the cheapest counts: the others met a timer, or did what is done once.
const TRIES: usize = 5;
/// Binds and unbinds, which cost little to try.
const BINDS: usize = 20;
const SCRUBBED: u64 = 256 * MIB;

fn budgets() -> Outcome {
    need()?;
    scrub::settle()?;
    let mut budgets = Budgets::default();
    let (bind, unbind) = binds()?;
    budgets.spend("bind", bind)?;
    budgets.spend("unbind", unbind)?;
    budgets.spend("scrub, per GiB", scrub_of_a_gib()?)?;
    for (verb, instructions) in VERBS.iter().zip(verbs()?) {
        budgets.spend(&format!("daxdmem {verb}"), instructions)?;
    }
    budgets.kept()
}

/// The cheapest of binds and of unbinds of one GiB.
fn binds() -> Outcome<(u64, u64)> {
    let device = Region::first()?.create(GIB, &[(0, GIB)])?;
    let (mut bind, mut unbind) = (u64::MAX, u64::MAX);
    for _ in 0..BINDS {
        bind = bind.min(count(|| device.bind(DAX_DMEM))?.1);
        unbind = unbind.min(count(|| device.unbind())?.1);
    }
    Ok((bind, unbind))
}

fn scrub_of_a_gib() -> Outcome<u64> {
    let parts = [(0, SCRUBBED)];
    let mut best = u64::MAX;
    for _ in 0..2 {
        forget(&parts)?;
        let device = Region::first()?.create(2 * MIB, &parts)?;
        let (_, instructions) = count(|| {
            Policy::HandOut.bind(&device)?;
            // On the only CPU there is nothing else to do while this waits.
            device.open()
        })?;
        check_eq!(
            Progress::of(&device)?.total,
            SCRUBBED,
            "bytes scrubbed at bind"
        );
        best = best.min(instructions);
    }
    Ok(best * (GIB / SCRUBBED))
}

/// In the order in which they are tried; `list` sees one guest.
const VERBS: [&str; 5] = ["create", "list", "unbind", "bind", "destroy"];

fn verbs() -> Outcome<[u64; 5]> {
    let mut best = [u64::MAX; 5];
    for _ in 0..TRIES {
        for (verb, best) in VERBS.iter().zip(&mut best) {
            let words = match *verb {
                "list" => "list".to_owned(),
                "create" => "create vm --size 1G --scrub never".to_owned(),
                verb => format!("{verb} vm"),
            };
            *best = cost(&words)?.own.min(*best);
        }
    }
    Ok(best)
}
