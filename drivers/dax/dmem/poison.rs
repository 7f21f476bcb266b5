// SPDX-License-Identifier: GPL-2.0

//! Poison: pages of 4 KiB that reported an uncorrectable error.
//!
//! Errors come from the machine check decoder (`ffi/machine_check.rs`), be the page mapped or not;
//! from the kernel's look for the processes to be signalled (`ffi/memory_failure.rs`); and from
//! sysfs, by which the operator's tool feeds back what an earlier boot has seen.
//!
//! A page of which is known that it is poisoned is mapped by no fault, read by no ptrace, touched
//! by no scrub, whoever the memory belongs to. It stays so until an operator has it tested and it
//! stands the test.
//!
//! What arrives is *news* first: the kernel's look happens where nobody may sleep. [`settle`] turns
//! news into entries of the ledger and takes the pages out of every mapping.
//!
//! Between a fault that looks here and installs a leaf, and an error in between: the one raises the
//! generation before it removes leaves, the other looks at the generation again behind the leaf it
//! has installed. With a full barrier on both sides one of them sees what the other did.
//!
//! Lock order: `SETTLING` > registry's `BOOK`; `SETTLING` > `LEDGER` > `NEWS` (a spinlock, taken
//! under RCU by the kernel's look). `LEDGER` and `NEWS` are innermost.

use kernel::fmt;
use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Full};
use kernel::sync::Arc;
use kernel::workqueue::{impl_has_work, new_work, Work, WorkItem};

use crate::device::Device;
use crate::ffi::globals::{LEDGER, NEWS, SETTLING};
use crate::ffi::kernel_map::KernelMap;
use crate::ffi::poison_file::announce;
use crate::ffi::smp_mb;
use crate::ffi::trace;
use crate::ffi::workqueue::WorkQueue;
use crate::plan::{Extent, ExtentSet, Leaf, PhysAddr, Placement, VirtAddr, PAGE_SIZE};
use crate::registry;
use crate::store::Extents;

/// Counts errors that were reported: who has seen one number knows of every error up to it.
static GENERATION: Atomic<u64> = Atomic::new(0);

/// Errors that may arrive before anybody has settled the first of them.
const MOST_NEWS: usize = 256;

/// The pages that are known.
pub(crate) struct Ledger {
    pages: ExtentSet<Extents>,
}

impl Ledger {
    pub(crate) const fn new() -> Self {
        Self {
            pages: ExtentSet::new(Extents::new()),
        }
    }

    /// The parts of this memory that are poisoned, ascending.
    pub(crate) fn within(&self, extent: &Extent) -> impl Iterator<Item = Extent> + '_ {
        self.pages.within(extent)
    }
}

/// Pages that were reported and are not in the ledger yet.
pub(crate) struct News {
    pages: [PhysAddr; MOST_NEWS],
    len: usize,
    /// There while the module is loaded.
    settler: Option<(WorkQueue, Arc<Settler>)>,
}

impl News {
    pub(crate) const fn new() -> Self {
        Self {
            pages: [PhysAddr::from_raw(0); MOST_NEWS],
            len: 0,
            settler: None,
        }
    }

    fn pages(&self) -> &[PhysAddr] {
        self.pages.get(..self.len).unwrap_or_default()
    }

    /// Whether there was room for it.
    fn add(&mut self, page: PhysAddr) -> bool {
        if self.pages().contains(&page) {
            return true;
        }
        let Some(slot) = self.pages.get_mut(self.len) else {
            return false;
        };
        *slot = page;
        self.len += 1;
        true
    }

    fn first(&self) -> Option<PhysAddr> {
        self.pages().first().copied()
    }

    fn remove(&mut self, page: PhysAddr) {
        if let Some(index) = self.pages().iter().position(|known| *known == page) {
            self.len -= 1;
            self.pages.swap(index, self.len);
        }
    }
}

/// Settles news in the background.
#[pin_data]
pub(crate) struct Settler {
    #[pin]
    work: Work<Settler>,
}

