// SPDX-License-Identifier: GPL-2.0
//! The model of an address space: VMAs of page-less memory, which the kernel splits but never merges.

use super::op::{
    Prot, Shown, Span, FLAG_DONTFORK, FLAG_HUGEPAGE, FLAG_NOHUGEPAGE, FLAG_READ, FLAG_WRITE,
};

/// A VMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vma {
    /// First page of the arena.
    pub start: u64,
    /// First page behind.
    pub end: u64,
    /// Number of the open file ([`super::model::Model::files`]).
    pub file: usize,
    /// Whether that was opened for writing.
    pub may_write: bool,
    /// Offset of the first page in the device, pages.
    pub offset: u64,
    /// Protection.
    pub prot: Prot,
    /// What madvise has set.
    pub flags: Flags,
}

/// Flags of a VMA that madvise changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags {
    /// MADV_HUGEPAGE (true) or MADV_NOHUGEPAGE (false).
    pub huge: Option<bool>,
    /// MADV_DONTFORK; nothing takes it back from such memory.
    pub dont_fork: bool,
    /// MADV_RANDOM (true) or MADV_SEQUENTIAL (false).
    pub random: Option<bool>,
}

impl Vma {
    /// Offset in the device of a page of the arena.
    pub fn offset_of(&self, page: u64) -> u64 {
        self.offset + (page - self.start)
    }

    /// Its place.
    pub fn span(&self) -> Span {
        Span {
            at: self.start,
            pages: self.end - self.start,
        }
    }

    fn shown(&self) -> Shown {
        let flag = |set, flag| if set { flag } else { 0 };
        let flags = flag(self.prot.read, FLAG_READ)
            | flag(self.prot.write, FLAG_WRITE)
            | flag(self.flags.dont_fork, FLAG_DONTFORK)
            | flag(self.flags.huge == Some(false), FLAG_NOHUGEPAGE)
            | flag(self.flags.huge == Some(true), FLAG_HUGEPAGE);
        [self.start, self.end, self.offset, flags]
    }
}

/// What an advice does to a VMA.
enum Effect {
    Sets(Flags),
    Refused(&'static [i32]),
}

/// The VMAs of a process in the arena, by address.
#[derive(Debug, Clone, Default)]
pub struct Space {
    vmas: Vec<Vma>,
}

impl Space {
    /// All VMAs.
    pub fn vmas(&self) -> &[Vma] {
        &self.vmas
    }

    /// The VMA that holds a page.
    pub fn find(&self, page: u64) -> Option<&Vma> {
        let vma = self.vmas.get(self.index_from(page))?;
        (vma.start <= page).then_some(vma)
    }

    /// Index of the first VMA that ends behind this page.
    fn index_from(&self, page: u64) -> usize {
        self.vmas.partition_point(|vma| vma.end <= page)
    }

    /// Whether something is mapped there.
    pub fn is_used(&self, span: Span) -> bool {
        self.vmas
            .get(self.index_from(span.at))
            .is_some_and(|vma| vma.start < span.end())
    }

    /// As /proc lists them, without the flags below `mask`'s.
    pub fn shown(&self, mask: u64) -> Vec<Shown> {
        let masked = |[start, end, offset, flags]: Shown| [start, end, offset, flags & mask];
        self.vmas.iter().map(Vma::shown).map(masked).collect()
    }

    /// What a child gets.
    pub fn forked(&self) -> Space {
        Space {
            vmas: self
                .vmas
                .iter()
                .filter(|vma| !vma.flags.dont_fork)
                .copied()
                .collect(),
        }
    }

    fn split(&mut self, page: u64) {
        let index = self.index_from(page);
        let Some(vma) = self.vmas.get_mut(index) else {
            return;
        };
        if vma.start < page {
            let mut upper = *vma;
            upper.offset = vma.offset_of(page);
            upper.start = page;
            vma.end = page;
            self.vmas.insert(index + 1, upper);
        }
    }

    /// munmap.
    pub fn unmap(&mut self, span: Span) {
        self.split(span.at);
        self.split(span.end());
        self.vmas
            .retain(|vma| vma.end <= span.at || span.end() <= vma.start);
    }

    /// Puts a VMA where nothing is.
    pub fn insert(&mut self, vma: Vma) {
        let index = self.index_from(vma.start);
        self.vmas.insert(index, vma);
    }

