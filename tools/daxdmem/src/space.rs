// SPDX-License-Identifier: GPL-2.0

//! Free space: what of a region no device and no quarantine has and no poison spoils, and where in it a new device goes.

use std::borrow::Borrow;
use std::fmt;

use dmem_plan::{Extent, PlaceError};

use crate::align::Align;
use crate::bus::{gib_leaves, total, Bus, Range, Region};
use crate::driver::Quarantine;
use crate::name::DeviceName;
use crate::poison::Pages;
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
    /// Bytes that neither a device nor quarantine has, and that nobody gets because of poison in them.
    pub lost: u64,
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
    /// The free space of a region as the bus shows it; `None` where it is not known, or not to be seen by the caller.
    pub fn of_region(
        region: &Region,
        bus: &Bus,
        state: &State,
        quarantine: &[Quarantine],
        poison: &Pages,
    ) -> Option<Space> {
        let whole = extent_of(region, bus, state)?;
        let devices = bus.devices_of(region.id);
        let taken = devices.map(|device| device.ranges.as_deref());
        Space::of(region, whole, taken, quarantine, poison)
    }

    /// A region without free space.
    pub fn none(region: u32) -> Space {
        Space {
            region,
            free: Vec::new(),
            quarantined: 0,
            lost: 0,
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
        poison: &Pages,
    ) -> Option<Space> {
        let mut taken = Vec::new();
        for ranges in devices {
            taken.extend_from_slice(ranges?);
        }
        let unowned = subtract(whole, &mut taken);
        taken.extend(quarantine.iter().map(|held| held.range));
        let unheld = total(subtract(whole, &mut taken).iter());
        taken.extend(poison.within(&[whole]).blocks());
        let free = subtract(whole, &mut taken);
        Some(Space {
            quarantined: total(unowned.iter()).saturating_sub(unheld),
            lost: unheld.saturating_sub(total(free.iter())),
            free,
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

    /// Most that a device with these ranges can get of `usable` bytes, for which it may have too many pieces.
    fn most(&self, has: &[Range], usable: Size, align: Align) -> Size {
        let grain = align.grain().0;
        let fits = |units: u64| longer(self, has, Size(units * grain), align).is_some();
        let all = usable.0 / grain;
        if all > 0 && fits(all) {
            return Size(all * grain);
        }
        // That many fit; that many do not.
        let (mut few, mut many) = (0, all);
        while many.saturating_sub(few) > 1 {
            let between = few + (many - few) / 2;
            match fits(between) {
                true => few = between,
                false => many = between,
            }
        }
        Size(few * grain)
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
        None => Err(Shortage::new(spaces, &[], size, align)),
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
    longer(space, has, more, align)
        .ok_or_else(|| Shortage::new(std::slice::from_ref(space), has, more, align))
}

fn longer(space: &Space, has: &[Range], more: Size, align: Align) -> Option<Vec<Range>> {
    let behind = |pieces: Vec<Range>| -> Vec<Range> { has.iter().copied().chain(pieces).collect() };
    let anywhere = space.place(more, align).ok().map(behind);
    let candidates = [on(space, has, more, align), anywhere]
        .into_iter()
        .flatten();
    let fitting = candidates.filter(|ranges| ranges.len() <= MOST_RANGES);
    fitting.min_by_key(|ranges| (std::cmp::Reverse(gib_leaves(ranges)), ranges.len()))
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
    lost: Size,
    /// There is enough, in more pieces than a device may have.
    scattered: bool,
}

impl Shortage {
    /// Of these regions, none of which has `size` for a device that has these ranges already.
    fn new<S: Borrow<Space>>(spaces: &[S], has: &[Range], size: Size, align: Align) -> Self {
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
                lost: Size(space.lost),
                scattered: place == Err(PlaceError::TooManyExtents),
            }
        };
        let regions: Vec<Lacking> = spaces.iter().copied().map(lacking).collect();
        // A device that is there keeps its alignment.
        let finer = [2u64 << 20]
            .into_iter()
            .filter_map(Align::from_bytes)
            .filter(|finer| *finer < align && has.is_empty());
        let fits = finer
            .into_iter()
            .find(|finer| spaces.iter().any(|space| space.place(size, *finer).is_ok()));
        let largest = spaces
            .iter()
            .zip(&regions)
            .map(|(space, region)| space.most(has, region.usable, align))
            .max()
            .unwrap_or_default();
        let advice = match (fits, largest) {
            (Some(finer), _) => format!("With --align {finer} it fits, with fewer 1G leaves"),
            (None, Size(0)) => {
                "Free some with `daxdmem destroy`; `daxdmem list` shows who has what".to_owned()
            }
            (None, largest) => {
                let all = Size(total(has.iter()).saturating_add(largest.0));
                format!("Ask for {all} or less, or free some with `daxdmem destroy`")
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
            if region.lost != Size(0) {
                write!(f, ", and {} lost to poison", region.lost)?;
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
mod tests;
