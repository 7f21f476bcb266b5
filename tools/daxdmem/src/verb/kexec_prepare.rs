// SPDX-License-Identifier: GPL-2.0

//! `daxdmem kexec-prepare`: has guests' memory outlive a kexec of the host.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::{begin, bus, resolve};
use crate::bus::{Bus, Device};
use crate::check;
use crate::cli::kexec::KexecArgs;
use crate::error::{Error, Result};
use crate::ffi::kexec_file;
use crate::kexec::error::KexecError;
use crate::kexec::record::{Kept, Now, Record};
use crate::kexec::{command_line, sample};
use crate::layout::placement::{Place, Placement};
use crate::layout::plan::{compare, Action};
use crate::layout::{self, FILE};
use crate::link::Links;
use crate::name::{GuestName, PartName, Target};
use crate::poison;
use crate::reserve::boot::kernels;
use crate::reserve::parameter::LONGEST;
use crate::scrub::Policy;
use crate::store::State;
use crate::terminal::{answer, done, note};
use crate::users::Users;

/// What is there if the layout is applied at boot.
const UNIT: &str = "/etc/systemd/system/multi-user.target.wants/daxdmem.service";

/// Runs it.
pub fn run(args: &KexecArgs, links: &Links) -> Result<()> {
    let store = begin("kexec-prepare", links)?;
    if args.cancel {
        Record::forget(Path::new(Record::FILE))?;
        kexec_file::unload().map_err(Error::kernel("cannot unload the next kernel"))?;
        done("no guest is kept over a kexec, and no kernel is loaded");
        return Ok(());
    }
    let now = bus()?;
    let running = command_line::running();
    let parts = parts(&args.guests, store.state(), &now, &running)?;
    let (kernel, initrd) = kernel(args)?;
    let token = token()?;
    let line = command_line::next(&running, args.append.as_deref(), &token);
    if line.len() > LONGEST {
        return Err(KexecError::TooLong {
            length: line.len(),
            longest: LONGEST,
        }
        .into());
    }
    let files = (open(&kernel)?, open(&initrd)?);
    if args.dry_run {
        return answer(&format!("{line}\n"));
    }

    let mut devices = BTreeMap::new();
    for (name, (device, place)) in parts {
        let memory = sample::of(&device.identity(), &place.ranges, &name, &token)?;
        devices.insert(name, Kept { place, memory });
    }
    let here = Now::read(Path::new(FILE));
    let record = Record {
        boot: here.boot,
        layout: here.layout,
        token,
        devices,
    };
    let path = Path::new(Record::FILE);
    record.write(path)?;
    if let Err(why) = kexec_file::load(&files.0, &files.1, &line) {
        Record::forget(path)?;
        return Err(KexecError::NotLoaded { path: kernel, why }.into());
    }
    if !Path::new(UNIT).exists() {
        note("daxdmem.service is not enabled: after the kexec, `daxdmem apply` has to be the first command");
    }
    for name in record.devices.keys() {
        done(&format!("{name}: its memory is kept over the next kexec"));
    }
    done(&format!(
        "{} is loaded: `systemctl kexec` goes on with it",
        kernel.display()
    ));
    Ok(())
}

/// The devices to keep, each with its place; an error where one could not be kept.
fn parts<'b>(
    guests: &[GuestName],
    state: &State,
    now: &'b Bus,
    running: &str,
) -> Result<BTreeMap<PartName, (&'b Device, Place)>> {
    let wanted = layout::file::read(Path::new(FILE))?;
    let placement = Placement::read(Path::new(Placement::FILE))?;
    let steps = compare(&wanted, state, now, false, |_| None);
    let poison = poison::known()?;
    let mut parts = BTreeMap::new();
    for guest in guests {
        let found = resolve(&Target::Guest(guest.clone().into()), state, now)?;
        let step = steps.iter().find(|step| step.name == *guest);
        let what = match step {
            Some(step) if step.action == Action::Keep => None,
            Some(step) => Some(step.reason.clone().unwrap_or(step.differences.join(", "))),
            None => Some("it is not in it".to_owned()),
        };
        if let Some(what) = what {
            let guest = guest.clone();
            return Err(KexecError::NotDeclared { guest, what }.into());
        }
        let places = step.into_iter().flat_map(|step| &step.parts);
        for ((device, name), (part, place)) in found.into_iter().zip(places) {
            let part = name.unwrap_or_else(|| part.name.clone());
            if let Some(users) = Users::of(device) {
                return Err(KexecError::InUse { part, users }.into());
            }
            if device
                .scrub
                .is_some_and(|scrub| scrub.policy == Policy::Never)
            {
                return Err(KexecError::NeverScrubbed { part }.into());
            }
            let recorded = placement.devices.get(&part);
            let Some(place) = place.clone().filter(|place| recorded == Some(place)) else {
                return Err(KexecError::NotPlaced { part }.into());
            };
            let pages = poison.within(&place.ranges);
            if !pages.is_empty() {
                return Err(KexecError::Poisoned { part, pages }.into());
            }
            let reserved = |range| command_line::reserves(running, range);
            if let Some(range) = place.ranges.iter().copied().find(|range| !reserved(*range)) {
                return Err(KexecError::NotReserved { part, range }.into());
            }
            parts.insert(part, (device, place));
        }
    }
    Ok(parts)
}

/// The kernel that was asked for, or the newest, and its initramfs.
fn kernel(args: &KexecArgs) -> Result<(PathBuf, PathBuf)> {
    let root = Path::new("/");
    let (kernel, initrd, release) = match (&args.kernel, &args.initrd) {
        (Some(kernel), Some(initrd)) => (kernel.clone(), initrd.clone(), release(kernel)),
        _ => {
            let newest = kernels(root).pop();
            let release = newest.ok_or(KexecError::NoKernel)?;
            let file = |name: &str| PathBuf::from(format!("/boot/{name}-{release}"));
            (file("vmlinuz"), file("initrd.img"), Some(release))
        }
    };
    if let Some(release) = release.filter(|release| !check::has_driver(root, release)) {
        return Err(KexecError::NoDriver { release }.into());
    }
    Ok((kernel, initrd))
}

/// The kernel's release, by where its file is: /boot/vmlinuz-RELEASE, or /usr/lib/modules/RELEASE/vmlinuz.
fn release(kernel: &Path) -> Option<String> {
    let path = fs::canonicalize(kernel).ok()?;
    let name = path.file_name()?.to_str()?;
    let release = match name.strip_prefix("vmlinuz-") {
        Some(release) => release,
        None => path.parent()?.file_name()?.to_str()?,
    };
    let modules = Path::new("/lib/modules").join(release);
    modules.is_dir().then(|| release.to_owned())
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(Error::kernel(format!("cannot open {}", path.display())))
}

/// What nobody has seen before.
fn token() -> Result<String> {
    let mut bytes = [0; 16];
    let path = Path::new("/dev/urandom");
    let read = File::open(path).and_then(|mut file| io::Read::read_exact(&mut file, &mut bytes));
    read.map_err(Error::kernel(format!("cannot read {}", path.display())))?;
    Ok(sample::hex(&bytes))
}
