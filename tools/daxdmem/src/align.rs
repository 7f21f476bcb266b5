// SPDX-License-Identifier: GPL-2.0

//! Alignment of a device: the unit in which its ranges are cut, one of the three leaf sizes.

use std::fmt;
use std::str::FromStr;

use dmem_plan::Leaf;

use crate::size::Size;

/// A device's alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Align(Leaf);

impl Align {
    /// The alignment of this many bytes, if it is one.
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        Leaf::LARGEST_FIRST
            .into_iter()
            .find(|leaf| leaf.size() == bytes)
            .map(Align)
    }

    /// For a device of this size when none is asked for: 1 GiB if the size allows it, for the sake of 1 GiB leaves in
    /// every byte; else 2 MiB.
    pub fn default_for(size: Size) -> Self {
        if size.0 % Leaf::Pud.size() == 0 {
            Align(Leaf::Pud)
        } else {
            Align(Leaf::Pmd)
        }
    }

    /// As the leaf of the same size.
    pub fn leaf(self) -> Leaf {
        self.0
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0.size()
    }

    /// The unit of sizes and ranges at this alignment: the kernel allocates in 2 MiB at least
    /// (drivers/dax/bus.c, `alloc_is_aligned`).
    pub fn grain(self) -> Size {
        Size(self.0.size().max(Leaf::Pmd.size()))
    }
}

impl FromStr for Align {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size: Option<Size> = text.parse().ok();
        size.and_then(|size| Align::from_bytes(size.0))
            .ok_or_else(|| format!("'{text}' is no alignment: use 4K, 2M or 1G"))
    }
}

impl fmt::Display for Align {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Size(self.bytes()).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_alignments_and_no_other() {
        for (text, leaf) in [
            ("4K", Leaf::Pte),
            ("4096", Leaf::Pte),
            ("2m", Leaf::Pmd),
            ("2MiB", Leaf::Pmd),
            ("1G", Leaf::Pud),
        ] {
            assert_eq!(text.parse(), Ok(Align(leaf)), "{text}");
        }
        for text in ["", "4M", "8K", "2G", "1", "0"] {
            assert_eq!(
                text.parse::<Align>(),
                Err(format!("'{text}' is no alignment: use 4K, 2M or 1G"))
            );
        }
        assert_eq!(Align(Leaf::Pte).to_string(), "4K");
        assert_eq!(Align(Leaf::Pud).to_string(), "1G");
    }

    #[test]
    fn default_and_grain() {
        assert_eq!(Align::default_for(Size(4 << 30)), Align(Leaf::Pud));
        assert_eq!(
            Align::default_for(Size((4 << 30) + (2 << 20))),
            Align(Leaf::Pmd)
        );
        assert_eq!(Align(Leaf::Pte).grain(), Size(2 << 20));
        assert_eq!(Align(Leaf::Pmd).grain(), Size(2 << 20));
        assert_eq!(Align(Leaf::Pud).grain(), Size(1 << 30));
    }
}
