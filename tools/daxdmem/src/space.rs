// SPDX-License-Identifier: GPL-2.0

//! Free space: what of a region no device and no quarantine has, and where in it a new device goes.

use std::borrow::Borrow;
use std::fmt;

use dmem_plan::{Extent, PlaceError};

use crate::align::Align;
use crate::bus::{gib_leaves, total, Bus, Range, Region};
use crate::driver::Quarantine;
use crate::name::DeviceName;
use crate::size::Size;
use crate::store::State;

/// Most ranges a new device may have. The driver takes more; a device of so many pieces is a region to tidy up.
const MOST_RANGES: usize = 256;

/// A region with its free pieces.
#[derive(Debug)]
pub struct Space {
    /// Id of the region.
    pub region: u32,
    /// The pieces, ascending and apart from each other.
    pub free: Vec<Range>,
    /// Bytes that no device has, and that are in quarantine.
    pub quarantined: u64,
    /// Devices that have memory of it and are no guest's, with their sizes.
    pub strangers: Vec<(DeviceName, Size)>,
}

/// Where a new device goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Id of the region.
    pub region: u32,
    /// Its ranges in order of offset.
    pub ranges: Vec<Range>,
}

/// All bytes of a region, where that can be known: from the bus now, or from when it was last seen there.
pub fn extent_of(region: &Region, bus: &Bus, state: &State) -> Option<Range> {
    let devices = bus.devices_of(region.id);
    extent(
        region,
        devices.map(|device| device.ranges.as_deref()),
        state,
    )
}

/// [`extent_of`] a region whose devices have these ranges.
pub fn extent<'r>(
    region: &Region,
    mut taken: impl Iterator<Item = Option<&'r [Range]>>,
    state: &State,
) -> Option<Range> {
    if let Some(start) = region.start {
        return Some(Range {
            start,
            len: region.size,
        });
    }
    // What was kept describes another region by now if it does not hold every device of this one.
    let kept = state.regions.get(&region.path).copied()?;
    let inside = |range: &Range| kept.start <= range.start && range.last() <= kept.last();
    let all_inside = taken.all(|ranges| ranges.is_some_and(|ranges| ranges.iter().all(inside)));
    (kept.len == region.size && all_inside).then_some(kept)
}

impl Space {
    /// A region without free space.
    pub fn none(region: u32) -> Space {
        Space {
            region,
            free: Vec::new(),
            quarantined: 0,
            strangers: Vec::new(),
        }
    }

    /// The free space of a region that reaches over `whole` and whose devices have these ranges; `None` when those of one
    /// may not be read.
    pub fn of<'r>(
        region: &Region,
        whole: Range,
        devices: impl Iterator<Item = Option<&'r [Range]>>,
        quarantine: &[Quarantine],
    ) -> Option<Space> {
        let mut taken = Vec::new();
        for ranges in devices {
            taken.extend_from_slice(ranges?);
        }
        let unowned = subtract(whole, &mut taken);
        taken.extend(quarantine.iter().map(|held| held.range));
        let free = subtract(whole, &mut taken);
        let quarantined = total(unowned.iter()).saturating_sub(total(free.iter()));
        Some(Space {
            free,
            quarantined,
            ..Space::none(region.id)
        })
    }

    /// Whether these ranges are free, apart from each other and cut in these units.
    pub fn has(&self, ranges: &[Range], grain: u64) -> bool {
        let cut =
            |range: &Range| range.len > 0 && range.start % grain == 0 && range.len % grain == 0;
        let inside = |range: &Range| {
            let holds = |piece: &Range| piece.start <= range.start && range.last() <= piece.last();
            self.free.iter().any(holds)
        };
        let apart = |index: usize, range: &Range| {
            ranges
                .iter()
                .skip(index + 1)
                .all(|other| !range.overlaps(*other))
        };
        let mut all = ranges.iter().enumerate();
        all.all(|(index, range)| cut(range) && inside(range) && apart(index, range))
    }

    /// Takes ranges out of the free pieces.
    pub fn take(&mut self, ranges: &[Range]) {
        let mut taken = ranges.to_vec();
        let pieces = std::mem::take(&mut self.free).into_iter();
        self.free = pieces
            .flat_map(|piece| subtract(piece, &mut taken))
            .collect();
    }

    /// The largest piece, in bytes.
    pub fn largest(&self) -> u64 {
        self.free.iter().map(|range| range.len).max().unwrap_or(0)
    }

    /// Bytes in all pieces.
    pub fn total(&self) -> u64 {
        total(self.free.iter())
    }

    fn place(&self, size: Size, align: Align) -> Result<Vec<Range>, PlaceError> {
        let free: Vec<Extent> = self.free.iter().copied().map(Extent::from).collect();
        let mut out = vec![Range { start: 0, len: 0 }.into(); MOST_RANGES];
        let pieces = dmem_plan::place(&free, size.0, align.leaf(), &mut out)?;
        Ok(out.into_iter().take(pieces).map(Range::from).collect())
    }
}

