// SPDX-License-Identifier: GPL-2.0

//! `daxdmem poison`: shows and edits which pages are kept out of use because they failed.

use std::path::Path;

use super::{begin_giving, bus, is_root, look, need_driver, one, resolve, Named};
use crate::bus::{Bus, Device, Range, Region};
use crate::cli::poison::{PoisonAddArgs, PoisonArgs, PoisonClearArgs, PoisonListArgs, PoisonVerb};
use crate::cli::poison::{Spot, Stretch};
use crate::driver::{Driver, Unowned};
use crate::error::{Error, Result};
use crate::land::Land;
use crate::link::Links;
use crate::making::survey;
use crate::name::DeviceName;
use crate::poison::error::PoisonError;
use crate::poison::record::{boot_id, Record};
use crate::poison::{self, Pages, PAGE};
use crate::repair::guest_of;
use crate::report::poison::Listing;
use crate::report::Report;
use crate::size::Size;
use crate::store::Store;
use crate::terminal::{answer, done, note};
use crate::users::Users;

/// What the driver answers when memory does not hold what is written to it.
const EIO: i32 = 5;

/// Runs it.
pub fn run(args: &PoisonArgs, links: &Links) -> Result<()> {
    match &args.verb {
        PoisonVerb::List(args) => list(args, links),
        PoisonVerb::Add(args) => add(args, links),
        PoisonVerb::Clear(args) => clear(args, links),
        PoisonVerb::Sync => sync(),
    }
}

fn list(args: &PoisonListArgs, links: &Links) -> Result<()> {
    if !is_root() {
        return Err(PoisonError::NotRoot.into());
    }
    let (state, now) = look(links)?;
    let state = state.unwrap_or_default();
    let devices = match &args.target {
        None => None,
        Some(target) => Some(resolve(target, &state, &now)?),
    };
    let names: Option<Vec<DeviceName>> =
        devices.map(|found| found.iter().map(|(device, _)| device.name).collect());
    if let Some(region) = args.region.filter(|id| now.region(*id).is_none()) {
        let known = region_texts(&now);
        return Err(Error::UnknownRegion { region, known });
    }
    // What stands in the way of reading it has been told.
    let recorded = Record::read(Path::new(Record::FILE)).unwrap_or_default();
    let driver = Driver::poison().map(Pages::of);
    let report = Report::new(now, &state, Unowned::read());
    let listing = Listing::new(
        &report,
        &recorded,
        driver.as_ref(),
        &boot_id(Path::new("/")),
    );
    let listing = match (names, args.region) {
        (Some(names), _) => listing.of_devices(&names),
        (None, Some(region)) => listing.of_region(region),
        (None, None) => listing,
    };
    match args.json {
        false => answer(&listing.text()),
        true => {
            let text = listing
                .json()
                .map_err(|error| Error::kernel("cannot write JSON")(error.into()))?;
            answer(&format!("{text}\n"))
        }
    }
}

fn region_texts(bus: &Bus) -> String {
    let texts: Vec<String> = bus
        .regions
        .iter()
        .map(|region| region.id.to_string())
        .collect();
    texts.join(", ")
}

/// Records what the driver knows and tells it what is recorded: udev has this done whenever the driver comes or learns
/// of an error.
fn sync() -> Result<()> {
    if !is_root() {
        return Err(Error::NotRoot {
            verb: "poison sync",
        });
    }
    let recorded = Record::read(Path::new(Record::FILE))?.pages();
    // Events come in storms, most of them about what is known.
    if Driver::poison().is_none_or(|driver| Pages::of(driver) == recorded) {
        return Ok(());
    }
    // Without ending interrupted operations: nobody asked for that.
    let store = Store::lock(Path::new(Store::DIR), || ())?;
    for line in poison::sync(store.state())? {
        note(&line);
    }
    Ok(())
}

/// Memory as it is now, to find pages in.
struct Scene<'b> {
    bus: &'b Bus,
    /// The regions that tell where they are.
    regions: Vec<(&'b Region, Range)>,
}

