// SPDX-License-Identifier: GPL-2.0
//! Memory mappings of devices, files and nothing.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// A mapping, unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    address: usize,
    length: usize,
}

/// How to map; `Map::new(len)` is shared, readable and writable, at offset 0, where the kernel likes.
#[derive(Clone, Copy)]
pub struct Map {
    length: u64,
    offset: u64,
    protection: i32,
    flags: i32,
    address: usize,
}

impl Map {
    /// `length` bytes.
    pub fn new(length: u64) -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        Map {
            length,
            offset: 0,
            protection,
            flags: libc::MAP_SHARED,
            address: 0,
        }
    }

    /// From this offset of the file, bytes.
    pub fn offset(self, offset: u64) -> Self {
        Map { offset, ..self }
    }

    /// With this protection (`PROT_…`).
    pub fn protection(self, protection: i32) -> Self {
        Map { protection, ..self }
    }

    /// With these flags (`MAP_…`) in place of `MAP_SHARED`.
    pub fn flags(self, flags: i32) -> Self {
        Map { flags, ..self }
    }

    /// Exactly here, replacing what is there.
    pub fn at(self, address: usize) -> Self {
        Map {
            address,
            flags: self.flags | libc::MAP_FIXED,
            ..self
        }
    }

    /// Maps the file.
    pub fn file(self, file: &File) -> io::Result<Mapping> {
        self.map(file.as_raw_fd())
    }

    /// Maps fresh zeroed memory, private to this process.
    pub fn anonymous(self) -> io::Result<Mapping> {
        let fixed = self.flags & libc::MAP_FIXED;
        self.flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed)
            .map(-1)
    }

    fn map(self, fd: i32) -> io::Result<Mapping> {
        let (length, offset) = (self.length as usize, self.offset as libc::off_t);
        // SAFETY: a mapping at an address of the kernel's choice touches nothing that exists; one at a fixed
        // address is asked for by cases only, over address space they reserved.
        let address = unsafe {
            libc::mmap(
                self.address as *mut libc::c_void,
                length,
                self.protection,
                self.flags,
                fd,
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping {
            address: address as usize,
            length,
        })
    }
}

impl Mapping {
    /// First virtual address.
    pub fn address(&self) -> usize {
        self.address
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// The mapping as 64-bit words from a byte offset. Device memory is shared with other processes, hence raw.
    pub fn words(&self, offset: u64, length: u64) -> *mut [u64] {
        let (offset, length) = (offset as usize, length as usize);
        assert!(
            offset % 8 == 0 && length % 8 == 0 && offset + length <= self.length,
            "outside the mapping"
        );
        std::ptr::slice_from_raw_parts_mut((self.address + offset) as *mut u64, length / 8)
    }

    /// Reads the word at a byte offset.
    pub fn read(&self, offset: u64) -> u64 {
        let words = self.words(offset, 8).cast::<u64>();
        // SAFETY: `words` checked that the word lies in the mapping; volatile as others may write it.
        unsafe { words.read_volatile() }
    }

    /// Writes the word at a byte offset.
    pub fn write(&self, offset: u64, value: u64) {
        let words = self.words(offset, 8).cast::<u64>();
        // SAFETY: as in `read`.
        unsafe { words.write_volatile(value) }
    }

    /// Reads one word in every `step` bytes, so that every leaf of that size is there afterwards.
    pub fn touch(&self, step: u64) {
        let mut offset = 0;
        while offset < self.length as u64 {
            self.read(offset);
            offset += step;
        }
    }

    /// madvise(2) on a part.
    pub fn advise(&self, offset: u64, length: u64, advice: i32) -> io::Result<()> {
        // SAFETY: the kernel checks the range; no advice used here drops memory Rust objects live in.
        check(unsafe { libc::madvise(self.pointer(offset), length as usize, advice) })
    }

    /// mprotect(2) on a part.
    pub fn protect(&self, offset: u64, length: u64, protection: i32) -> io::Result<()> {
        // SAFETY: only this mapping's pages are changed, and no Rust reference points into it.
        check(unsafe { libc::mprotect(self.pointer(offset), length as usize, protection) })
    }

    /// munmap(2) on a part; the rest stays, and dropping the value unmaps that.
    pub fn unmap(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as in `protect`.
        check(unsafe { libc::munmap(self.pointer(offset), length as usize) })
    }

    /// mremap(2) of the whole to another length, and with `MREMAP_FIXED` to another address.
    pub fn remap(mut self, length: u64, flags: i32, address: usize) -> io::Result<Mapping> {
        let target = address as *mut libc::c_void;
        // SAFETY: the value is consumed, so nothing refers to the old place any more.
        let moved =
            unsafe { libc::mremap(self.pointer(0), self.length, length as usize, flags, target) };
        if moved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.address = moved as usize;
        self.length = length as usize;
        Ok(self)
    }

    fn pointer(&self, offset: u64) -> *mut libc::c_void {
        (self.address + offset as usize) as *mut libc::c_void
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by this value; parts that are gone already are no error.
        unsafe { libc::munmap(self.pointer(0), self.length) };
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