/// What of `whole` none of the taken ranges covers.
fn subtract(whole: Range, taken: &mut [Range]) -> Vec<Range> {
    taken.sort_by_key(|range| range.start);
    let mut free = Vec::new();
    let mut at = whole.start;
    let end = whole.start.saturating_add(whole.len);
    for range in taken.iter().filter(|range| range.overlaps(whole)) {
        if at < range.start {
            free.push(Range {
                start: at,
                len: range.start - at,
            });
        }
        at = at.max(range.start.saturating_add(range.len));
    }
    if at < end {
        free.push(Range {
            start: at,
            len: end - at,
        });
    }
    free
}

/// Chooses among the spaces: most 1 GiB leaves, then fewest pieces, then the region with the least free space.
pub fn choose<S: Borrow<Space>>(
    spaces: &[S],
    size: Size,
    align: Align,
) -> Result<Layout, Shortage> {
    let layouts = spaces
        .iter()
        .map(Borrow::borrow)
        .filter_map(|space: &Space| {
            let ranges = space.place(size, align).ok()?;
            Some((
                std::cmp::Reverse(gib_leaves(&ranges)),
                ranges.len(),
                space.total(),
                space.region,
                ranges,
            ))
        });
    match layouts.min_by_key(|(leaves, pieces, free, region, _)| (*leaves, *pieces, *free, *region))
    {
        Some((_, _, _, region, ranges)) => Ok(Layout { region, ranges }),
        None => Err(Shortage::new(spaces, size, align)),
    }
}

/// A device's ranges with `more` bytes behind them, where the space has them: what goes on where the last range ends, or
/// pieces from anywhere, whichever gives more 1 GiB leaves, then fewer ranges.
pub fn grow(
    space: &Space,
    has: &[Range],
    more: Size,
    align: Align,
) -> Result<Vec<Range>, Shortage> {
    let behind = |pieces: Vec<Range>| -> Vec<Range> { has.iter().copied().chain(pieces).collect() };
    let anywhere = space.place(more, align).ok().map(behind);
    let candidates = [on(space, has, more, align), anywhere]
        .into_iter()
        .flatten();
    let fitting = candidates.filter(|ranges| ranges.len() <= MOST_RANGES);
    let best = fitting.min_by_key(|ranges| (std::cmp::Reverse(gib_leaves(ranges)), ranges.len()));
    best.ok_or_else(|| Shortage::new(std::slice::from_ref(space), more, align))
}

/// [`grow`] with as much as possible right behind the last range.
fn on(space: &Space, has: &[Range], more: Size, align: Align) -> Option<Vec<Range>> {
    let (last, others) = has.split_last()?;
    let end = last.last().checked_add(1)?;
    let piece = space.free.iter().find(|piece| piece.start == end)?;
    let grain = align.grain().0;
    let len = piece.len.min(more.0) / grain * grain;
    if len == 0 {
        return None;
    }
    let longer = Range {
        start: last.start,
        len: last.len.checked_add(len)?,
    };
    let rest = match more.0 - len {
        0 => Vec::new(),
        rest => {
            let taken = &mut [Range { start: end, len }];
            let left = |piece: &Range| subtract(*piece, taken);
            let space = Space {
                free: space.free.iter().flat_map(left).collect(),
                ..Space::none(space.region)
            };
            space.place(Size(rest), align).ok()?
        }
    };
    Some(others.iter().copied().chain([longer]).chain(rest).collect())
}

