// SPDX-License-Identifier: GPL-2.0
//! Disks of the first-level VM for guests, and the real programs that stand between them.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::case::{Named, Outcome};
use crate::cmdline::patient;
use crate::guest_io;
use crate::pattern::Pattern;
use crate::region::MIB;
use crate::{check, module};

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

/// A running qemu-storage-daemon, killed on drop.
pub struct StorageDaemon(Child);

impl StorageDaemon {
    /// Starts it with these arguments, blanks between, and waits until these sockets are there.
    pub fn start(arguments: &str, sockets: &[&str]) -> Outcome<StorageDaemon> {
        for socket in sockets {
            // One that is left over would be taken for the new one.
            let _ = std::fs::remove_file(socket);
        }
        let child = Command::new("qemu-storage-daemon")
            .args(arguments.split_ascii_whitespace())
            .stdin(Stdio::null())
            .spawn()
            .named("qemu-storage-daemon")?;
        let mut daemon = StorageDaemon(child);
        let deadline = Instant::now() + patient(Duration::from_secs(60));
        while !sockets.iter().all(|socket| Path::new(socket).exists()) {
            check!(
                daemon.0.try_wait()?.is_none() && Instant::now() < deadline,
                "qemu-storage-daemon did not make {sockets:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(daemon)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