    /// The indices of the VMAs in a range, cut to it: (first page, end, index at this moment, gap before).
    fn change(
        &mut self,
        span: Span,
        mut each: impl FnMut(&Vma, bool) -> Result<Option<Vma>, i32>,
    ) -> Result<bool, i32> {
        let mut at = span.at;
        let mut gaps = false;
        while at < span.end() {
            let Some(vma) = self.vmas.get(self.index_from(at)).copied() else {
                return Ok(true);
            };
            if vma.start >= span.end() {
                return Ok(true);
            }
            gaps |= vma.start > at;
            let (start, end) = (vma.start.max(at), vma.end.min(span.end()));
            if let Some(changed) = each(&vma, gaps)? {
                if changed != vma {
                    self.split(start);
                    self.split(end);
                    let index = self.index_from(start);
                    if let Some(part) = self.vmas.get_mut(index) {
                        part.prot = changed.prot;
                        part.flags = changed.flags;
                    }
                }
            }
            at = end;
        }
        Ok(gaps)
    }

    /// mprotect: stops at a hole, and at a VMA that must not be written, with what came before changed.
    pub fn protect(&mut self, span: Span, prot: Prot) -> Result<(), i32> {
        let gaps = self.change(span, |vma, gaps| {
            if gaps {
                return Err(libc::ENOMEM);
            }
            if prot.write && !vma.may_write {
                return Err(libc::EACCES);
            }
            Ok(Some(Vma { prot, ..*vma }))
        })?;
        if gaps {
            Err(libc::ENOMEM)
        } else {
            Ok(())
        }
    }

    /// madvise: the error numbers it may give; none: success. Steps over holes.
    pub fn advise(&mut self, span: Span, advice: i32) -> Result<(), &'static [i32]> {
        match advice {
            // By pages, of which there are none, and before any VMA is looked at.
            libc::MADV_HWPOISON | libc::MADV_SOFT_OFFLINE => return Err(&[libc::EFAULT]),
            libc::MADV_POPULATE_READ | libc::MADV_POPULATE_WRITE => {
                return match self.find(span.at) {
                    Some(_) => Err(&[libc::EINVAL, libc::EFAULT]),
                    None => Err(&[libc::ENOMEM]),
                }
            }
            _ if !is_advice(advice) => return Err(&[libc::EINVAL]),
            _ => {}
        }
        let mut refused: &'static [i32] = &[];
        let result = self.change(span, |vma, _| match effect(vma.flags, advice) {
            Effect::Sets(flags) => Ok(Some(Vma { flags, ..*vma })),
            Effect::Refused(errnos) => {
                refused = errnos;
                Err(0)
            }
        });
        match result {
            Ok(false) => Ok(()),
            Ok(true) => Err(&[libc::ENOMEM]),
            Err(_) => Err(refused),
        }
    }

    /// mlock and munlock, which do nothing to such memory but notice holes.
    pub fn lock(&self, span: Span) -> Result<(), i32> {
        let mut at = span.at;
        while at < span.end() {
            at = self.find(at).ok_or(libc::ENOMEM)?.end;
        }
        Ok(())
    }

    /// msync: nothing to wait for, nothing to write.
    pub fn sync(&self, span: Span, wait: bool) -> Result<(), i32> {
        let mut at = span.at;
        let mut gaps = false;
        while at < span.end() {
            let vma = self.vmas.get(self.index_from(at));
            let Some(vma) = vma.filter(|vma| vma.start < span.end()) else {
                return Err(libc::ENOMEM);
            };
            if vma.start > at {
                if !wait {
                    return Err(libc::ENOMEM);
                }
                gaps = true;
            }
            // The driver has no fsync, and files opened for reading are not asked.
            if wait && vma.may_write {
                return Err(libc::EINVAL);
            }
            at = vma.end;
        }
        if gaps {
            Err(libc::ENOMEM)
        } else {
            Ok(())
        }
    }

