// SPDX-License-Identifier: GPL-2.0
//! The memory in a core file: of a process, of a guest, or of a host whose kernel crashed.

use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::fs::FileExt;

use crate::case::{Failure, Outcome};

// Sizes and places of elf(5), 64 bits.
const HEADER: usize = 64;
const TABLE_AT: usize = 32;
const COUNT_AT: usize = 56;
const ENTRY: usize = 56;
const FILE_OFFSET_AT: usize = 8;
const PHYSICAL_AT: usize = 24;
const LENGTH_AT: usize = 32;
const PT_LOAD: u32 = 1;

/// A piece of memory in such a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it is in the file, bytes.
    offset: u64,
    /// First physical address; of a guest, in the guest.
    pub start: u64,
    /// Bytes that are in the file.
    pub length: u64,
}

/// A core file.
pub struct CoreFile {
    file: File,
    /// Its memory, in the order of its table.
    pub segments: Vec<Segment>,
}

impl CoreFile {
    /// Opens it and reads its table.
    pub fn open(path: &str) -> Outcome<CoreFile> {
        let file = File::open(path)?;
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        if !header.starts_with(b"\x7fELF") {
            return Err(Failure::Fail(format!("{path} is no core file")));
        }
        let (table, count) = (
            word(&header, TABLE_AT),
            word(&header, COUNT_AT) & u64::from(u16::MAX),
        );
        let mut segments = Vec::new();
        for index in 0..count {
            let mut entry = [0; ENTRY];
            file.read_exact_at(&mut entry, table + index * ENTRY as u64)?;
            if word(&entry, 0) as u32 == PT_LOAD {
                segments.push(Segment {
                    offset: word(&entry, FILE_OFFSET_AT),
                    start: word(&entry, PHYSICAL_AT),
                    length: word(&entry, LENGTH_AT),
                });
            }
        }
        Ok(CoreFile { file, segments })
    }

    /// Whether it has any of the memory from `start` to `end`, without `end`.
    pub fn has(&self, start: u64, end: u64) -> bool {
        self.segments
            .iter()
            .any(|segment| segment.start < end && start < segment.start + segment.length)
    }

    /// Reads memory from this physical address on.
    pub fn read(&self, physical: u64, bytes: &mut [u8]) -> Outcome {
        let end = physical + bytes.len() as u64;
        let holds =
            |segment: &&Segment| segment.start <= physical && end <= segment.start + segment.length;
        match self.segments.iter().find(holds) {
            Some(segment) => {
                let at = segment.offset + (physical - segment.start);
                Ok(self.file.read_exact_at(bytes, at)?)
            }
            None => Err(Failure::Fail(format!(
                "the dump does not have {physical:#x} to {end:#x}: {:x?}",
                self.segments
            ))),
        }
    }

    /// The word at this physical address.
    pub fn word(&self, physical: u64) -> Outcome<u64> {
        let mut bytes = [0; 8];
        self.read(physical, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Bytes of the whole file.
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Reads the whole file, once, as whoever stores it does; its bytes.
    pub fn read_all(&self) -> io::Result<u64> {
        let mut reader = BufReader::with_capacity(1 << 20, &self.file);
        io::copy(&mut reader, &mut io::sink())
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
