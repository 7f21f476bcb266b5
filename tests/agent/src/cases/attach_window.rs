// SPDX-License-Identifier: GPL-2.0
//! A window with struct pages in the memory of a guest that is page-less otherwise, for what cannot do without.

use crate::case::{Case, Outcome};
use crate::pattern::Pattern;
use crate::payload::{need_module, need_tool};
use crate::region::{GIB, MIB};
use crate::say;
use crate::storage::{Cache, RamDisk};
use crate::vmm::Model;

use super::attach::{boot, finish, refused_disk, try_disk, words, ATTACHED, LENGTH};
use super::tool_host;

pub const CASES: &[Case] = &[Case {
    name: "dma-window",
    shows: "with a window of 256 MiB that has struct pages a disk with O_DIRECT works; past the window it is an I/O error",
    machine: "attach",
    limit: 240,
    hidden: true,
    run: dma_window,
    ..Case::DEFAULT
}];

/// Whoever uses the DMA interface of the kernel copies through the window: devices that a virtual IOMMU may be before.
const WINDOWED: Model = Model {
    parameters: " dmem.commands=1 loglevel=1 swiotlb=force",
    ..ATTACHED
};

fn dma_window() -> Outcome {
    const WINDOW: u64 = 256 * MIB;
    need_module()?;
    need_tool()?;
    RamDisk::load()?;
    for line in [
        "create vm1 --size 1G --scrub never",
        "create vm1-dma --size 256M --scrub never",
        "mode vm1-dma devdax",
    ] {
        tool_host::done(line)?;
    }
    let printed = tool_host::done("qemu-args vm1 --dma-window vm1-dma")?;
    say!("{}", printed.trim());
    let mut arguments: Vec<String> = words(&printed).collect();
    // So that the guest takes memory of the window for nothing else, as long as there is other memory.
    arguments.extend(words("-numa cpu,node-id=1,socket-id=0"));
    for (disk, cache, platform) in [
        (0, Cache::None, "on"),
        (1, Cache::None, "off"),
        (2, Cache::Writeback, "on"),
        (3, Cache::Writeback, "off"),
    ] {
        let block = RamDisk(disk).block_device(&format!("ram{disk}"), cache, "");
        arguments.extend(words(&format!(
            "-blockdev {block} -device virtio-blk-pci,drive=ram{disk},disable-legacy=on,iommu_platform={platform}"
        )));
    }
    let mut guest = boot("window", GIB + WINDOW, &arguments, WINDOWED)?;
    try_disk(&mut guest, "vda", "O_DIRECT through the window", 30)?;
    refused_disk(&mut guest, "vdb", "O_DIRECT past the window")?;
    try_disk(&mut guest, "vdc", "cache=writeback through the window", 32)?;
    try_disk(&mut guest, "vdd", "cache=writeback past the window", 33)?;
    finish(guest)?;
    RamDisk(0).holds(Pattern::new(30), LENGTH)?;
    tool_host::done("destroy vm1")?;
    tool_host::done("destroy vm1-dma").map(drop)
}