impl<'b> Scene<'b> {
    fn new(store: &mut Store, links: &Links, bus: &'b Bus) -> Result<Scene<'b>> {
        let dynamic: Vec<&Region> = bus.regions.iter().filter(|region| region.dynamic).collect();
        let extents = survey(store, links, &dynamic, &Land::of(bus, store.state()))?;
        let whole = |region: &'b Region| {
            let fixed = region.start.map(|start| Range {
                start,
                len: region.size,
            });
            Some((region, extents.get(&region.id).copied().or(fixed)?))
        };
        let regions = bus.regions.iter().filter_map(whole).collect();
        Ok(Scene { bus, regions })
    }

    fn region_of(&self, page: u64) -> Option<&'b Region> {
        let mut regions = self.regions.iter();
        let found = regions.find(|(_, whole)| whole.start <= page && page <= whole.last());
        found.map(|(region, _)| *region)
    }

    /// The device that has the page, and where in it.
    fn device_of(&self, page: u64) -> Option<(&'b Device, u64)> {
        let within = |device: &'b Device| {
            let mut offset = 0;
            for range in device.ranges.iter().flatten() {
                if range.start <= page && page <= range.last() {
                    return Some((device, offset + (page - range.start)));
                }
                offset += range.len;
            }
            None
        };
        self.bus.devices.iter().find_map(within)
    }

    /// The address of a page that is named.
    fn find(&self, spot: &Spot, store: &Store) -> Result<u64> {
        let at = match spot {
            Spot::At(at) => *at,
            Spot::In(target, offset) => {
                let (device, _) = one(target, resolve(target, store.state(), self.bus)?)?;
                let mut left = *offset;
                let place = device.ranges.iter().flatten().find_map(|range| {
                    let at = (left < range.len).then(|| range.start + left);
                    left = left.saturating_sub(range.len);
                    at
                });
                place.ok_or_else(|| PoisonError::Beyond {
                    target: target.clone(),
                    size: Size(device.size),
                    offset: *offset,
                })?
            }
        };
        match at % PAGE {
            0 => Ok(at),
            _ => Err(PoisonError::Unaligned { at }.into()),
        }
    }

    fn no_region(&self, page: u64) -> Error {
        let text = |(region, whole): &(&Region, Range)| format!("region {}: {whole}", region.id);
        let texts: Vec<String> = self.regions.iter().map(text).collect();
        let known = match texts.is_empty() {
            true => "There is no region that tells where it is".to_owned(),
            false => format!("There are: {}", texts.join(", ")),
        };
        PoisonError::NoRegion { page, known }.into()
    }

    /// What a page is called when something is said of it.
    fn name(&self, page: u64, store: &Store) -> String {
        match self.device_of(page) {
            Some((device, offset)) => {
                let name = guest_of(device, store.state(), self.bus);
                format!("of {} at offset {offset:#x}", Named(&name, device))
            }
            None => match self.region_of(page) {
                Some(region) => format!("free memory of region {}", region.id),
                None => "of no region".to_owned(),
            },
        }
    }
}

fn add(args: &PoisonAddArgs, links: &Links) -> Result<()> {
    let mut store = begin_giving("poison add", links)?;
    let now = bus()?;
    let scene = Scene::new(&mut store, links, &now)?;
    let known = poison::known()?;
    let mut pages = Vec::new();
    for spot in &args.pages {
        let page = scene.find(spot, &store)?;
        if scene.region_of(page).is_none() {
            return Err(scene.no_region(page));
        }
        if known.contains(page) {
            return Err(PoisonError::Known { page }.into());
        }
        if let Some((device, _)) = scene.device_of(page) {
            if device.driver.as_deref() == Some("kmem") {
                return Err(PoisonError::HostMemory { page }.into());
            }
            if let Some(users) = Users::of(device).filter(|_| !args.force) {
                let name = guest_of(device, store.state(), &now);
                let target = Named(&name, device).to_string();
                return Err(Error::InUse { target, users });
            }
        }
        pages.push(page);
    }
    need_driver(&store)?;
    let mut added = Vec::new();
    let result = pages.iter().try_for_each(|page| {
        poison::add(*page)?;
        added.push(*page);
        Ok(())
    });
    // Whatever came in between is recorded as well.
    let saved = poison::save();
    let added: Pages = added.into_iter().collect();
    for page in added.iter() {
        done(&format!(
            "{page:#x}: out of use; {}",
            scene.name(page, &store)
        ));
    }
    match (result, added.is_empty()) {
        (Ok(()), _) => saved,
        (Err(error), true) => Err(error),
        (Err(error), false) => Err(partly(error, added)),
    }
}

