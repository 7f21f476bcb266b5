// SPDX-License-Identifier: GPL-2.0

//! The vectors the kernel runs as well: that the code gives their answers, and that the oracles do.

use crate::oracle::{first_fault, leaf_at, page, run_at};
use core::fmt::Debug;
use dmem_plan as plan;
use dmem_plan::{Leaf, PhysAddr, RangeMap, VirtAddr, Window};

#[path = "../../vectors.rs"]
mod table;

/// All cases ran, each with its answer.
fn assert_passed<O: Debug>(result: Result<usize, table::Mismatch<O>>, cases: usize) {
    match result {
        Ok(ran) => assert_eq!(ran, cases),
        Err(mismatch) => panic!("{mismatch}"),
    }
}

#[test]
fn devices() {
    assert_passed(table::check_devices(), table::DEVICES.len());
}

#[test]
fn pages() {
    assert_passed(table::check_pages(), table::PAGES.len());
}

#[test]
fn windows() {
    assert_passed(table::check_windows(), table::WINDOWS.len());
}

#[test]
fn fits() {
    assert_passed(table::check_fits(), table::FITS.len());
}

#[test]
fn largest() {
    assert_passed(table::check_largest(), table::LARGEST.len());
}

#[test]
fn fills() {
    assert_passed(table::check_fills(), table::FILLS.len());
}

#[test]
fn congruences() {
    assert_passed(table::check_congruences(), table::CONGRUENCES.len());
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
