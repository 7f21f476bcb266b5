// SPDX-License-Identifier: GPL-2.0

//! Single changes to devices. Each is done on the device of a given identity or not at all, and read back.
//!
//! Between looking at a device and writing to it another program may act; the kernel offers no lock against that. So
//! the writes are such that they do no harm to a device in use (the kernel refuses to resize or delete a bound one),
//! and what came out is compared with what was wanted.

use std::io;
use std::path::Path;

use crate::access::{self, Access};
use crate::bus::{members, ranges_text, total, Bus, Device, Identity, Range};
use crate::driver::Driver;
use crate::error::{Error, Result, VerbError};
use crate::host;
use crate::land::Land;
use crate::mode::Mode;
use crate::name::{DeviceName, PartName};
use crate::scrub::Policy;
use crate::store::{Record, State};
use crate::sysfs;

/// How often a device is taken back from device_dax before giving up.
const ATTEMPTS: u32 = 20;

/// What the kernel answers when a device to be unbound is not bound.
const ENODEV: i32 = 19;

/// Adds a device without memory to the region, in which `newest` was the newest one before.
pub fn add(region: &Path, newest: u64) -> Result<Device> {
    let what = || format!("cannot add a device to the region {}", region.display());
    sysfs::write(&region.join("dax_region/create"), "1").map_err(Error::kernel(what()))?;
    let is_new = |device: &Device| device.is_vacant() && device.inode > newest;
    match youngest(region).filter(is_new) {
        Some(device) => Ok(device),
        None => newcomer(region, newest)?
            .ok_or_else(|| Error::kernel(what())(io::Error::other("there is no new device"))),
    }
}

/// The device that the kernel has made last in the region, unless that is gone already.
fn youngest(region: &Path) -> Option<Device> {
    let name = sysfs::text(&region.join("dax_region/create"))?;
    Device::read(name.parse().ok()?, region)
}

/// Inode number of the newest device in the region: those of sysfs directories grow, so later devices have larger ones.
pub fn newest(region: &Path) -> Result<u64> {
    if let Some(device) = youngest(region) {
        return Ok(device.inode);
    }
    let members = members(region).map_err(Error::kernel(CANNOT_READ))?;
    let inodes = members.into_iter().map(|(_, inode)| inode);
    Ok(inodes.max().unwrap_or(0))
}

/// The device without memory that came after the one that was the newest. Should another program have added one as well,
/// the youngest is not necessarily ours, but they are alike until one of us gives its device memory.
pub fn newcomer(region: &Path, newest: u64) -> Result<Option<Device>> {
    let members = members(region).map_err(Error::kernel(CANNOT_READ))?;
    let new = members.into_iter().filter(|(_, inode)| *inode > newest);
    let new = new.filter_map(|(name, _)| Device::read(name, region));
    Ok(new
        .filter(Device::is_vacant)
        .max_by_key(|device| device.inode))
}

/// Sets the alignment, in bytes.
pub fn set_align(identity: &Identity, align: u64) -> Result<()> {
    let device = same(identity)?;
    if device.align == align {
        return Ok(());
    }
    let what = format!("cannot set the alignment of {} to {align}", identity.device);
    write(identity, "align", &align.to_string(), &what)?;
    match same(identity)?.align {
        found if found == align => Ok(()),
        found => Err(disturbed(
            identity,
            format!("its alignment is {found} instead of {align}"),
        )),
    }
}

/// Adds a range behind those it has.
///
/// The kernel reports success for a range that is no multiple of the alignment, and does nothing (drivers/dax/bus.c,
/// `mapping_store`). A kernel with mm/patches refuses ranges to a device that is bound, which it is when device_dax came in
/// between, see [`cut`].
pub fn add_range(identity: &Identity, before: &[Range], range: Range) -> Result<()> {
    let what = format!("cannot give {range} to {}", identity.device);
    let text = format!("{:x}-{:x}", range.start, range.last());
    for _ in 0..ATTEMPTS {
        match sysfs::write(&same(identity)?.path.join("mapping"), &text) {
            Ok(()) => {
                let wanted: Vec<Range> = before.iter().copied().chain([range]).collect();
                return expect_ranges(identity, &wanted);
            }
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                let now = same(identity)?;
                // Unless it has lost the device by itself meanwhile.
                if let Some(driver) = &now.driver {
                    take_away(&now, driver)?;
                }
            }
            Err(error) => return Err(Error::kernel(&what)(error)),
        }
    }
    Err(taken_again(identity))
}

