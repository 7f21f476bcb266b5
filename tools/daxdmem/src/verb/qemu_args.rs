// SPDX-License-Identifier: GPL-2.0

//! `daxdmem qemu-args`: prints what QEMU has to be told to take its guest's memory from devices.

use std::path::{Path, PathBuf};

use dmem_plan::Leaf;

use super::{guests_by_links, look, resolve};
use crate::bus::{gib_leaves, Device};
use crate::cli::QemuArgs;
use crate::error::{Error, Result};
use crate::link::Links;
use crate::mode::Mode;
use crate::name::{PartName, Target};
use crate::terminal::answer;

/// Runs it.
pub fn run(args: &QemuArgs, links: &Links) -> Result<()> {
    let window = match &args.dma_window {
        Some(target) => windows(target, links)?,
        None => Vec::new(),
    };
    let text = text(&window, &devices(&args.target, links)?);
    answer(&format!("{text}\n"))
}

/// The page-less devices that a command names, each with the path by which QEMU finds it.
pub fn devices(target: &Target, links: &Links) -> Result<Vec<(Device, PathBuf)>> {
    found(target, links, |mode| match mode {
        Mode::PageLess => Ok(()),
        mode => Err(Error::NotBound {
            target: target.clone(),
            mode: mode.to_string(),
        }),
    })
}

/// Likewise those that have struct pages.
fn windows(target: &Target, links: &Links) -> Result<Vec<(Device, PathBuf)>> {
    found(target, links, |mode| match mode {
        Mode::Devdax => Ok(()),
        mode => Err(Error::NoWindow {
            target: target.clone(),
            mode: mode.to_string(),
        }),
    })
}

fn found(
    target: &Target,
    links: &Links,
    check: impl Fn(Mode) -> Result<()>,
) -> Result<Vec<(Device, PathBuf)>> {
    let (state, now) = look(links)?;
    let state = state.unwrap_or_else(|| guests_by_links(links, &now));
    let found = resolve(target, &state, &now)?;
    for (device, _) in &found {
        check(Mode::of(device))?;
    }
    let path = |device: &Device, name: &Option<PartName>| match (target, name) {
        (Target::Guest(_), Some(name)) => links.path(name),
        _ => Path::new("/dev").join(device.name.to_string()),
    };
    Ok(found
        .into_iter()
        .map(|(device, name)| (device.clone(), path(device, &name)))
        .collect())
}

/// One line. With one device the object's id is the same for all guests: a QEMU has one such object for its RAM. With
/// several the guest has as many NUMA nodes, and QEMU wants to be told the sum.
///
/// A window comes first, and nothing else lies below 4 GiB in the guest: so whatever the guest's kernel wants to have
/// there, its bounce buffers (swiotlb) above all, is in it.
fn text(window: &[(Device, PathBuf)], devices: &[(Device, PathBuf)]) -> String {
    let low: u64 = window.iter().map(|(device, _)| device.size).sum();
    let devices: Vec<_> = window.iter().chain(devices).collect();
    if let [(device, path)] = devices[..] {
        let object = object("ram", device, path);
        return format!("{object} -machine memory-backend=ram");
    }
    let size: u64 = devices.iter().map(|(device, _)| device.size).sum();
    let node = |(index, (device, path)): (usize, &&(Device, PathBuf))| {
        let id = format!("ram{index}");
        let object = object(&id, device, path);
        format!(" {object} -numa node,nodeid={index},memdev={id}")
    };
    let nodes: String = devices.iter().enumerate().map(node).collect();
    let machine = match low {
        0 => String::new(),
        low => format!(" -machine max-ram-below-4g={}", low.min(MOST_LOW)),
    };
    format!("-m {}M{nodes}{machine}", size >> 20)
}

/// What every machine type of QEMU can have below 4 GiB (q35: 2 GiB).
const MOST_LOW: u64 = 2 << 30;

/// What QEMU's mapping has to be aligned to, for the largest leaves: QEMU puts it at an address of its own choice, by
/// default 4 KiB beside any boundary.
pub fn mapping_align(device: &Device) -> u64 {
    // Where the ranges are not to be read, 1G is never wrong: it costs a hole in the address space at most.
    let large = match device.ranges.as_deref() {
        Some(ranges) => gib_leaves(ranges) > 0,
        None => device.size >= Leaf::Pud.size(),
    };
    match large {
        true => Leaf::Pud.size(),
        false => Leaf::Pmd.size(),
    }
}

/// With `share=off` QEMU would ask for a private mapping, which there is none of; merging and dumping need struct pages.
fn object(id: &str, device: &Device, path: &Path) -> String {
    format!(
        "-object memory-backend-file,id={id},mem-path={},size={},share=on,align={},prealloc=off,merge=off,dump=off",
        path.display(),
        device.size,
        if mapping_align(device) == Leaf::Pud.size() { "1G" } else { "2M" },
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
        let text = |device: &Device, path: &Path| text(&[], &[(device.clone(), path.to_owned())]);
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
    #[test]
    fn a_guest_of_several_devices_has_several_nodes() {
        let first = crate::report::tests::device();
        let second = Device {
            ranges: None,
            size: 512 << 20,
            ..first.clone()
        };
        let path = |node: u32| PathBuf::from(format!("/dev/daxdmem/db1:{node}"));
        assert_eq!(
            text(&[], &[(first, path(0)), (second, path(3))]),
            "-m 2560M \
             -object memory-backend-file,id=ram0,mem-path=/dev/daxdmem/db1:0,size=2147483648,share=on,align=1G,\
             prealloc=off,merge=off,dump=off -numa node,nodeid=0,memdev=ram0 \
             -object memory-backend-file,id=ram1,mem-path=/dev/daxdmem/db1:3,size=536870912,share=on,align=2M,\
             prealloc=off,merge=off,dump=off -numa node,nodeid=1,memdev=ram1"
        );
    }
    #[test]
    fn a_window_comes_first_and_is_all_there_is_below_4_gib() {
        let memory = crate::report::tests::device();
        let window = Device {
            ranges: None,
            size: 512 << 20,
            ..memory.clone()
        };
        let path = |name: &str| PathBuf::from("/dev/daxdmem").join(name);
        assert_eq!(
            text(&[(window, path("w"))], &[(memory.clone(), path("vm1"))]),
            "-m 2560M \
             -object memory-backend-file,id=ram0,mem-path=/dev/daxdmem/w,size=536870912,share=on,align=2M,\
             prealloc=off,merge=off,dump=off -numa node,nodeid=0,memdev=ram0 \
             -object memory-backend-file,id=ram1,mem-path=/dev/daxdmem/vm1,size=2147483648,share=on,align=1G,\
             prealloc=off,merge=off,dump=off -numa node,nodeid=1,memdev=ram1 \
             -machine max-ram-below-4g=536870912"
        );
        let large = Device {
            size: 8 << 30,
            ..memory.clone()
        };
        assert!(text(&[(large, path("w"))], &[(memory, path("vm1"))])
            .ends_with(" -machine max-ram-below-4g=2147483648"));
    }
}
