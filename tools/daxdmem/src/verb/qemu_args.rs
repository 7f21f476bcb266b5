// SPDX-License-Identifier: GPL-2.0

//! `daxdmem qemu-args`: prints what QEMU has to be told to take its guest's memory from a device.

use std::path::Path;

use dmem_plan::Leaf;

use super::{bus, look, resolve};
use crate::bus::{gib_leaves, Device};
use crate::cli::QemuArgs;
use crate::error::{Error, Result};
use crate::link::Links;
use crate::name::Target;
use crate::report::Mode;
use crate::settings::Settings;
use crate::store::{Record, State};
use crate::terminal::answer;

/// Runs it.
pub fn run(args: &QemuArgs, links: &Links) -> Result<()> {
    let state = look(links)?;
    let now = bus()?;
    // Who may not read the state goes by the links.
    let state = state.unwrap_or_else(|| {
        let named = links.names().into_iter();
        let guest = |device: &Device| Record {
            device: device.identity(),
            ranges: device.ranges.clone().unwrap_or_default(),
            settings: Settings::default(),
        };
        let guests = named.filter_map(|(device, name)| Some((name, guest(now.device(device)?))));
        State::of_guests(guests.collect())
    });
    let (device, _) = resolve(&args.target, &state, &now)?;
    if !device.is_page_less() {
        return Err(Error::NotBound {
            target: args.target.clone(),
            mode: Mode::of(device).to_string(),
        });
    }
    let path = match &args.target {
        Target::Guest(name) => links.path(name),
        Target::Device(name) => Path::new("/dev").join(name.to_string()),
    };
    answer(&format!("{}\n", text(device, &path)))
}

/// One line. The id is the same for all: a QEMU has one such object for its RAM.
///
/// `align=` because QEMU puts the mapping at an address of its own choice, by default 4 KiB beside any boundary; with
/// `share=off` it would ask for a private mapping, which there is none of; merging and dumping need struct pages.
fn text(device: &Device, path: &Path) -> String {
    // Where the ranges are not to be read, 1G is never wrong: it costs a hole in the address space at most.
    let large = match device.ranges.as_deref() {
        Some(ranges) => gib_leaves(ranges) > 0,
        None => device.size >= Leaf::Pud.size(),
    };
    format!(
        "-object memory-backend-file,id=ram,mem-path={},size={},share=on,align={},prealloc=off,merge=off,dump=off \
         -machine memory-backend=ram",
        path.display(),
        device.size,
        if large { "1G" } else { "2M" },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Range;

    #[test]
    fn what_qemu_is_told() {
        let mut device = crate::report::tests::device();
        let path = Path::new("/dev/daxdmem/vm1");
        let line = |align| {
            format!(
                "-object memory-backend-file,id=ram,mem-path=/dev/daxdmem/vm1,size=2147483648,share=on,align={align},\
                 prealloc=off,merge=off,dump=off -machine memory-backend=ram"
            )
        };
        assert_eq!(text(&device, path), line("1G"));
        device.ranges = Some(vec![Range {
            start: (4 << 30) + (2 << 20),
            len: 2 << 30,
        }]);
        assert_eq!(text(&device, path), line("2M"));
        device.ranges = None;
        assert_eq!(text(&device, path), line("1G"));
        device.size = 512 << 20;
        assert!(text(&device, path).contains(",align=2M,"));
    }
}