/// Whether the device has these ranges and no others.
pub fn expect_ranges(identity: &Identity, wanted: &[Range]) -> Result<()> {
    match same(identity)?.ranges {
        Some(found) if found == wanted => Ok(()),
        found => {
            let found = ranges_text(&found.unwrap_or_default());
            Err(disturbed(
                identity,
                format!("its ranges are {found} instead of {}", ranges_text(wanted)),
            ))
        }
    }
}

/// Takes it away from its driver, and gives all its ranges back to the region.
pub fn release(identity: &Identity) -> Result<()> {
    cut(identity, 0)
}

/// Gives it these ranges: what it has from the first byte on that differs goes back to the region.
pub fn reshape(identity: &Identity, wanted: &[Range]) -> Result<()> {
    let has = same(identity)?.ranges.unwrap_or_default();
    let kept = kept(&has, wanted);
    cut(identity, total(wanted.iter().take(kept)))?;
    for (index, range) in wanted.iter().enumerate().skip(kept) {
        add_range(identity, wanted.get(..index).unwrap_or_default(), *range)?;
    }
    expect_ranges(identity, wanted)
}

/// Number of the wanted ranges that are left when the end is cut from those that it has.
fn kept(has: &[Range], wanted: &[Range]) -> usize {
    let pairs = has.iter().zip(wanted);
    let equal = pairs.take_while(|(has, wanted)| has == wanted).count();
    let cut = |(has, wanted): (&Range, &Range)| has.start == wanted.start && has.len > wanted.len;
    let next = has.get(equal).zip(wanted.get(equal));
    equal + usize::from(next.is_some_and(cut))
}

/// Takes it away from its driver, and leaves it so many bytes: the ranges at its end go back to the region.
///
/// device_dax takes every device that is unbound and has memory whenever any device is handed to it
/// (drivers/dax/bus.c, `do_id_store`), so it may come in between; then it is taken away from there and tried again.
fn cut(identity: &Identity, size: u64) -> Result<()> {
    let what = format!(
        "cannot give the memory of {} back to its region",
        identity.device
    );
    for _ in 0..ATTEMPTS {
        let device = same(identity)?;
        if device.is_vacant() {
            return Ok(());
        }
        if let Some(driver) = &device.driver {
            take_away(&device, driver)?;
        }
        if device.size <= size {
            return Ok(());
        }
        // At once, so that little time passes between unbinding and resizing.
        let resized = sysfs::write(&device.path.join("size"), &size.to_string());
        let now = same(identity)?;
        match (resized, &now.driver) {
            (Ok(()), _) if now.size == size => return Ok(()),
            (Err(error), None) => return Err(Error::kernel(&what)(error)),
            (Ok(()), None) => {
                return Err(disturbed(
                    identity,
                    format!("it has {} bytes instead of {size}", now.size),
                ))
            }
            (_, Some(_)) => {}
        }
    }
    Err(taken_again(identity))
}

/// Deletes it, once it has no memory and no driver.
pub fn delete(identity: &Identity) -> Result<()> {
    let what = format!("cannot delete {}", identity.device);
    same(identity)?;
    let attribute = identity.region.join("dax_region/delete");
    sysfs::write(&attribute, &identity.device.to_string()).map_err(Error::kernel(&what))?;
    match Device::again(identity) {
        None => Ok(()),
        Some(_) => Err(disturbed(identity, "it is still there".to_owned())),
    }
}

/// Gives its node an owner, a group and a mode. Returns whether there was something to do.
pub fn set_access(identity: &Identity, access: Access) -> Result<bool> {
    let device = same(identity)?;
    let number = access::number(&device.path);
    let number = number.ok_or_else(|| disturbed(identity, "it has no number".to_owned()))?;
    access.set(&device.node_path(), &number)
}

/// Makes its node root's alone, if there is one.
pub fn reset_access(identity: &Identity) -> Result<()> {
    match same(identity)?.access {
        Some(_) => set_access(identity, Access::ROOT).map(drop),
        None => Ok(()),
    }
}

/// Changes what the driver does when it is taken back, if it is bound.
pub fn set_policy(identity: &Identity, policy: Policy) -> Result<()> {
    let device = same(identity)?;
    match device.scrub {
        Some(scrub) if scrub.policy != policy => {}
        _ => return Ok(()),
    }
    let what = format!("cannot change the scrub policy of {}", identity.device);
    Driver::change_policy(&device.path, policy).map_err(Error::kernel(what))
}

