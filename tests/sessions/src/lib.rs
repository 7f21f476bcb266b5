// SPDX-License-Identifier: GPL-2.0
//! Sessions: what an operator types, and what the tool answers, to the letter.
//!
//! tools/daxdmem/tests/sessions/README.md describes the files. This crate reads them, has their commands run and
//! compares. Where they run is up to the caller, who brings a [`Stage`].

mod file;
mod play;

pub use file::{Session, Step};
pub use play::{differences, play, Ended, Look, Played, Shell, Stage};

use std::fs;
use std::path::Path;

/// How the names of the files end.
const END: &str = ".console";

/// The sessions of a directory, in the order of their names; those of one place, if it is named.
pub fn read(directory: &Path, place: Option<&str>) -> Result<Vec<Session>, String> {
    let failed = |error| format!("{}: {error}", directory.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().into_string();
        let name = name.unwrap_or_default();
        names.extend(name.strip_suffix(END).map(str::to_owned));
    }
    names.retain(|name| place.is_none() || name.rsplit_once('.').map(|(_, of)| of) == place);
    names.sort();
    let session = |name: &String| {
        let path = directory.join(format!("{name}{END}"));
        let text = fs::read_to_string(&path);
        let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
        Session::parse(name, &text)
    };
    names.iter().map(session).collect()
}
