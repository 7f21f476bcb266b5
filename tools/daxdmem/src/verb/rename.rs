// SPDX-License-Identifier: GPL-2.0

//! `daxdmem rename`: gives a guest another name. The device stays as it is, and may be in use.

use super::{begin, find, remind_of_layout};
use crate::cli::RenameArgs;
use crate::error::{Error, Result};
use crate::journal::{Operation, Rename};
use crate::link::Links;
use crate::name::{PartName, Target};
use crate::repair::{finish, rename_rest};
use crate::terminal::{done, note};

/// Runs it.
pub fn run(args: &RenameArgs, links: &Links) -> Result<()> {
    let (old, new) = (&args.old, &args.new);
    let mut store = begin("rename", links)?;
    let to = PartName::from(new.clone());
    let from = Target::Guest(PartName::from(old.clone()));
    let found = find(&from, store.state())?;
    if old == new {
        note(&format!("{old} has that name already"));
        return Ok(());
    }
    if let Some((_, guest)) = store.state().parts(&to).next() {
        return Err(Error::NameTaken {
            name: new.clone(),
            device: guest.device.device,
        });
    }
    for (_, part) in &found {
        links.check(&PartName {
            guest: new.clone(),
            node: part.as_ref().and_then(|part| part.node),
        })?;
    }
    let entry = Rename {
        from: old.clone(),
        to: new.clone(),
    };
    store.begin(Operation::Rename(entry.clone()))?;
    let renamed = rename_rest(&mut store, links, &entry).map(drop);
    renamed.or_else(|error| finish(&mut store, links, error))?;
    for (device, part) in &found {
        let node = part.as_ref().and_then(|part| part.node);
        let to = PartName {
            guest: new.clone(),
            node,
        };
        let from = PartName {
            guest: old.clone(),
            node,
        };
        done(&format!(
            "{from} is {to} now: {}",
            links.path(&to).display()
        ));
        if device.openers.is_some_and(|openers| openers > 0) {
            let path = links.path(&from);
            note(&format!(
                "it is in use: what runs goes on; what is started by {} is not found any more",
                path.display()
            ));
        }
    }
    remind_of_layout(old);
    Ok(())
}