/// Binds it to dax_dmem, to be scrubbed as told, and leaves no name behind in the driver's lists when that succeeds.
///
/// Should device_dax come first (see [`release`]), the device is taken away from there and tried again.
pub fn bind(identity: &Identity, policy: Policy) -> Result<()> {
    let name = identity.device;
    let mut now = same(identity)?;
    for _ in 0..ATTEMPTS {
        if let Some(driver) = &now.driver {
            take_away(&now, driver)?;
        }
        Driver::set_policy(name, policy).map_err(Error::kernel(format!(
            "cannot tell dax_dmem how to scrub {name}"
        )))?;
        let added = Driver::add_id(name);
        let looked = same(identity);
        let removed = Driver::remove_id(name);
        added.map_err(Error::kernel(format!("cannot hand {name} to dax_dmem")))?;
        now = looked?;
        removed.map_err(Error::kernel(format!(
            "cannot take {name} out of the list of dax_dmem"
        )))?;
        match now.driver.as_deref() {
            Some(Driver::NAME) => {
                return match now.scrub {
                    Some(scrub) if scrub.policy == policy => Ok(()),
                    found => {
                        take_away(&now, Driver::NAME)?;
                        let found =
                            found.map_or("none".to_owned(), |scrub| scrub.policy.to_string());
                        let what = format!("its scrub policy is {found} instead of {policy}");
                        Err(disturbed(identity, what))
                    }
                }
            }
            Some("device_dax") => {}
            Some(driver) => {
                return Err(Error::Refused {
                    device: name,
                    instead: format!(": {driver} has it"),
                })
            }
            None => {
                return Err(Error::Refused {
                    device: name,
                    instead: String::new(),
                })
            }
        }
    }
    Err(taken_again(identity))
}

/// Has it used as `mode` says, unless it is; one that is to be without driver stays so.
pub fn attach(identity: &Identity, mode: &Mode, policy: Policy) -> Result<()> {
    let driver = match mode {
        Mode::PageLess => return bind(identity, policy),
        Mode::Devdax => "device_dax",
        Mode::SystemRam => "kmem",
        Mode::Unbound | Mode::Other(_) => return unbind(identity),
    };
    if !Driver::is_there(driver) {
        let loaded = host::load(driver);
        loaded.map_err(|said| VerbError::Module { driver, said })?;
    }
    hand(identity, driver)
}

/// Binds it to device_dax or kmem, which has to be loaded.
///
/// By `bind`, where the kernel takes the device for one of the driver's, since `new_id` has the driver look at all other
/// devices as well and take those that suit it. A region's type is such that one of the two drivers suits it.
fn hand(identity: &Identity, driver: &str) -> Result<()> {
    let name = identity.device;
    let what = format!("{driver} does not take {name} (the kernel log says why: `dmesg | tail`)");
    let mut refusal = None;
    for _ in 0..ATTEMPTS {
        let now = same(identity)?;
        match now.driver.as_deref() {
            Some(found) if found == driver => return Ok(()),
            Some(found) => take_away(&now, found)?,
            None => {}
        }
        let bound = match Driver::bind(name, driver) {
            Err(error) if error.raw_os_error() == Some(ENODEV) => {
                let added = Driver::add_id_of(name, driver);
                Driver::remove_id_of(name, driver).and(added)
            }
            bound => bound,
        };
        match same(identity)?.driver.as_deref() {
            Some(found) if found == driver => return Ok(()),
            Some(_) => {}
            None => {
                let unsaid = || io::Error::other("it is not bound");
                refusal = Some(bound.err().unwrap_or_else(unsaid));
                break;
            }
        }
    }
    match refusal {
        Some(error) => Err(Error::kernel(what)(error)),
        None => Err(taken_again(identity)),
    }
}

/// Takes it away from kmem, which gives its memory back where all of it is offline.
pub fn take_from_kmem(identity: &Identity) -> Result<()> {
    let name = identity.device;
    let what = format!("cannot take {name} away from kmem");
    match same(identity)?.driver.as_deref() {
        Some("kmem") => Driver::unbind(name, "kmem").map_err(Error::kernel(what)),
        _ => Ok(()),
    }
}

/// Takes it away from its driver, if it has one.
pub fn unbind(identity: &Identity) -> Result<()> {
    let device = same(identity)?;
    let Some(driver) = &device.driver else {
        return Ok(());
    };
    take_away(&device, driver)?;
    match same(identity)?.driver {
        None => Ok(()),
        Some(driver) => Err(disturbed(
            identity,
            format!("the driver {driver} has it again"),
        )),
    }
}

