// SPDX-License-Identifier: GPL-2.0

//! The vectors the kernel runs as well: their own tests (`table::tests`), and that the oracles give
//! the same answers.

use crate::oracle::{first_fault, leaf_at, page, run_at};
use dmem_plan as plan;
use dmem_plan::{Leaf, PhysAddr, RangeMap, VirtAddr, Window};

#[path = "../../vectors.rs"]
mod table;

/// What the tests in the tables' file call with the case that came out differently.
fn complain(what: core::fmt::Arguments<'_>) {
    eprintln!("{what}");
}

/// What a table says and an oracle denies would be a wrong table.
#[test]
fn the_oracles_agree_with_the_tables() {
    let window = |(start, end, pgoff): (u64, u64, u64)| {
        Window::new(
            VirtAddr::from_raw(start),
            VirtAddr::from_raw(end),
            plan::PageOff::from_raw(pgoff),
        )
        .unwrap()
    };
    for case in table::DEVICES
        .iter()
        .filter(|case| case.given.iter().all(|range| range.pages < 1024))
    {
        let fault = first_fault(case.given).map(|(index, faults)| (index, faults[0]));
        assert_eq!(
            case.want.err().map(|error| (error.index, error.fault)),
            fault,
            "{}",
            case.name
        );
    }
    for case in table::PAGES {
        let (ranges, pgoff) = case.given;
        let phys = page(ranges, u128::from(pgoff)).map(|(_, phys)| u64::try_from(phys).unwrap());
        assert_eq!(case.want.map(PhysAddr::raw), phys, "{}", case.name);
    }
    for case in table::FITS {
        let ((ranges, raw, addr), leaf) = case.given;
        assert_eq!(
            case.want,
            leaf_at(ranges, &window(raw), VirtAddr::from_raw(addr), leaf),
            "{}",
            case.name
        );
    }
    for case in table::LARGEST {
        let (ranges, raw, addr) = case.given;
        let at = |leaf| {
            leaf_at(ranges, &window(raw), VirtAddr::from_raw(addr), leaf)
                .map(|placed| (leaf, placed))
        };
        let most = at(Leaf::Pud).or(at(Leaf::Pmd)).or(at(Leaf::Pte));
        assert_eq!(case.want, most, "{}", case.name);
    }
    for case in table::FILLS {
        let (ranges, raw, addr) = case.given;
        assert_eq!(
            case.want,
            run_at(ranges, &window(raw), VirtAddr::from_raw(addr)),
            "{}",
            case.name
        );
    }
    for case in table::CONGRUENCES {
        let (ranges, pgoff, pages, _) = case.given;
        if pgoff.checked_add(pages).is_none() {
            assert_eq!(case.want, None, "{}", case.name);
            continue;
        }
        // The oracle counts leaves in a real mapping: no longer than the device.
        let pages = pages.min(ranges.iter().map(|range| range.pages).sum());
        let map = RangeMap::new(ranges).unwrap();
        let got = plan::congruence(&map, plan::PageOff::from_raw(pgoff), pages);
        assert_eq!(
            got.map(|wish| (wish.modulus(), wish.residue())),
            case.want.map(|(m, r, _)| (m, r)),
            "{}",
            case.name
        );
        crate::oracle::check_congruence(&map, got, pgoff, pages, 1 << 40, &[]);
    }
}
