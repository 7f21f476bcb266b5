// SPDX-License-Identifier: GPL-2.0

//! Free space, places in it, and what is said where there is none.

use super::*;
use std::path::PathBuf;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn range(start: u64, len: u64) -> Range {
    Range { start, len }
}

fn space(region: u32, free: &[(u64, u64)]) -> Space {
    let free = free
        .iter()
        .map(|(start, len)| range(*start, *len))
        .collect();
    Space {
        free,
        ..Space::none(region)
    }
}

fn align(text: &str) -> Align {
    text.parse().unwrap()
}

fn region(start: Option<u64>) -> Region {
    Region {
        id: 0,
        path: PathBuf::from("/r"),
        dynamic: true,
        node: None,
        size: 4 * GIB,
        available: 0,
        start,
    }
}

#[test]
fn what_is_left_of_a_region() {
    let whole = range(4 * GIB, 4 * GIB);
    let held = Quarantine {
        range: range(5 * GIB, GIB),
        device: "dax0.1".to_owned(),
        openers: 1,
    };
    let empty = Space::of(
        &region(None),
        whole,
        [].into_iter(),
        &[held],
        &Pages::default(),
    )
    .unwrap();
    assert_eq!(empty.free, [range(4 * GIB, GIB), range(6 * GIB, 2 * GIB)]);
    assert_eq!(
        (empty.total(), empty.largest(), empty.quarantined),
        (3 * GIB, 2 * GIB, GIB)
    );

    // Poison spoils 2 MiB of what is free, and nothing of what is in quarantine or another's.
    let held = Quarantine {
        range: range(5 * GIB, GIB),
        device: "dax0.1".to_owned(),
        openers: 1,
    };
    let bad = [
        4 * GIB + 5,
        4 * GIB + 4096,
        5 * GIB,
        6 * GIB - 1,
        7 * GIB,
        GIB,
        9 * GIB,
    ];
    let pages = Pages::of(bad.map(|at| range(at, 1)));
    let space = Space::of(&region(None), whole, [].into_iter(), &[held], &pages).unwrap();
    assert_eq!(
        space.free,
        [
            range(4 * GIB + 2 * MIB, GIB - 2 * MIB),
            range(6 * GIB, GIB),
            range(7 * GIB + 2 * MIB, GIB - 2 * MIB)
        ]
    );
    assert_eq!((space.lost, space.quarantined), (4 * MIB, GIB));
    assert_eq!(space.total() + space.lost + space.quarantined, whole.len);
    let text = choose(&[space], Size(4 * GIB), align("2M")).unwrap_err();
    assert!(
        text.to_string()
            .contains(", and 1G in quarantine, and 4M lost to poison\n"),
        "{text}"
    );

    let left = |taken: &[Range]| subtract(whole, &mut taken.to_vec());
    assert_eq!(
        left(&[range(7 * GIB, GIB), range(4 * GIB, GIB)]),
        [range(5 * GIB, 2 * GIB)]
    );
    assert_eq!(
        left(&[range(0, 5 * GIB), range(4 * GIB + 1, GIB)]),
        [range(5 * GIB + 1, 3 * GIB - 1)]
    );
    assert_eq!(left(&[whole]), []);
    assert_eq!(left(&[range(0, GIB)]), [whole]);
}

#[test]
fn devices_grow_at_their_end() {
    let grow = |free: &[(u64, u64)], has: &[Range], more, unit| {
        grow(&space(0, free), has, Size(more), align(unit))
    };
    let has = [range(4 * GIB, GIB)];
    // Right behind it: the range gets longer.
    let next = [(5 * GIB, 2 * GIB), (8 * GIB, 4 * GIB)];
    assert_eq!(
        grow(&next, &has, GIB, "1G").unwrap(),
        [range(4 * GIB, 2 * GIB)]
    );
    // Not enough there: the rest comes from elsewhere.
    assert_eq!(
        grow(&next, &has, 3 * GIB, "1G").unwrap(),
        [range(4 * GIB, 3 * GIB), range(8 * GIB, GIB)]
    );
    // Nothing there.
    assert_eq!(
        grow(&[(8 * GIB, 4 * GIB)], &has, GIB, "1G").unwrap(),
        [has[0], range(8 * GIB, GIB)]
    );
    // Half a GiB fills up one that is half used: a leaf more than anywhere else.
    let half = [range(4 * GIB, GIB / 2)];
    assert_eq!(
        grow(&[(4 * GIB + GIB / 2, GIB)], &half, GIB / 2, "2M").unwrap(),
        [range(4 * GIB, GIB)]
    );
    let shortage = grow(&next, &has, 7 * GIB, "1G").unwrap_err().to_string();
    assert!(shortage.starts_with("region 0 has 6G free"), "{shortage}");
}

#[test]
fn devices_are_cut_at_their_end() {
    let has = [range(4 * GIB, GIB), range(8 * GIB, 2 * GIB)];
    assert_eq!(cut(&has, 3 * GIB), has);
    assert_eq!(
        cut(&has, 2 * GIB),
        [range(4 * GIB, GIB), range(8 * GIB, GIB)]
    );
    assert_eq!(cut(&has, GIB), [range(4 * GIB, GIB)]);
    assert_eq!(cut(&has, GIB / 2), [range(4 * GIB, GIB / 2)]);
}

