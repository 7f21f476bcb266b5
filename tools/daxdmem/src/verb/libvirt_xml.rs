// SPDX-License-Identifier: GPL-2.0

//! `daxdmem libvirt-xml`: writes or edits the XML of a domain whose memory is a device.

use std::fs;
use std::path::Path;

use super::qemu_args::{devices, mapping_align};
use crate::access::Access;
use crate::cli::LibvirtXmlArgs;
use crate::edit::Edit;
use crate::error::{Error, Result};
use crate::libvirt::domain::{self, Disks, Edited, Memory};
use crate::libvirt::LibvirtError;
use crate::link::Links;
use crate::name::Target;
use crate::terminal::{answer, done, note};

/// Runs it.
pub fn run(args: &LibvirtXmlArgs, links: &Links) -> Result<()> {
    let found = devices(&args.target, links)?;
    let [(device, path)] = found.as_slice() else {
        let target = args.target.clone();
        return Err(LibvirtError::Several { target }.into());
    };
    let memory = Memory {
        path: path.display().to_string(),
        size: device.size,
        align: mapping_align(device),
    };
    let (text, warnings) = match &args.into {
        None => {
            let name = match &args.target {
                Target::Guest(name) => name.guest.to_string(),
                Target::Device(name) => name.to_string(),
            };
            (domain::fresh(&name, &memory), Vec::new())
        }
        Some(file) => {
            let name = file.display().to_string();
            let text = fs::read_to_string(file)
                .map_err(Error::kernel(format!("cannot read the domain {name}")))?;
            let disks = match args.fix_disks {
                true => Disks::Mend,
                false => Disks::Name,
            };
            let Edited { text, warnings } = domain::edit(&name, &text, &memory, disks)?;
            (text, warnings)
        }
    };
    match args.output.as_ref().or(args.into.as_ref()) {
        Some(file) if file != Path::new("-") => write(file, text)?,
        _ => answer(&text)?,
    }
    let file = args.into.as_deref().unwrap_or(Path::new("")).display();
    for warning in warnings {
        note(&format!("{file}, {warning}"));
    }
    if device.access.is_none_or(|access| access == Access::ROOT) {
        let target = &args.target;
        note(&format!(
            "only root may open {path}, and libvirt's QEMU is not root: \
             `daxdmem set {target} --owner libvirt-qemu:kvm --mode 0660`",
            path = path.display()
        ));
    }
    Ok(())
}

/// Shows what changes, and changes it.
fn write(file: &Path, text: String) -> Result<()> {
    let name = file.display();
    let failed = || Error::kernel(format!("cannot write {name}"));
    let edit = Edit::of(file, |_| Some(text)).map_err(failed())?;
    if !edit.is_needed() {
        done(&format!("{name} is as it should be"));
        return Ok(());
    }
    if edit.old.is_some() {
        answer(&edit.diff())?;
    }
    edit.apply().map_err(failed())?;
    if edit.old.is_none() {
        done(&format!("{name} written"));
    }
    Ok(())
}
