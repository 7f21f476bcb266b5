// SPDX-License-Identifier: GPL-2.0

//! `daxdmem libvirt-setup`: lets libvirt's QEMU open the guests' devices, or no longer.
//!
//! Each file is replaced as a whole, and what it is to hold follows from what it holds: a run that was interrupted
//! between two files is completed by the next one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::begin;
use crate::cli::LibvirtSetupArgs;
use crate::edit::Edit;
use crate::error::{Error, Result};
use crate::layout::{self, LayoutError};
use crate::libvirt::access;
use crate::link::Links;
use crate::name::PartName;
use crate::terminal::{answer, done, note};

/// Runs it.
pub fn run(args: &LibvirtSetupArgs, links: &Links) -> Result<()> {
    let store = begin("libvirt-setup", links)?;
    let mut names: BTreeSet<PartName> = store.state().guests.keys().cloned().collect();
    if !args.remove {
        names.extend(declared()?);
    }
    let paths: Vec<PathBuf> = names.iter().map(|name| links.path(name)).collect();
    let wanted = (!args.remove).then_some(paths.as_slice());
    let (edits, notes) = access::edits(Path::new("/"), wanted)?;
    for line in notes {
        note(&line);
    }
    if !args.remove && paths.is_empty() {
        note("there are no guests yet whose devices could be allowed: repeat this when there are");
    }
    if edits.is_empty() {
        done(match args.remove {
            true => "libvirt's files have nothing of daxdmem's",
            false => "libvirt's files are as they should be",
        });
        return Ok(());
    }
    let diffs: String = edits.iter().map(Edit::diff).collect();
    answer(&diffs)?;
    if args.dry_run || !(args.apply || args.remove) {
        done("Nothing is changed yet: --apply does that");
        return Ok(());
    }
    for (index, edit) in edits.iter().enumerate() {
        edit.apply().map_err(|error| {
            let path = edit.path.display();
            let error = Error::kernel(format!("cannot change {path}"))(error);
            take_back(error, edits.get(..index).unwrap_or_default())
        })?;
        // The directory of a file that is gone goes, too, unless it has others.
        if let (None, Some(dir)) = (&edit.new, edit.path.parent()) {
            let _ = fs::remove_dir(dir);
        }
    }
    note(
        "libvirt takes this up when it starts: `systemctl try-restart libvirtd.service virtqemud.service`; running guests \
         stay as they are",
    );
    Ok(())
}

/// Undoes the changes that were made before one failed.
fn take_back(error: Error, made: &[Edit]) -> Error {
    let failed = made
        .iter()
        .find_map(|edit| Some((edit, edit.reverse().apply().err()?)));
    match failed {
        None => error,
        Some((edit, why)) => Error::LeftBehind {
            error: Box::new(error),
            what: format!("{} is changed already ({why})", edit.path.display()),
        },
    }
}

/// The devices that the layout declares, whether they are there now or not.
fn declared() -> Result<Vec<PartName>> {
    match layout::file::read(Path::new(layout::FILE)) {
        Ok(guests) => {
            let parts = guests.into_iter().flat_map(|guest| guest.parts);
            Ok(parts.map(|part| part.name).collect())
        }
        Err(Error::Layout(LayoutError::Missing { .. })) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
