// SPDX-License-Identifier: GPL-2.0

//! The command line of `poison`.

use std::fmt;
use std::str::FromStr;

use clap::{Args, Subcommand};

use crate::bus::Range;
use crate::driver::range;
use crate::name::Target;
use crate::size::Size;

/// Examples of [`PoisonArgs`].
pub const EXAMPLES: &str = "\
Examples:
  daxdmem poison list
  daxdmem poison list vm1
  daxdmem poison add 0x140003000
  daxdmem poison add vm1:0x3000
  daxdmem poison clear 0x140003000-0x140004fff

See Documentation/memory-errors.md.";

/// See [`super::Command::Poison`].
#[derive(Debug, Args)]
pub struct PoisonArgs {
    /// What to do
    #[command(subcommand)]
    pub verb: PoisonVerb,
}

/// What can be done about poison.
#[derive(Debug, Subcommand)]
pub enum PoisonVerb {
    /// Show the pages that failed, whose they are, and what each region lost
    List(PoisonListArgs),
    /// Take pages out of use, as if they had reported an error
    ///
    /// What they held is lost. They are kept out of use over reboots.
    Add(PoisonAddArgs),
    /// Have pages tested and taken back into use, as after replacing a memory module
    ///
    /// Each page is rewritten with patterns and read again. Those that stand the test are zeros then; the others stay out
    /// of use. Only while nobody uses the device that has the page.
    Clear(PoisonClearArgs),
    /// Record what the driver knows, and tell it what is recorded
    #[command(hide = true)]
    Sync,
}

/// See [`PoisonVerb::List`].
#[derive(Debug, Args)]
pub struct PoisonListArgs {
    /// Pages of this guest or device only
    #[arg(value_name = "NAME[:NODE]|daxX.Y")]
    pub target: Option<Target>,
    /// Pages of this region only: X in the names daxX.Y of its devices
    #[arg(long, conflicts_with = "target")]
    pub region: Option<u32>,
    /// Print JSON, in the form that Documentation/daxdmem-json.md describes
    #[arg(long)]
    pub json: bool,
}

/// See [`PoisonVerb::Add`].
#[derive(Debug, Args)]
pub struct PoisonAddArgs {
    /// The pages of 4K: physical addresses, or places in devices, such as vm1:0x3000 or dax0.1:2M
    #[arg(required = true, value_name = "ADDRESS|NAME:OFFSET|daxX.Y:OFFSET")]
    pub pages: Vec<Spot>,
    /// Also where a program uses the device: it gets SIGBUS when it touches the page
    #[arg(long)]
    pub force: bool,
}

/// See [`PoisonVerb::Clear`].
#[derive(Debug, Args)]
pub struct PoisonClearArgs {
    /// The pages of 4K: physical addresses, ranges as `poison list` shows them, or places in devices, such as vm1:0x3000
    #[arg(
        required = true,
        value_name = "ADDRESS|START-END|NAME:OFFSET|daxX.Y:OFFSET"
    )]
    pub pages: Vec<Stretch>,
}

/// A page as people name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spot {
    /// By its physical address.
    At(u64),
    /// By its place in a device.
    In(Target, u64),
}

/// Pages as people name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stretch {
    /// One.
    Page(Spot),
    /// Those of a physical range.
    Range(Range),
}

/// `0x` and hexadecimal digits.
fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

impl FromStr for Spot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(at) = hex(text) {
            return Ok(Spot::At(at));
        }
        let place = || {
            let (target, offset) = text.rsplit_once(':')?;
            let size = || offset.parse::<Size>().ok().map(|size| size.0);
            Some(Spot::In(target.parse().ok()?, hex(offset).or_else(size)?))
        };
        place().ok_or_else(|| {
            format!(
                "'{text}' names no page: write its physical address, 0x and hexadecimal digits, or its place in a device, \
                 NAME:OFFSET"
            )
        })
    }
}

impl FromStr for Stretch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match range(text) {
            Some(range) => Ok(Stretch::Range(range)),
            None => text.parse().map(Stretch::Page),
        }
    }
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spot::At(at) => write!(f, "{at:#x}"),
            Spot::In(target, offset) => write!(f, "{target}:{offset:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_name_a_page() {
        let spot = |text: &str| text.parse::<Spot>();
        assert_eq!(spot("0x140003000"), Ok(Spot::At(0x1_4000_3000)));
        for (text, target, offset) in [
            ("vm1:0x3000", "vm1", 0x3000),
            ("db1:0:4096", "db1:0", 4096),
            ("db1:0", "db1", 0),
            ("dax0.1:2M", "dax0.1", 2 << 20),
        ] {
            let place = Spot::In(target.parse().unwrap(), offset);
            assert_eq!(spot(text), Ok(place));
        }
        assert_eq!(spot("dax0.1:2M").unwrap().to_string(), "dax0.1:0x200000");
        for text in [
            "",
            "vm1",
            "140003000",
            "0x",
            "0xg",
            "vm1:",
            ":0x0",
            "vm1:-1",
            "0x1000-0x1fff",
        ] {
            assert!(spot(text).unwrap_err().contains("names no page"), "{text}");
        }
        let stretch = |text: &str| text.parse::<Stretch>();
        let len = 8192;
        let range = Range { start: 0x1000, len };
        assert_eq!(stretch("0x1000-0x2fff"), Ok(Stretch::Range(range)));
        assert_eq!(stretch("0x1000"), Ok(Stretch::Page(Spot::At(0x1000))));
        assert!(stretch("0x2000-0x1000").is_err());
    }
}
