// SPDX-License-Identifier: GPL-2.0

//! A checksum over some pages of a device: whether its memory is still the same, without reading all of it.
//!
//! Which pages are looked at follows from the record's token. It tells memory that was handed to somebody else, lent to
//! the host, scrubbed or overwritten in between; a change to a few pages it tells with the chance of meeting one.

use std::fmt::Write;
use std::fs::File;
use std::path::Path;

use dmem_plan::PAGE_SIZE;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::failed;
use crate::bus::{total, Identity, Range};
use crate::error::Result;
use crate::ffi::window::Window;
use crate::name::PartName;

/// Pages that are looked at, besides the first and the last.
const PAGES: u64 = 1024;

/// The checksum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sample(pub String);

/// Looks at a device, which has to be bound.
pub fn of(device: &Identity, ranges: &[Range], name: &PartName, token: &str) -> Result<Sample> {
    let path = Path::new("/dev").join(device.device.to_string());
    let look = || {
        let size = total(ranges.iter());
        let window = Window::new(&File::open(&path)?, size)?;
        let mut digest = Sha256::new();
        let mut page = [0; PAGE_SIZE as usize];
        for number in pages(size / PAGE_SIZE, name, token) {
            window.read(number * PAGE_SIZE, &mut page)?;
            digest.update(page);
        }
        Ok(Sample(hex(&digest.finalize())))
    };
    look().map_err(failed("look at the memory of", &path))
}

/// The numbers of the pages to look at, of so many.
fn pages(count: u64, name: &PartName, token: &str) -> impl Iterator<Item = u64> {
    let seed = format!("{token} {name}");
    let any = move |index: u64| {
        let digest = Sha256::digest(format!("{seed} {index}"));
        let bytes = digest.iter().take(8);
        bytes.fold(0, |number, byte| (number << 8) | u64::from(*byte)) % count.max(1)
    };
    let ends = [0, count.saturating_sub(1)];
    ends.into_iter()
        .chain((0..PAGES).map(any))
        .take_while(move |_| count > 0)
}

/// Bytes as text.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // A String takes everything.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_spread_over_the_device_and_differ_by_token() {
        let name: PartName = "vm1".parse().unwrap();
        let of = |count, token| pages(count, &name, token).collect::<Vec<u64>>();
        let some = of(1 << 18, "a");
        assert_eq!(some.len(), 1026);
        assert_eq!(&some[..2], [0, (1 << 18) - 1]);
        assert!(some.iter().all(|page| *page < 1 << 18));
        assert_eq!(some, of(1 << 18, "a"));
        assert_ne!(some, of(1 << 18, "b"));
        // Each sixteenth of the device is looked at.
        for part in 0..16 {
            assert!(some.iter().any(|page| page >> 14 == part), "{part}");
        }
        assert!(of(0, "a").is_empty());
    }
}