impl_has_work! {
    impl HasWork<Self> for Settler { self.work }
}

impl WorkItem for Settler {
    type Pointer = Arc<Self>;

    fn run(_: Arc<Self>) {
        settle();
    }
}

/// Begins to take reports, at the begin of the module.
pub(crate) fn begin() -> Result {
    let queue = WorkQueue::new(c"dax_dmem_poison")?;
    let settler = Arc::pin_init(
        pin_init!(Settler { work <- new_work!("Settler::work") }),
        GFP_KERNEL,
    )?;
    NEWS.lock().settler = Some((queue, settler));
    Ok(())
}

/// Ends it, at the end of the module, and forgets what is known.
pub(crate) fn finish() {
    let settler = NEWS.lock().settler.take();
    // Waits for the work that is queued.
    drop(settler);
    let ledger = core::mem::replace(&mut *LEDGER.lock(), Ledger::new());
    drop(ledger);
}

/// The page around an address.
fn page_at(at: PhysAddr) -> Extent {
    Extent {
        start: at.align_down(Leaf::Pte),
        len: PAGE_SIZE,
    }
}

/// Notes an error at this address. No fault maps the page from here on; [`settle`], which follows
/// in the background, removes it where it is mapped. May be called under spinlocks.
pub(crate) fn note(at: PhysAddr) {
    let page = page_at(at);
    let mut news = NEWS.lock();
    if !news.add(page.start) {
        drop(news);
        pr_err!(
            "{:#x}: uncorrectable error not noted: too many at once\n",
            page.start.raw()
        );
        return;
    }
    // With the lock held: whoever finds the old generation finds it before the page is news.
    GENERATION.fetch_add(1, Full);
    if let Some((queue, settler)) = &news.settler {
        // Where it is queued already it will find this page.
        let _ = queue.enqueue(settler.clone());
    }
}

/// Notes an error and takes the page out of use before it returns.
pub(crate) fn report(at: PhysAddr) {
    note(at);
    settle();
}

/// Takes every page that was noted before this call out of every mapping.
pub(crate) fn settle() {
    let _settling = SETTLING.lock();
    loop {
        // Not the condition of a loop, in which the lock would be held.
        let Some(page) = NEWS.lock().first() else {
            return;
        };
        let known = match enter(page) {
            Ok(known) => known,
            Err(_) => {
                pr_err!(
                    "{:#x}: no memory to keep an uncorrectable error in mind; \
                     it is refused until the next report\n",
                    page.raw()
                );
                return;
            }
        };
        unmap(page);
        if !known {
            trace::poison(page, false);
            announce(page);
        }
    }
}

/// Removes what is mapped in the place of this page, in any process.
pub(crate) fn unmap(page: PhysAddr) {
    let mut nth = 0;
    while let Some(device) = registry::device_at(page, nth) {
        if let Some(pgoff) = device.map().pgoff_of(page) {
            device.drop_leaves(pgoff, 1);
        }
        nth += 1;
    }
}

/// Moves a page from the news to the ledger; whether it was there already.
fn enter(page: PhysAddr) -> Result<bool> {
    let mut ledger = LEDGER.lock();
    let extent = page_at(page);
    let known = !ledger.pages.is_disjoint(&extent);
    if !ledger.pages.add(extent) {
        return Err(ENOMEM);
    }
    // In the ledger before it leaves the news: there is no moment in which it is in neither.
    NEWS.lock().remove(page);
    Ok(known)
}

/// What a device has found out about its own memory.
pub(crate) struct Health(Atomic<u64>);

impl Health {
    /// Nothing yet.
    pub(crate) const fn unknown() -> Self {
        Self(Atomic::new(u64::MAX))
    }
}

/// A look at what is known, to be repeated after acting on it.
#[derive(Clone, Copy)]
pub(crate) struct Look(u64);

impl Look {
    /// Looks now.
    pub(crate) fn now() -> Self {
        Self(GENERATION.load(Acquire))
    }