#[test]
fn a_kept_extent_has_to_fit_the_region() {
    let mut state = State::default();
    assert_eq!(
        extent_of(&region(Some(GIB)), &Bus::default(), &state),
        Some(range(GIB, 4 * GIB))
    );
    assert_eq!(extent_of(&region(None), &Bus::default(), &state), None);
    state
        .regions
        .insert(PathBuf::from("/r"), range(GIB, 4 * GIB));
    assert_eq!(
        extent_of(&region(None), &Bus::default(), &state),
        Some(range(GIB, 4 * GIB))
    );
    state
        .regions
        .insert(PathBuf::from("/r"), range(GIB, 5 * GIB));
    assert_eq!(extent_of(&region(None), &Bus::default(), &state), None);
}

#[test]
fn the_best_region_wins() {
    // Enough in both, whole GiB in the second only.
    let spaces = [
        space(0, &[(4 * GIB + 512 * MIB, GIB)]),
        space(1, &[(8 * GIB, 4 * GIB)]),
    ];
    let layout = choose(&spaces, Size(GIB), align("2M")).unwrap();
    assert_eq!(
        layout,
        Layout {
            region: 1,
            ranges: vec![range(8 * GIB, GIB)]
        }
    );
    // Equally good: the one with less to spare.
    let spaces = [
        space(0, &[(4 * GIB, 4 * GIB)]),
        space(1, &[(8 * GIB, 2 * GIB)]),
    ];
    assert_eq!(choose(&spaces, Size(GIB), align("1G")).unwrap().region, 1);
}

#[test]
fn what_is_taken_is_not_free() {
    let mut space = space(0, &[(4 * GIB, 4 * GIB), (16 * GIB, GIB)]);
    space.take(&[range(16 * GIB, GIB), range(5 * GIB, GIB)]);
    assert_eq!(space.free, [range(4 * GIB, GIB), range(6 * GIB, 2 * GIB)]);
    assert!(space.has(&[range(7 * GIB, GIB), range(4 * GIB, GIB)], GIB));
    for taken in [
        [range(5 * GIB, GIB), range(4 * GIB, GIB)],
        [range(7 * GIB, 2 * GIB), range(4 * GIB, GIB)],
        [range(6 * GIB, 2 * GIB), range(7 * GIB, GIB)],
        [range(6 * GIB + 2 * MIB, GIB), range(4 * GIB, GIB)],
    ] {
        assert!(!space.has(&taken, GIB), "{taken:?}");
    }
    space.take(&[]);
    assert_eq!(space.total(), 3 * GIB);
}

#[test]
fn shortages_say_what_there_is() {
    let text =
        |spaces: &[Space], size, align| choose(spaces, Size(size), align).unwrap_err().to_string();
    assert_eq!(
        text(
            &[space(
                0,
                &[(4 * GIB + 512 * MIB, GIB), (8 * GIB, 512 * MIB)]
            )],
            GIB,
            align("1G")
        ),
        "region 0 has 1.5G free, in pieces of 1G at most, 0 of it at that alignment\n\
         With --align 2M it fits, with fewer 1G leaves"
    );
    assert_eq!(
        text(
            &[space(0, &[(4 * GIB, 3 * GIB)]), space(1, &[])],
            8 * GIB,
            align("1G")
        ),
        "region 0 has 3G free, in pieces of 3G at most; region 1 has 0 free\n\
         Ask for 3G or less, or free some with `daxdmem destroy`"
    );
    let held = Space {
        quarantined: 2 * GIB,
        ..space(0, &[])
    };
    assert_eq!(
        text(&[held], GIB, align("2M")),
        "region 0 has 0 free, and 2G in quarantine\n\
         Free some with `daxdmem destroy`; `daxdmem list` shows who has what"
    );
    let stranger = ("dax0.0".parse().unwrap(), Size(6 * GIB));
    let full = Space {
        strangers: vec![stranger],
        ..Space::none(0)
    };
    assert_eq!(
        text(&[full], GIB, align("2M")),
        "region 0 has 0 free\n\
         Free some with `daxdmem destroy`; `daxdmem list` shows who has what\n\
         Devices without a guest have memory too: dax0.0 (6G). What nobody needs is given back by \
         `daxctl disable-device dax0.0` and `daxctl destroy-device dax0.0`"
    );
    let dust: Vec<(u64, u64)> = (0..300).map(|i| (4 * GIB + i * 4 * MIB, 2 * MIB)).collect();
    assert_eq!(
        text(&[space(0, &dust)], 600 * MIB, align("2M")),
        "region 0 has 600M free, in pieces of 2M at most, in more than 256 pieces\n\
         Ask for 512M or less, or free some with `daxdmem destroy`"
    );
    // Of a device that is there the whole counts; it stays as it is aligned.
    let grown = |has: &[Range], align| {
        let space = space(0, &[(8 * GIB + 512 * MIB, 2 * GIB)]);
        grow(&space, has, Size(4 * GIB), align)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        grown(&[range(4 * GIB, 3 * GIB)], align("2M")),
        "region 0 has 2G free, in pieces of 2G at most\n\
         Ask for 5G or less, or free some with `daxdmem destroy`"
    );
    assert_eq!(
        grown(&[range(4 * GIB, 3 * GIB)], align("1G")),
        "region 0 has 2G free, in pieces of 2G at most, 1G of it at that alignment\n\
         Ask for 4G or less, or free some with `daxdmem destroy`"
    );
    let has: Vec<Range> = (0..200)
        .map(|i| range(GIB + i * 4 * MIB, 2 * MIB))
        .collect();
    let scattered = grow(&space(0, &dust), &has, Size(300 * MIB), align("2M"));
    assert_eq!(
        scattered.unwrap_err().to_string(),
        "region 0 has 600M free, in pieces of 2M at most\n\
         Ask for 512M or less, or free some with `daxdmem destroy`"
    );
}
