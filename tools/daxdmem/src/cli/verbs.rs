// SPDX-License-Identifier: GPL-2.0

//! The command line of the verbs that look at one guest's device, and change what is there.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::WaitArgs;
use crate::mode::Mode;
use crate::name::{GuestName, PartName, Target};
use crate::size::Size;

/// See [`super::Command::Rename`].
#[derive(Debug, Args)]
pub struct RenameArgs {
    /// The guest's name
    pub old: GuestName,
    /// The name that it gets: up to 63 of a-z, 0-9, '.', '_' and '-'
    pub new: GuestName,
}

/// See [`super::Command::Resize`].
#[derive(Debug, Args)]
pub struct ResizeArgs {
    /// The guest's name, or NAME:NODE for one of several devices
    pub name: PartName,
    /// The size that it gets, a multiple of its device's align: bytes, or with K, M, G or T (powers of 1024) behind it
    #[arg(long)]
    pub size: Size,
    /// Waiting
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// See [`super::Command::Show`].
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The guest's name, or the device's, daxX.Y
    #[arg(value_name = "NAME|daxX.Y")]
    pub target: Target,
    /// Print JSON, in the form that Documentation/daxdmem-json.md describes
    #[arg(long)]
    pub json: bool,
}

/// See [`super::Command::Mode`].
#[derive(Debug, Args)]
pub struct ModeArgs {
    /// The guest's name, or the device's, daxX.Y
    #[arg(value_name = "NAME|daxX.Y")]
    pub target: Target,
    /// What it is to be used as; shows what it is used as where this is left out
    #[arg(value_enum)]
    pub mode: Option<NewMode>,
    /// Try so long to take memory back from the host
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    timeout: u32,
    /// Waiting
    #[command(flatten)]
    pub wait: WaitArgs,
}

impl ModeArgs {
    /// How long to try to take memory back.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout.into())
    }
}

/// The modes that a device can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NewMode {
    /// A guest's memory, without struct page (driver dax_dmem)
    PageLess,
    /// For programs that map it themselves, with struct pages (driver device_dax)
    Devdax,
    /// Lent to the host, which uses it as any other memory (driver kmem)
    SystemRam,
}

impl From<NewMode> for Mode {
    fn from(mode: NewMode) -> Mode {
        match mode {
            NewMode::PageLess => Mode::PageLess,
            NewMode::Devdax => Mode::Devdax,
            NewMode::SystemRam => Mode::SystemRam,
        }
    }
}

/// See [`super::Command::Stats`].
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Print JSON, in the form that Documentation/daxdmem-json.md describes
    #[arg(long)]
    pub json: bool,
    /// Print Prometheus' text format, as node_exporter's textfile collector reads it
    #[arg(long, conflicts_with = "json")]
    pub prometheus: bool,
    /// Write it to a file, which is replaced as a whole: a reader sees the last figures or these
    #[arg(long, value_name = "FILE", requires = "prometheus")]
    pub output: Option<PathBuf>,
}

/// See [`super::Command::Top`].
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Look again after so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = clap::value_parser!(u32).range(1..=3600))]
    interval: u32,
    /// Show it once, as text: so it is, too, where there is no terminal
    #[arg(long)]
    pub once: bool,
}

impl TopArgs {
    /// Time between two looks.
    pub fn interval(&self) -> Duration {
        Duration::from_secs(self.interval.into())
    }
}
