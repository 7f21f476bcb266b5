// SPDX-License-Identifier: GPL-2.0
//! Disks of the first-level VM for guests.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;

use crate::case::{Named, Outcome};
use crate::pattern::Pattern;
use crate::region::MIB;
use crate::{guest_io, module};

/// Disks in memory; as with real ones, O_DIRECT has them read and write the caller's pages (drivers/block/brd.c).
#[derive(Clone, Copy)]
pub struct RamDisk(pub u32);

/// Bytes of each.
const SIZE: u64 = 64 * MIB;

impl RamDisk {
    /// Makes 16 of them, empty.
    pub fn load() -> Outcome {
        if !module::loaded("brd") {
            crate::command::Command::line(&format!(
                "modprobe brd rd_nr=16 rd_size={}",
                SIZE / 1024
            ))
            .limit(60)
            .run()?;
        }
        Ok(())
    }

    /// The device file.
    pub fn path(self) -> String {
        format!("/dev/ram{}", self.0)
    }

    /// `-blockdev`, with the host's page cache or past it.
    pub fn block_device(self, node: &str, cache: Cache, more: &str) -> String {
        let direct = match cache {
            Cache::Writeback => "off",
            Cache::None => "on",
        };
        format!(
            "driver=host_device,node-name={node},filename={},cache.direct={direct}{more}",
            self.path()
        )
    }

    /// Whether it begins with so much of the pattern.
    pub fn holds(self, pattern: Pattern, length: u64) -> Outcome {
        verify(&self.path(), pattern, length)
    }
}

/// Whether a disk that nobody writes to begins with so much of the pattern. Reads past the page cache.
pub fn verify(path: &str, pattern: Pattern, length: u64) -> Outcome {
    let mut options = File::options();
    let disk = options.read(true).custom_flags(libc::O_DIRECT);
    guest_io::read_disk(&disk.open(path).named(path)?, pattern, length).named(path)
}

/// `cache=` of a disk of QEMU's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Through the host's page cache.
    Writeback,
    /// O_DIRECT.
    None,
}