/// A device's ranges without what is beyond `size`.
pub fn cut(has: &[Range], size: u64) -> Vec<Range> {
    let mut left = size;
    let piece = |range: &Range| {
        let len = range.len.min(left);
        left -= len;
        (len > 0).then_some(Range { len, ..*range })
    };
    has.iter().map_while(piece).collect()
}

/// Why no region has the space, and what there is instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    regions: Vec<Lacking>,
    strangers: Vec<(DeviceName, Size)>,
    advice: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Lacking {
    region: u32,
    free: Size,
    largest: Size,
    /// What of it starts and ends on the alignment.
    usable: Size,
    quarantined: Size,
    /// There is enough, in more pieces than a device may have.
    scattered: bool,
}

impl Shortage {
    fn new<S: Borrow<Space>>(spaces: &[S], size: Size, align: Align) -> Self {
        let spaces: Vec<&Space> = spaces.iter().map(Borrow::borrow).collect();
        let lacking = |space: &Space| {
            let place = space.place(size, align);
            Lacking {
                region: space.region,
                free: Size(space.total()),
                largest: Size(space.largest()),
                usable: match place {
                    Err(PlaceError::NoSpace { usable, .. }) => Size(usable),
                    _ => Size(space.total()),
                },
                quarantined: Size(space.quarantined),
                scattered: place == Err(PlaceError::TooManyExtents),
            }
        };
        let regions: Vec<Lacking> = spaces.iter().copied().map(lacking).collect();
        let finer = [2u64 << 20]
            .into_iter()
            .filter_map(Align::from_bytes)
            .filter(|finer| *finer < align);
        let fits = finer
            .into_iter()
            .find(|finer| spaces.iter().any(|space| space.place(size, *finer).is_ok()));
        let largest = regions
            .iter()
            .map(|region| region.usable)
            .max()
            .unwrap_or_default();
        let advice = match (fits, largest) {
            (Some(finer), _) => format!("With --align {finer} it fits, with fewer 1G leaves"),
            (None, Size(0)) => {
                "Free some with `daxdmem destroy`; `daxdmem list` shows who has what".to_owned()
            }
            (None, largest) => {
                format!("Ask for {largest} or less, or free some with `daxdmem destroy`")
            }
        };
        let strangers = spaces
            .iter()
            .flat_map(|space| space.strangers.iter().copied())
            .collect();
        Shortage {
            regions,
            strangers,
            advice,
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, region) in self.regions.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(
                f,
                "{separator}region {} has {} free",
                region.region, region.free
            )?;
            if region.free != Size(0) {
                write!(f, ", in pieces of {} at most", region.largest)?;
            }
            if region.usable != region.free {
                write!(f, ", {} of it at that alignment", region.usable)?;
            }
            if region.scattered {
                write!(f, ", in more than {MOST_RANGES} pieces")?;
            }
            if region.quarantined != Size(0) {
                write!(f, ", and {} in quarantine", region.quarantined)?;
            }
        }
        write!(f, "\n{}", self.advice)?;
        let texts: Vec<String> = self
            .strangers
            .iter()
            .map(|(device, size)| format!("{device} ({size})"))
            .collect();
        match self.strangers.first() {
            None => Ok(()),
            Some((first, _)) => write!(
                f,
                "\nDevices without a guest have memory too: {}. What nobody needs is given back by \
                 `daxctl disable-device {first}` and `daxctl destroy-device {first}`",
                texts.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
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
        let empty = Space::of(&region(None), whole, [].into_iter(), &[held]).unwrap();
        assert_eq!(empty.free, [range(4 * GIB, GIB), range(6 * GIB, 2 * GIB)]);
        assert_eq!(
            (empty.total(), empty.largest(), empty.quarantined),
            (3 * GIB, 2 * GIB, GIB)
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
        let text = |spaces: &[Space], size, align| {
            choose(spaces, Size(size), align).unwrap_err().to_string()
        };
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
        assert!(text(&[space(0, &dust)], 600 * MIB, align("2M"))
            .contains(", in more than 256 pieces\n"));
    }
}
