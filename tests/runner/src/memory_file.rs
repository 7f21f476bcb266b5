// SPDX-License-Identifier: GPL-2.0
//! A file without a name, in memory: nothing is left behind however the runner ends, and runs side by side
//! cannot get at each other's.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// The file.
#[derive(Debug)]
pub struct MemoryFile {
    file: File,
}

impl MemoryFile {
    /// A file with these contents.
    pub fn new(contents: &[u8]) -> io::Result<MemoryFile> {
        // SAFETY: the name is NUL-terminated; the flag keeps the descriptor out of other children.
        let fd = unsafe { libc::memfd_create(c"initramfs".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nobody else has it.
        let mut file = unsafe { File::from_raw_fd(fd) };
        file.write_all(contents)?;
        Ok(MemoryFile { file })
    }

    /// A path for a child that inherits the descriptor.
    pub fn path_in_child(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }
}

impl AsRawFd for MemoryFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