    /// Whether no error was reported since, not even while a leaf was written just now.
    pub(crate) fn still_holds(self) -> bool {
        smp_mb();
        self.0 == GENERATION.load(Acquire)
    }

    /// Whether the device has no poison at all, as far as this look goes.
    fn finds_sound(self, device: &Device) -> bool {
        let health = &device.health().0;
        if health.load(Acquire) == self.0 {
            return true;
        }
        let sound = extents_are_sound(device.map().ranges().iter().map(|range| range.extent()));
        if sound {
            health.store(self.0, kernel::sync::atomic::Release);
        }
        sound
    }
}

/// What may be mapped of a placement.
pub(crate) enum Screened {
    /// This.
    Sound(Placement),
    /// Something smaller around the address.
    Smaller,
    /// Nothing: the page that was touched is poisoned.
    Poisoned,
}

/// What of `at` may be mapped because of a touch of `addr`, by one leaf of that size or, for
/// [`Leaf::Pte`], by as many as there are.
pub(crate) fn screen(
    device: &Device,
    look: Look,
    at: Placement,
    addr: VirtAddr,
    leaf: Leaf,
) -> Screened {
    if look.finds_sound(device) {
        return Screened::Sound(at);
    }
    let whole = at.extent();
    let sound = at
        .phys_at(addr)
        .and_then(|touched| sound_around(&whole, touched));
    match (sound, leaf) {
        (Some(sound), _) if sound == whole => Screened::Sound(at),
        (Some(sound), Leaf::Pte) => at.only(&sound).map_or(Screened::Poisoned, Screened::Sound),
        (None, Leaf::Pte) => Screened::Poisoned,
        (_, Leaf::Pmd | Leaf::Pud) => Screened::Smaller,
    }
}

/// Whether none of this memory is poisoned.
pub(crate) fn is_sound(extent: &Extent) -> bool {
    extents_are_sound(core::iter::once(*extent))
}

fn extents_are_sound(extents: impl Iterator<Item = Extent>) -> bool {
    let ledger = LEDGER.lock();
    let news = NEWS.lock();
    for extent in extents {
        let hit = news.pages().iter().any(|page| extent.contains(*page));
        if hit || !ledger.pages.is_disjoint(&extent) {
            return false;
        }
    }
    true
}

/// The part of `within` around `at` that has no poison; `None` where `at` is poisoned.
fn sound_around(within: &Extent, at: PhysAddr) -> Option<Extent> {
    let ledger = LEDGER.lock();
    let news = NEWS.lock();
    let mut sound = ledger.pages.gap_at(within, at)?;
    for page in news.pages() {
        sound = sound.beside(&page_at(*page), at)?;
    }
    Some(sound)
}

/// The first part of `extent` that has no poison, for who works through it.
pub(crate) fn first_sound(extent: &Extent) -> Option<Extent> {
    LEDGER.lock().pages.missing(extent).next()
}

/// Takes a page back into use if it stands a test: it is rewritten and read several times. Its
/// contents are zeros then.
///
/// # Errors
///
/// ENOENT when the page is not known as poisoned, EIO when it does not stand the test, ENOMEM.
pub(crate) fn clear(at: PhysAddr) -> Result {
    // An error that the test brings about is settled after it.
    let _settling = SETTLING.lock();
    let page = page_at(at);
    if is_sound(&page) {
        return Err(ENOENT);
    }
    if !KernelMap::new(&page)?.stands_test() {
        return Err(EIO);
    }
    LEDGER.lock().pages.remove(&page);
    trace::poison(page.start, true);
    Ok(())
}

/// What is known, a line an extent: `0xSTART-0xEND`.
pub(crate) struct Known;

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ledger = LEDGER.lock();
        for extent in ledger.pages.extents() {
            f.write_fmt(fmt!("{}\n", registry::Shown(*extent)))?;
        }
        Ok(())
    }
}