    /// mremap, as `mm/mremap.c` decides.
    pub fn remap(&mut self, call: Remap) -> Result<(), i32> {
        let Remap {
            span,
            pages,
            to,
            may_move,
            dont_unmap,
        } = call;
        if pages == 0 {
            return Err(libc::EINVAL);
        }
        let target = to.map(|at| Span { at, pages });
        if target.is_some() || dont_unmap {
            let resizes = dont_unmap && pages != span.pages;
            if !may_move || resizes || target.is_some_and(|target| target.overlaps(span)) {
                return Err(libc::EINVAL);
            }
        }
        let vma = *self.find(span.at).ok_or(libc::EFAULT)?;
        let moves_only = target.is_some() && pages == span.pages;
        // Such VMAs are moved one by one: the driver chooses addresses itself.
        if moves_only && vma.end < span.end() {
            return Err(libc::EFAULT);
        }
        if target.is_some() || dont_unmap || pages > span.pages {
            if dont_unmap {
                return Err(libc::EINVAL);
            }
            if span.pages.min(pages) > vma.end - span.at || pages > span.pages {
                return Err(libc::EFAULT);
            }
        }
        if let Some(target) = target {
            self.unmap(target);
        }
        if pages < span.pages {
            self.unmap(Span {
                at: span.at + pages,
                pages: span.pages - pages,
            });
        }
        if let Some(target) = target {
            let source = Span { at: span.at, pages };
            self.unmap(source);
            self.insert(Vma {
                start: target.at,
                end: target.end(),
                offset: vma.offset_of(span.at),
                ..vma
            });
        }
        Ok(())
    }
}

/// An mremap call.
#[derive(Debug, Clone, Copy)]
pub struct Remap {
    /// The old place.
    pub span: Span,
    /// The new length.
    pub pages: u64,
    /// MREMAP_FIXED.
    pub to: Option<u64>,
    /// MREMAP_MAYMOVE.
    pub may_move: bool,
    /// MREMAP_DONTUNMAP.
    pub dont_unmap: bool,
}

/// Advice with a name in Linux 7.2.
fn is_advice(advice: i32) -> bool {
    matches!(advice, 0..=4 | 8..=25 | 100..=103)
}

