// SPDX-License-Identifier: GPL-2.0

//! A device's memory, to be read page by page.
//!
//! It is mapped, and then read by way of /proc/self/mem: memory that is taken away meanwhile, or that fails, is an error
//! and no signal.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr::null_mut;

use rustix::mm::{mmap, munmap, MapFlags, ProtFlags};

/// A mapping of a device.
#[derive(Debug)]
pub struct Window {
    address: *mut c_void,
    length: usize,
    memory: File,
}

impl Window {
    /// Maps so many bytes of the device.
    pub fn new(device: &File, length: u64) -> io::Result<Window> {
        let memory = File::open("/proc/self/mem")?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        // SAFETY: at an address of the kernel's choice, so nothing is mapped over; nothing here takes a reference to it.
        let address = unsafe {
            mmap(
                null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::SHARED,
                device,
                0,
            )?
        };
        Ok(Window {
            address,
            length,
            memory,
        })
    }

    /// Reads from an offset on.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let inside = usize::try_from(offset).is_ok_and(|offset| {
            offset
                .checked_add(into.len())
                .is_some_and(|end| end <= self.length)
        });
        match inside {
            true => self
                .memory
                .read_exact_at(into, self.address as u64 + offset),
            false => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: it was mapped by this value, and nothing refers to it. There is nothing to do about an error.
        let _ = unsafe { munmap(self.address, self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_it_is_read_and_nothing_beyond() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        file.write_all_at(b"page", 4096).unwrap();
        let window = Window::new(&file, 8192).unwrap();
        let mut bytes = [0; 4];
        window.read(4096, &mut bytes).unwrap();
        assert_eq!(&bytes, b"page");
        for offset in [8190, 8192, u64::MAX] {
            assert!(window.read(offset, &mut bytes).is_err(), "{offset}");
        }
        // Memory that is gone is an error.
        file.set_len(4096).unwrap();
        assert!(window.read(4096, &mut bytes).is_err());
    }
}
