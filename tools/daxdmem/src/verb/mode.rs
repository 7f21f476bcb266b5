// SPDX-License-Identifier: GPL-2.0

//! `daxdmem mode`: shows or changes what a device is used as.
//!
//! Taking it away from one driver and giving it to the next are written down as one operation. Memory that comes from
//! page-less is waited for where its policy has it scrubbed first: no other driver gets it before.

use std::time::Duration;

use super::{
    begin_giving, find, guests_by_links, idle, look, need_driver, one, resolve, tell_of_poison,
    warn, Named,
};
use crate::bus::Device;
use crate::change;
use crate::cli::ModeArgs;
use crate::error::{Error, Result, VerbError};
use crate::host;
use crate::journal::{ChangeMode, Operation};
use crate::lend::{block_size, Blocks};
use crate::link::Links;
use crate::mode::Mode;
use crate::name::PartName;
use crate::poison::{self, error::PoisonError};
use crate::repair::finish;
use crate::size::Size;
use crate::store::Store;
use crate::terminal::{answer, done, note};
use crate::wait;

/// Runs it.
pub fn run(args: &ModeArgs, links: &Links) -> Result<()> {
    match args.mode {
        Some(mode) => change_to(args, mode.into(), links),
        None => {
            let (state, now) = look(links)?;
            let state = state.unwrap_or_else(|| guests_by_links(links, &now));
            let found = resolve(&args.target, &state, &now)?;
            let line = |(device, name): &(&Device, Option<PartName>)| match (found.len(), name) {
                (2.., Some(name)) => format!("{name} {}\n", Mode::of(device)),
                _ => format!("{}\n", Mode::of(device)),
            };
            answer(&found.iter().map(line).collect::<String>())
        }
    }
}

fn change_to(args: &ModeArgs, to: Mode, links: &Links) -> Result<()> {
    let mut store = begin_giving("mode", links)?;
    let (device, name) = one(&args.target, find(&args.target, store.state())?)?;
    let device = &device;
    let named = Named(&name, device).to_string();
    let from = Mode::of(device);
    if device.is_vacant() {
        return Err(Error::Vacant {
            device: device.name,
        });
    }
    if from == to {
        note(&format!("{named} is {to} already"));
        return Ok(());
    }
    if from != Mode::SystemRam {
        idle(device, &named)?;
    }
    if to != Mode::PageLess {
        let pages = poison::known()?.within(device.ranges.as_deref().unwrap_or_default());
        if !pages.is_empty() {
            let (device, mode) = (device.name, to.to_string());
            return Err(PoisonError::Mode {
                device,
                pages,
                mode,
            }
            .into());
        }
    }
    let blocks = match from == Mode::SystemRam || to == Mode::SystemRam {
        true => Some(blocks_of(device)?),
        false => None,
    };
    if to == Mode::PageLess {
        need_driver(&store)?;
    }
    let settings = store.state().settings(name.as_ref(), &device.identity());
    let entry = ChangeMode {
        device: device.identity(),
        from,
        to,
        settings: settings.unwrap_or_default(),
        host: host::knobs(),
    };
    store.begin(Operation::Mode(entry.clone()))?;
    let step = Step {
        named: &named,
        device,
        blocks: blocks.as_ref(),
        timeout: args.timeout(),
    };
    let made = step.make(&mut store, &entry);
    made.or_else(|error| finish(&mut store, links, error))?;
    if entry.to == Mode::PageLess {
        // Of memory that was lent the driver could not be told.
        tell_of_poison(store.state());
    }
    drop(store);
    step.tell(&entry);
    match entry.to == Mode::PageLess && !args.wait.no_wait {
        true => wait::for_device(&named, &entry.device),
        false => Ok(()),
    }
}

/// The memory blocks that kmem makes, or has made, of a device.
fn blocks_of(device: &Device) -> Result<Blocks> {
    let block = block_size().ok_or(VerbError::NoHotplug)?;
    let blocks = Blocks::of(device.ranges.as_deref().unwrap_or_default(), block);
    match blocks.len() {
        0 => Err(Error::from(VerbError::NoBlock {
            device: device.name,
            block: Size(block),
        })),
        _ => Ok(blocks),
    }
}

/// A change of mode.
struct Step<'a> {
    named: &'a str,
    /// As it was before.
    device: &'a Device,
    /// Where the host gets it or gives it back.
    blocks: Option<&'a Blocks>,
    timeout: Duration,
}

impl Step<'_> {
    /// Carries it out. An error leaves the operation in the journal, for [`finish`].
    fn make(&self, store: &mut Store, entry: &ChangeMode) -> Result<()> {
        let identity = &entry.device;
        match (&entry.from, self.blocks) {
            (Mode::SystemRam, Some(blocks)) => self.take_back(blocks, entry)?,
            _ => {
                change::unbind(identity)?;
                if entry.to != Mode::PageLess {
                    let ranges = self.device.ranges.as_deref().unwrap_or_default();
                    wait::for_release(self.named, ranges)?;
                }
            }
        }
        let attach = || change::attach(identity, &entry.to, entry.settings.scrub);
        if entry.to == Mode::PageLess {
            attach()?;
        } else {
            host::prepare()?;
            attach()?;
            host::put_back(&entry.host)?;
        }
        if let (Mode::SystemRam, Some(blocks)) = (&entry.to, self.blocks) {
            blocks.online()?;
        }
        store.end()
    }

    /// Has the host give all of it back, or as much of it as before.
    fn take_back(&self, blocks: &Blocks, entry: &ChangeMode) -> Result<()> {
        if let Err(held) = blocks.offline(self.named, self.timeout)? {
            return Err(Error::from(VerbError::Held {
                target: self.named.to_owned(),
                held: held.to_string(),
            }));
        }
        // One block that is online now would be lost until reboot.
        if !blocks.are_offline() {
            return Err(Error::Disturbed {
                device: self.device.name,
                what: "another program brought some of it online again".to_owned(),
            });
        }
        change::take_from_kmem(&entry.device)?;
        match blocks.are_there() {
            false => Ok(()),
            true => Err(Error::from(VerbError::Kept {
                device: self.device.name,
            })),
        }
    }

    fn tell(&self, entry: &ChangeMode) {
        let (named, to) = (self.named, &entry.to);
        match self.blocks.filter(|_| *to == Mode::SystemRam) {
            None => done(&format!("{named}: {to}")),
            Some(blocks) => {
                let bytes = blocks.bytes();
                done(&format!(
                    "{named}: {to}, {} in {} memory blocks",
                    Size(bytes),
                    blocks.len()
                ));
                if let Some(lost @ 1..) = self.device.size.checked_sub(bytes) {
                    note(&format!(
                        "{} of it are not used: they are no whole memory blocks",
                        Size(lost)
                    ));
                }
                if let unmovable @ 1.. = blocks.unmovable() {
                    note(&format!(
                        "{unmovable} of the memory blocks were brought online by another program such that they may never \
                         come back"
                    ));
                }
            }
        }
        if *to == Mode::PageLess {
            warn(&named, &entry.settings);
        }
    }
}
