// SPDX-License-Identifier: GPL-2.0

//! Fuzz target: reads a device, a mapping and touches from the input and holds every answer against
//! the page-by-page oracles of the property tests.

#![no_main]

use dmem_plan::{congruence, DevRange, PageOff, PhysAddr, RangeMap, VirtAddr, Window};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;

use oracle::{check_apply, check_congruence, check_leaves, check_page, first_fault};
use recipe::{device, touch, Base, Chunk, Size, Spot, View};

#[path = "../tests/plan/oracle.rs"]
mod oracle;
#[path = "../tests/plan/recipe.rs"]
mod recipe;

/// Longest part of a device whose leaves are counted, in pages (8 GiB): longer ones take seconds.
const COUNTED: u64 = 1 << 21;

fuzz_target!(|data: &[u8]| {
    let mut input = Unstructured::new(data);
    // Input that ends too early is a shorter case, not an error.
    let _: Result<()> = match input.int_in_range(0..=3) {
        Ok(0) => raw(&mut input),
        Ok(1) => small(&mut input),
        _ => cooked(&mut input),
    };
});

/// Well-formed devices whose boundaries are where leaves begin and end.
fn cooked(input: &mut Unstructured<'_>) -> Result<()> {
    let mut chunks = Vec::new();
    for _ in 0..input.int_in_range(1..=6)? {
        chunks.push(Chunk {
            align: input.int_in_range(0..=2)?,
            gap: size(input)?,
            size: size(input)?,
            rank: input.int_in_range(0..=3)?,
        });
    }
    let base = *input.choose(&[Base::Bottom, Base::High, Base::Top])?;
    let ranges = device(&chunks, base);
    let map = RangeMap::new(&ranges).expect("a recipe makes a device");
    let view = View {
        from: spot(input)?,
        to: spot(input)?,
        like: input.int_in_range(0..=5)?,
        off: size(input)?,
        up: input.arbitrary()?,
    };
    let window = view.window(&ranges);

    let (pgoff, pages) = view.part(&ranges);
    let wish = congruence(&map, PageOff::from_raw(pgoff), pages);
    if let Some(wish) = wish {
        check_apply(wish, number(input)?);
        check_apply(wish, !number(input)?);
    }
    if pages <= COUNTED {
        let base = input.int_in_range(0..=1_u64 << 35)? * 4096;
        let other = input.int_in_range(0..=(1_u64 << 18) - 1)? * 4096;
        check_congruence(&map, wish, pgoff, pages, base, &[other]);
    }

    check_leaves(&map, &window, window.start());
    while !input.is_empty() {
        let spot = spot(input)?;
        check_page(&map, spot.pgoff(&ranges));
        check_leaves(
            &map,
            &window,
            touch(&window, &ranges, spot, input.arbitrary()?),
        );
    }
    Ok(())
}

fn size(input: &mut Unstructured<'_>) -> Result<Size> {
    Ok(Size {
        gigs: input.int_in_range(0..=2)?,
        megs2: input.int_in_range(0..=511)?,
        pages: input.int_in_range(0..=511)?,
    })
}

fn spot(input: &mut Unstructured<'_>) -> Result<Spot> {
    Ok(Spot {
        near: input.int_in_range(0..=6)?,
        back: input.arbitrary()?,
        by: size(input)?,
    })
}

/// Small ranges in little room: good and bad ones, all compared page by page.
fn small(input: &mut Unstructured<'_>) -> Result<()> {
    let mut ranges = Vec::new();
    let mut next = 0;
    for _ in 0..input.int_in_range(0..=8)? {
        let pgoff = next + if input.ratio(1, 16)? { 1 } else { 0 };
        let start = input.int_in_range(0..=63)? * 4096 + if input.ratio(1, 16)? { 8 } else { 0 };
        let pages = input.int_in_range(0..=7)?;
        next = pgoff + pages;
        ranges.push(DevRange {
            pgoff: PageOff::from_raw(pgoff),
            start: PhysAddr::from_raw(start),
            pages,
        });
    }
    check_ranges(&ranges);
    if let Ok(map) = RangeMap::new(&ranges) {
        (0..next + 2).for_each(|pgoff| check_page(&map, pgoff));
    }
    Ok(())
}

/// That the ranges are accepted, or refused for what is wrong with them.
fn check_ranges(ranges: &[DevRange]) {
    let error = RangeMap::new(ranges).err();
    let fault = first_fault(ranges).map(|(index, faults)| (index, faults[0]));
    assert_eq!(
        error.map(|error| (error.index, error.fault)),
        fault,
        "{ranges:?}"
    );
}

/// Any numbers at all: most make no device, but what does may have any size.
fn raw(input: &mut Unstructured<'_>) -> Result<()> {
    let mut ranges = Vec::new();
    let mut next: u64 = 0;
    for _ in 0..input.int_in_range(0..=5)? {
        let pgoff = if input.ratio(7, 8)? {
            next
        } else {
            input.arbitrary()?
        };
        let start = number(input)?;
        let pages = number(input)?;
        next = pgoff.wrapping_add(pages);
        ranges.push(DevRange {
            pgoff: PageOff::from_raw(pgoff),
            start: PhysAddr::from_raw(start),
            pages,
        });
    }
    // The oracle compares page by page: only where that ends soon.
    if ranges
        .iter()
        .all(|range| range.pages <= 256 || range.pages >= 1 << 52)
    {
        check_ranges(&ranges);
    }
    let Ok(map) = RangeMap::new(&ranges) else {
        return Ok(());
    };
    check_page(&map, number(input)?);
    let _ = congruence(&map, PageOff::from_raw(number(input)?), number(input)?);
    let (start, end) = (
        VirtAddr::from_raw(number(input)?),
        VirtAddr::from_raw(number(input)?),
    );
    if let Some(window) = Window::new(start, end, PageOff::from_raw(number(input)?)) {
        while !input.is_empty() {
            check_leaves(&map, &window, VirtAddr::from_raw(number(input)?));
        }
    }
    Ok(())
}

/// A number of any magnitude, mostly page aligned.
fn number(input: &mut Unstructured<'_>) -> Result<u64> {
    let value = input.arbitrary::<u64>()? >> input.int_in_range(0..=63)?;
    Ok(if input.ratio(3, 4)? {
        value & !0xfff
    } else {
        value
    })
}
