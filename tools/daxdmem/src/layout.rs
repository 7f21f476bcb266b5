// SPDX-License-Identifier: GPL-2.0

//! The layout: the guests that a host is to have, as a file declares them.
//!
//! [`mod@file`] reads and writes it, [`plan`] finds what differs between it and the host, [`mod@place`] where the new
//! devices go, [`placement`] remembers that over a reboot, [`show`] tells people and programs.

use std::path::PathBuf;

use crate::error::Error;
use crate::name::GuestName;
use crate::nodes::Part;
use crate::settings::Settings;

pub mod file;
pub mod place;
pub mod placement;
pub mod plan;
pub mod show;

/// Where the layout is.
pub const FILE: &str = "/etc/daxdmem/layout.toml";

/// A guest as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: GuestName,
    /// Line of the file, for messages.
    pub line: usize,
    /// Its devices.
    pub parts: Vec<Part>,
    /// The region that it has to be in, if that matters.
    pub region: Option<u32>,
    /// What is chosen for its devices.
    pub settings: Settings,
}

/// What can be wrong with a layout, and with bringing a host to it.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// There is no file.
    #[error("there is no layout at {path}\n`daxdmem save {path}` writes the present guests there")]
    Missing { path: PathBuf },
    /// The file is not of the form.
    #[error("{path}: {why}")]
    Syntax { path: PathBuf, why: String },
    /// A guest in it cannot be.
    #[error("{path}, line {line}: {name}: {why}")]
    Guest {
        path: PathBuf,
        line: usize,
        name: GuestName,
        why: Box<Error>,
    },
    /// Two guests have one name.
    #[error("{path}, line {line}: {name} is declared in line {first} already\nGive each guest a name of its own")]
    Twice {
        path: PathBuf,
        line: usize,
        first: usize,
        name: GuestName,
    },
    /// Not all of it is there.
    #[error("{count} of {all} guests are not as {path} says: {names}\nWhat stands in the way is told above; then repeat the command")]
    NotReached {
        path: PathBuf,
        count: usize,
        all: usize,
        names: String,
        /// Whether something is left behind.
        left: bool,
    },
    /// What remembers places is of another form.
    #[error("{path} cannot be used: {why}\nIt says where guests were placed, and nothing else. Move it away: then guests that are not there are placed anew")]
    Placement { path: PathBuf, why: String },
}