fn effect(flags: Flags, advice: i32) -> Effect {
    match advice {
        libc::MADV_NORMAL => Effect::Sets(Flags {
            random: None,
            ..flags
        }),
        libc::MADV_RANDOM => Effect::Sets(Flags {
            random: Some(true),
            ..flags
        }),
        libc::MADV_SEQUENTIAL => Effect::Sets(Flags {
            random: Some(false),
            ..flags
        }),
        libc::MADV_DONTFORK => Effect::Sets(Flags {
            dont_fork: true,
            ..flags
        }),
        libc::MADV_HUGEPAGE => Effect::Sets(Flags {
            huge: Some(true),
            ..flags
        }),
        libc::MADV_NOHUGEPAGE => Effect::Sets(Flags {
            huge: Some(false),
            ..flags
        }),
        // The driver excludes its memory from core dumps anyhow, and nothing wipes it on fork.
        libc::MADV_WILLNEED
        | libc::MADV_MERGEABLE
        | libc::MADV_UNMERGEABLE
        | libc::MADV_DONTDUMP
        | libc::MADV_KEEPONFORK => Effect::Sets(flags),
        libc::MADV_REMOVE => {
            Effect::Refused(&[libc::EINVAL, libc::EACCES, libc::ENODEV, libc::EOPNOTSUPP])
        }
        _ => Effect::Refused(&[libc::EINVAL]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RW: Prot = Prot {
        read: true,
        write: true,
    };
    const NONE: Prot = Prot {
        read: false,
        write: false,
    };

    fn span(at: u64, pages: u64) -> Span {
        Span { at, pages }
    }

    fn space(spans: &[(u64, u64)]) -> Space {
        let mut space = Space::default();
        for (at, pages) in spans {
            space.insert(Vma {
                start: *at,
                end: at + pages,
                file: 0,
                may_write: true,
                offset: at * 10,
                prot: RW,
                flags: Flags::default(),
            });
        }
        space
    }

    fn places(space: &Space) -> Vec<(u64, u64, u64)> {
        let place = |vma: &Vma| (vma.start, vma.end, vma.offset);
        space.vmas().iter().map(place).collect()
    }

    #[test]
    fn unmapping_the_middle_keeps_the_offsets_of_both_ends() {
        let mut space = space(&[(10, 10), (20, 5)]);
        space.unmap(span(12, 10));
        assert_eq!(places(&space), [(10, 12, 100), (22, 25, 202)]);
        assert!(space.find(12).is_none() && space.find(22).is_some());
        assert!(!space.is_used(span(12, 10)) && space.is_used(span(12, 11)));
    }

    #[test]
    fn protection_stops_at_a_hole_and_advice_steps_over_it() {
        let mut space = space(&[(10, 4), (20, 4)]);
        assert_eq!(space.protect(span(12, 10), NONE), Err(libc::ENOMEM));
        assert_eq!(space.find(13).unwrap().prot, NONE);
        assert_eq!(space.find(21).unwrap().prot, RW);
        let no = libc::MADV_NOHUGEPAGE;
        assert_eq!(space.advise(span(8, 14), no), Err(&[libc::ENOMEM][..]));
        assert_eq!(space.find(21).unwrap().flags.huge, Some(false));
        assert_eq!(space.find(22).unwrap().flags.huge, None);
        assert_eq!(space.vmas().len(), 4);
        // The same again changes nothing, so nothing is split either.
        assert_eq!(space.advise(span(20, 1), no), Ok(()));
        assert_eq!(space.vmas().len(), 4);
        assert_eq!(
            space.advise(span(8, 14), libc::MADV_DONTNEED),
            Err(&[libc::EINVAL][..])
        );
    }

    #[test]
    fn a_read_only_file_is_never_made_writable() {
        let mut space = space(&[(10, 4), (14, 4)]);
        space.vmas[1].may_write = false;
        space.vmas[1].prot.write = false;
        assert_eq!(space.protect(span(10, 8), RW), Err(libc::EACCES));
        assert_eq!(space.sync(span(14, 4), true), Ok(()));
        assert_eq!(space.sync(span(10, 8), true), Err(libc::EINVAL));
        assert_eq!(space.sync(span(10, 8), false), Ok(()));
        assert_eq!(space.sync(span(10, 9), false), Err(libc::ENOMEM));
        assert_eq!(space.lock(span(10, 8)), Ok(()));
        assert_eq!(space.lock(span(9, 2)), Err(libc::ENOMEM));
    }

    fn call(from: (u64, u64), pages: u64, to: Option<u64>) -> Remap {
        Remap {
            span: span(from.0, from.1),
            pages,
            to,
            may_move: true,
            dont_unmap: false,
        }
    }

    #[test]
    fn a_moved_part_takes_its_offset_along() {
        let mut space = space(&[(10, 10), (40, 4)]);
        assert_eq!(space.remap(call((12, 3), 3, Some(41))), Ok(()));
        assert_eq!(
            places(&space),
            [(10, 12, 100), (15, 20, 105), (40, 41, 400), (41, 44, 102)]
        );
        // Shrunk while moved.
        assert_eq!(space.remap(call((15, 5), 2, Some(60))), Ok(()));
        assert_eq!(
            places(&space)[1..],
            [(40, 41, 400), (41, 44, 102), (60, 62, 105)]
        );
    }

    #[test]
    fn refused_moves_change_nothing() {
        let mut space = space(&[(10, 10), (20, 4)]);
        let before = places(&space);
        let refused = [
            (call((12, 3), 4, None), libc::EFAULT),
            (call((12, 3), 4, Some(60)), libc::EFAULT),
            (call((18, 4), 4, Some(60)), libc::EFAULT),
            (call((5, 3), 3, Some(60)), libc::EFAULT),
            (call((12, 3), 3, Some(14)), libc::EINVAL),
            (call((12, 3), 0, None), libc::EINVAL),
        ];
        for (call, errno) in refused {
            assert_eq!(space.remap(call), Err(errno), "{call:?}");
        }
        let dont_unmap = Remap {
            dont_unmap: true,
            ..call((12, 3), 3, Some(60))
        };
        assert_eq!(space.remap(dont_unmap), Err(libc::EINVAL));
        // In place and no larger: nothing to do, even across VMAs.
        assert_eq!(space.remap(call((18, 4), 4, None)), Ok(()));
        assert_eq!(places(&space), before);
        assert_eq!(space.remap(call((18, 8), 1, None)), Ok(()));
        assert_eq!(places(&space), [(10, 19, 100)]);
    }

    #[test]
    fn a_child_does_not_get_what_is_marked() {
        let mut space = space(&[(10, 10)]);
        assert_eq!(space.advise(span(12, 2), libc::MADV_DONTFORK), Ok(()));
        assert_eq!(
            space.advise(span(12, 2), libc::MADV_DOFORK),
            Err(&[libc::EINVAL][..])
        );
        assert_eq!(places(&space.forked()), [(10, 12, 100), (14, 20, 104)]);
    }
}