/// Unbinds without looking at what comes of it. Only from the drivers that give a device away at once.
fn take_away(device: &Device, driver: &str) -> Result<()> {
    if driver != Driver::NAME && driver != "device_dax" {
        return Err(Error::ForeignDriver {
            device: device.name,
            driver: driver.to_owned(),
        });
    }
    // First, so that no moment exists in which the driver would take it back.
    forget_id(&device.identity())?;
    let what = format!("cannot take {} away from {driver}", device.name);
    match Driver::unbind(device.name, driver) {
        // Somebody else was faster.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ENODEV) =>
        {
            Ok(())
        }
        result => result.map_err(Error::kernel(what)),
    }
}

/// Takes the device's name out of the driver's list, if it is there.
pub fn forget_id(identity: &Identity) -> Result<()> {
    if !Driver::is_loaded() {
        return Ok(());
    }
    let what = format!(
        "cannot take {} out of the list of dax_dmem",
        identity.device
    );
    Driver::remove_id(identity.device).map_err(Error::kernel(what))
}

/// As [`forget_id`], for every driver that [`attach`] knows.
pub fn forget_ids(identity: &Identity) -> Result<()> {
    forget_id(identity)?;
    for driver in ["device_dax", "kmem"] {
        if Driver::is_there(driver) {
            let what = format!(
                "cannot take {} out of the list of {driver}",
                identity.device
            );
            Driver::remove_id_of(identity.device, driver).map_err(Error::kernel(what))?;
        }
    }
    Ok(())
}

/// Takes back what the driver was told for the next bind of the device.
pub fn settle_policy(identity: &Identity) -> Result<()> {
    let what = format!(
        "cannot take back how {} was to be scrubbed",
        identity.device
    );
    Driver::settle_policy(identity.device).map_err(Error::kernel(what))
}

const CANNOT_READ: &str = "cannot read the dax bus";

/// Reads the bus.
pub fn read() -> Result<Bus> {
    Bus::read().map_err(Error::kernel(CANNOT_READ))
}

/// Reads these devices of the bus.
pub fn read_these(devices: &[DeviceName]) -> Result<Bus> {
    Bus::of(devices).map_err(Error::kernel(CANNOT_READ))
}

/// Reads the devices of a guest.
pub fn read_parts(parts: &[(PartName, Record)]) -> Result<Bus> {
    let devices = parts.iter().map(|(_, guest)| guest.device.device);
    read_these(&devices.collect::<Vec<_>>())
}

/// Reads what places are chosen by.
pub fn survey(state: &State) -> Result<Land> {
    Land::read(state).map_err(Error::kernel(CANNOT_READ))
}

fn same(identity: &Identity) -> Result<Device> {
    Device::again(identity).ok_or_else(|| disturbed(identity, "it is gone".to_owned()))
}

fn disturbed(identity: &Identity, what: String) -> Error {
    Error::Disturbed {
        device: identity.device,
        what,
    }
}

/// What is said when attempts do not help.
fn taken_again(identity: &Identity) -> Error {
    disturbed(identity, "device_dax takes it again and again".to_owned())
}

/// Writes an attribute of the device.
fn write(identity: &Identity, attribute: &str, text: &str, what: &str) -> Result<()> {
    let device = same(identity)?;
    sysfs::write(&device.path.join(attribute), text).map_err(Error::kernel(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_when_the_end_is_cut() {
        let ranges = |ranges: &[(u64, u64)]| -> Vec<Range> {
            let range = |(start, len): &(u64, u64)| Range {
                start: *start,
                len: *len,
            };
            ranges.iter().map(range).collect()
        };
        let kept =
            |has: &[(u64, u64)], wanted: &[(u64, u64)]| super::kept(&ranges(has), &ranges(wanted));
        assert_eq!(kept(&[(0, 4)], &[(0, 4), (8, 4)]), 1);
        assert_eq!(kept(&[(0, 4), (8, 4)], &[(0, 4)]), 1);
        assert_eq!(kept(&[(0, 4), (8, 4)], &[(0, 4), (8, 2), (16, 2)]), 2);
        // A range that grows has to go first.
        assert_eq!(kept(&[(0, 4), (8, 4)], &[(0, 4), (8, 6)]), 1);
        assert_eq!(kept(&[(0, 4)], &[(4, 4)]), 0);
        assert_eq!(kept(&[], &[(4, 4)]), 0);
    }
}
