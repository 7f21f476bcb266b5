// SPDX-License-Identifier: GPL-2.0

//! `daxdmem save`: writes the present guests as a layout, and where they are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{begin, bus};
use crate::cli::layout::SaveArgs;
use crate::error::{Error, Result};
use crate::file;
use crate::layout::file::{read, text};
use crate::layout::placement::Placement;
use crate::layout::plan::{compare, declare, placement, Action};
use crate::layout::FILE;
use crate::link::Links;
use crate::repair::is_there;
use crate::terminal::{answer, done, note};

/// Runs it.
pub fn run(args: &SaveArgs, links: &Links) -> Result<()> {
    let store = begin("save", links)?;
    let (state, now) = (store.state(), bus()?);
    let guests = declare(state, &now);
    let lost = state
        .guests
        .iter()
        .filter(|(_, guest)| !is_there(&now, guest));
    for (name, guest) in lost {
        let device = guest.device.device;
        note(&format!(
            "{name} is left out: {device}, which it had, is gone or somebody else's"
        ));
    }
    let path = args.file.clone().unwrap_or_else(|| PathBuf::from(FILE));
    if path == Path::new("-") {
        return answer(&text(&guests));
    }
    let steps = compare(&guests, state, &now, false, |_| None);
    let kept_file = Path::new(Placement::FILE);
    let kept = Placement::read(kept_file).unwrap_or_default();
    let kept_text = fs::read(kept_file).ok();
    placement(&steps).write(&kept, kept_file)?;

    // The operator's own words are better than ours.
    let same = read(&path).is_ok_and(|wanted| {
        let steps = compare(&wanted, state, &now, false, |_| None);
        steps.iter().all(|step| step.action == Action::Keep)
    });
    let count = guests.len();
    let plural = if count == 1 { "" } else { "s" };
    if same {
        done(&format!(
            "{} declares the {count} guest{plural} as they are: left as it is",
            path.display()
        ));
        return Ok(());
    }
    let old = write(&path, &text(&guests)).map_err(|error| {
        // As it was. What cannot be put back is where the guests are: that is never wrong.
        let _ = match kept_text {
            Some(text) => file::replace(kept_file, &text, 0o600),
            None => fs::remove_file(kept_file),
        };
        Error::kernel(format!("cannot write {}", path.display()))(error)
    })?;
    let old = old.map_or(String::new(), |old| {
        format!("; what was there is {} now", old.display())
    });
    done(&format!("{}: {count} guest{plural}{old}", path.display()));
    Ok(())
}

/// Writes the layout. The last one is kept beside it; its path.
fn write(path: &Path, text: &str) -> io::Result<Option<PathBuf>> {
    if path.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut old = path.as_os_str().to_owned();
    old.push(".old");
    let old = PathBuf::from(old);
    let kept = match path.exists() {
        false => None,
        true => {
            let aside = file::aside(&old);
            let _ = fs::remove_file(&aside);
            // One name or the other leads to it at every moment.
            fs::hard_link(path, &aside)?;
            fs::rename(&aside, &old)?;
            Some(old)
        }
    };
    file::replace(path, text.as_bytes(), 0o644)?;
    Ok(kept)
}
