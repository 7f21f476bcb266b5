// SPDX-License-Identifier: GPL-2.0
//! Reads and writes by `/proc/PID/mem`.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::Session;
use crate::case::{Named, Outcome};
use crate::fuzz::model::{poked, words_in};
use crate::fuzz::op::{Observed, Seen, ARENA};

impl Session<'_> {
    fn memory_of(&self, who: usize) -> Outcome<File> {
        let pid = match who {
            0 => "self".to_owned(),
            who => self.pids[who].to_string(),
        };
        let path = format!("/proc/{pid}/mem");
        File::options()
            .read(true)
            .write(true)
            .open(&path)
            .named(path)
    }

    pub(super) fn peek(&self, who: usize, at: u64, bytes: u64) -> Outcome<Observed> {
        let mut buffer = vec![0u8; bytes as usize];
        let result = self.memory_of(who)?.read_at(&mut buffer, ARENA + at);
        let got = match result {
            Ok(got) => got as u64,
            Err(error) => {
                return Ok(Observed::one(Seen::Errno(
                    error.raw_os_error().unwrap_or(0),
                )))
            }
        };
        let mut observed = Observed::one(Seen::Number(got));
        for (_, _, byte) in words_in(at, got) {
            let start = (byte - at) as usize;
            let word = buffer[start..].first_chunk().copied().unwrap_or_default();
            observed.push(Seen::Word(u64::from_ne_bytes(word)));
        }
        Ok(observed)
    }

    pub(super) fn poke(&self, who: usize, at: u64, bytes: u64, seed: u64) -> Outcome<Observed> {
        let words = (at..at + bytes).step_by(8);
        let buffer: Vec<u8> = words
            .flat_map(|byte| poked(seed, byte).to_ne_bytes())
            .collect();
        let result = self.memory_of(who)?.write_at(&buffer, ARENA + at);
        Ok(Observed::one(match result {
            Ok(written) => Seen::Number(written as u64),
            Err(error) => Seen::Errno(error.raw_os_error().unwrap_or(0)),
        }))
    }
}
