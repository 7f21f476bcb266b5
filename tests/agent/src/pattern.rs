// SPDX-License-Identifier: GPL-2.0
//! A test pattern: every 64-bit word tells its own position.
//!
//! Word `i` holds `seed * S + i * K` with odd constants, so within one seed all words differ: a page that shows
//! up in another page's place, a lost write and a page of zeros are all seen. One addition per word keeps it
//! fast under emulation.

use crate::case::{Failure, Outcome};

const K: u64 = 0x9E37_79B9_7F4A_7C15;
const S: u64 = 0xD6E8_FEB8_6659_FD93;

/// A pattern over a range of positions.
#[derive(Debug, Clone, Copy)]
pub struct Pattern {
    seed: u64,
}

impl Pattern {
    /// Different seeds differ in every word.
    pub fn new(seed: u64) -> Self {
        Pattern { seed }
    }

    /// The word at a byte position.
    pub fn word(self, position: u64) -> u64 {
        (self.seed.wrapping_mul(S)).wrapping_add((position / 8).wrapping_mul(K))
    }

    /// Writes the pattern; `position` is that of the first word, in bytes from the pattern's start.
    pub fn fill(self, words: *mut [u64], position: u64) {
        let mut value = self.word(position);
        let mut pointer = words.cast::<u64>();
        for _ in 0..words.len() {
            // SAFETY: the loop stays inside the slice, which the caller took from a live mapping. Volatile, so
            // that not a single store is left out.
            unsafe {
                pointer.write_volatile(value);
                pointer = pointer.add(1);
            }
            value = value.wrapping_add(K);
        }
    }

    /// Reads the pattern back; the failure names the first position that differs and how many do.
    pub fn verify(self, words: *const [u64], position: u64) -> Outcome {
        let mut value = self.word(position);
        let mut pointer = words.cast::<u64>();
        let mut wrong = 0u64;
        let mut first = None;
        for index in 0..words.len() as u64 {
            // SAFETY: as in `fill`.
            let found = unsafe { pointer.read_volatile() };
            if found != value {
                wrong += 1;
                first.get_or_insert((position + index * 8, found, value));
            }
            // SAFETY: one past the last word at most.
            pointer = unsafe { pointer.add(1) };
            value = value.wrapping_add(K);
        }
        match first {
            None => Ok(()),
            Some((at, found, expected)) => Err(Failure::Fail(format!(
                "pattern {}: {wrong} words differ, the first at {at:#x}: {found:#x} instead of {expected:#x}{}",
                self.seed,
                self.explain(found)
            ))),
        }
    }

    /// Says whose word that is, when it is one of this pattern's.
    fn explain(self, found: u64) -> String {
        // K is odd, so it has an inverse modulo 2^64 (Newton's iteration) and the index can be recovered.
        let mut inverse = K;
        for _ in 0..5 {
            inverse = inverse.wrapping_mul(2u64.wrapping_sub(K.wrapping_mul(inverse)));
        }
        let index = found
            .wrapping_sub(self.seed.wrapping_mul(S))
            .wrapping_mul(inverse);
        match index.checked_mul(8) {
            Some(position) if position < 1 << 46 => format!(", the word of {position:#x}"),
            _ if found == 0 => ", zero".to_owned(),
            _ => String::new(),
        }
    }
}

/// Fails unless every byte is zero; the failure names the first word that is not and how many are not.
pub fn check_zeros(words: *const [u64]) -> Outcome {
    let pointer = words.cast::<u64>();
    let mut wrong = 0u64;
    let mut first = None;
    for index in 0..words.len() {
        // SAFETY: the loop stays inside the slice, which the caller took from a live mapping. Volatile, as others
        // may write there.
        let found = unsafe { pointer.add(index).read_volatile() };
        if found != 0 {
            wrong += 1;
            first.get_or_insert((index * 8, found));
        }
    }
    match first {
        None => Ok(()),
        Some((at, found)) => Err(Failure::Fail(format!(
            "{wrong} words are not zero, the first at {at:#x}: {found:#x}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verify_accepts_what_fill_wrote_and_names_a_swapped_page() {
        let pattern = Pattern::new(7);
        let mut memory = vec![0u64; 4096];
        pattern.fill(&mut memory[..], 0x10000);
        assert!(pattern.verify(&memory[..], 0x10000).is_ok());
        assert!(Pattern::new(8).verify(&memory[..], 0x10000).is_err());
        let (left, right) = memory.split_at_mut(512);
        left.swap_with_slice(&mut right[..512]);
        let Err(Failure::Fail(text)) = pattern.verify(&memory[..], 0x10000) else {
            panic!("swap not seen")
        };
        assert!(text.contains("1024 words differ"), "{text}");
        assert!(text.contains("the word of 0x11000"), "{text}");
    }

    #[test]
    fn a_single_byte_is_no_zero() {
        let mut memory = vec![0u64; 512];
        assert!(check_zeros(&memory[..]).is_ok());
        memory[511] = 1 << 56;
        let Err(Failure::Fail(text)) = check_zeros(&memory[..]) else {
            panic!("byte not seen")
        };
        assert!(
            text.starts_with("1 words are not zero, the first at 0xff8:"),
            "{text}"
        );
    }
}