fn partly(error: Error, done: Pages) -> Error {
    PoisonError::Partly {
        error: Box::new(error),
        done,
    }
    .into()
}

fn clear(args: &PoisonClearArgs, links: &Links) -> Result<()> {
    let mut store = begin_giving("poison clear", links)?;
    need_driver(&store)?;
    let now = bus()?;
    let scene = Scene::new(&mut store, links, &now)?;
    let known = poison::known()?;
    let mut pages = Vec::new();
    for stretch in &args.pages {
        match stretch {
            Stretch::Page(spot) => pages.push(scene.find(spot, &store)?),
            Stretch::Range(range) => pages.extend(of_range(*range, &known)?),
        }
    }
    let pages: Pages = pages.into_iter().collect();
    let driver = Driver::poison().map(Pages::of).unwrap_or_default();
    let quarantine = Driver::quarantine();
    for page in pages.iter() {
        if !known.contains(page) {
            return Err(PoisonError::Unknown { page }.into());
        }
        // The test writes to it, so it has to be memory that is ours.
        if scene.region_of(page).is_none() {
            return Err(PoisonError::Untestable { page }.into());
        }
        let in_use = |target: String, users: String| PoisonError::InUse {
            page,
            target,
            users,
        };
        if let Some((device, _)) = scene.device_of(page) {
            let name = guest_of(device, store.state(), &now);
            match device.driver.as_deref() {
                Some("kmem") => return Err(PoisonError::HostMemory { page }.into()),
                Some(driver) if driver != Driver::NAME => {
                    let driver = driver.to_owned();
                    let device = device.name;
                    return Err(Error::OtherDriver { device, driver });
                }
                _ => {}
            }
            if let Some(users) = Users::of(device) {
                let target = Named(&name, device).to_string();
                return Err(in_use(target, users.to_string()).into());
            }
        }
        let at = Range {
            start: page,
            len: PAGE,
        };
        if let Some(held) = quarantine.iter().find(|held| held.range.overlaps(at)) {
            return Err(in_use(format!("what was {}", held.device), held.users()).into());
        }
        if !driver.contains(page) {
            return Err(PoisonError::HostMemory { page }.into());
        }
    }
    test(&pages, &scene, &store)
}

/// Has the driver test them; those that stand the test are forgotten.
fn test(pages: &Pages, scene: &Scene<'_>, store: &Store) -> Result<()> {
    let mut cleared = Vec::new();
    let mut failed = Vec::new();
    let mut broken = None;
    for page in pages.iter() {
        match Driver::clear_poison(page) {
            Ok(()) => cleared.push(page),
            Err(error) if error.raw_os_error() == Some(EIO) => failed.push(page),
            Err(error) => {
                let what = format!("dax_dmem cannot test {page:#x}");
                broken = Some(Error::kernel(what)(error));
                break;
            }
        }
    }
    let cleared: Pages = cleared.into_iter().collect();
    if !cleared.is_empty() {
        poison::forget(&cleared)?;
    }
    for page in cleared.iter() {
        let name = scene.name(page, store);
        done(&format!("{page:#x}: stood the test, in use again; {name}"));
    }
    match (broken, failed.first()) {
        (Some(error), _) if cleared.is_empty() => Err(error),
        (Some(error), _) => Err(partly(error, cleared)),
        (None, Some(first)) => Err(PoisonError::Fails {
            failed: failed.len(),
            all: pages.clone(),
            first: *first,
            some_cleared: !cleared.is_empty(),
        }
        .into()),
        (None, None) => Ok(()),
    }
}

/// The pages of a range, all of which have to be known.
fn of_range(range: Range, known: &Pages) -> Result<Vec<u64>> {
    if range.start % PAGE != 0 {
        return Err(PoisonError::Unaligned { at: range.start }.into());
    }
    let inside = known.within(&[range]);
    let mut next = range.start;
    for page in inside.iter() {
        if page != next {
            break;
        }
        next += PAGE;
    }
    match next > range.last() {
        true => Ok(inside.iter().collect()),
        false => Err(PoisonError::Unknown { page: next }.into()),
    }
}
