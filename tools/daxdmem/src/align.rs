// SPDX-License-Identifier: GPL-2.0

//! Alignment of a device: the unit in which its ranges are cut, one of the three leaf sizes.

use std::fmt;
use std::str::FromStr;

use dmem_plan::Leaf;

use crate::error::{Error, Result};
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

    /// Refuses sizes that are no multiple of the unit.
    pub fn check(self, size: Size) -> Result<()> {
        let grain = self.grain();
        if size.0 != 0 && size.0 % grain.0 == 0 {
            return Ok(());
        }
        let near = near(size, grain);
        let finer = Align::default_for(Size(Leaf::Pmd.size()));
        let near = match size.0 != 0 && size.0 % finer.grain().0 == 0 {
            true => format!("{near}, or keep the size and choose --align {finer}"),
            false => near,
        };
        Err(Error::Misaligned {
            size,
            align: self,
            grain,
            near,
        })
    }
}

/// The sizes next to one that is no multiple of the unit.
pub fn near(size: Size, unit: Size) -> String {
    let below = size.0 / unit.0 * unit.0;
    match (below, below.checked_add(unit.0)) {
        (0, Some(above)) => Size(above).to_string(),
        (below, Some(above)) => format!("{} or {}", Size(below), Size(above)),
        (below, None) => Size(below).to_string(),
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
    fn sizes_that_do_not_fit_the_grain() {
        let refusal = |size: &str, align: &str| {
            let align: Align = align.parse().unwrap();
            align.check(size.parse().unwrap()).unwrap_err().to_string()
        };
        assert_eq!(
            refusal("1.5G", "1G"),
            "size 1.5G is no multiple of 1G, the unit of devices with align 1G\n\
             Use 1G or 2G, or keep the size and choose --align 2M"
        );
        assert_eq!(
            refusal("3M", "4K"),
            "size 3M is no multiple of 2M, the unit of devices with align 4K\nUse 2M or 4M"
        );
        assert_eq!(
            refusal("1", "2M"),
            "size 1 is no multiple of 2M, the unit of devices with align 2M\nUse 2M"
        );
        assert_eq!(
            refusal("0", "1G"),
            "size 0 is no multiple of 1G, the unit of devices with align 1G\nUse 1G"
        );
        assert!(refusal("18446744073709551615", "1G").ends_with("\nUse 17179869183G"));
        assert!(Align(Leaf::Pte).check(Size(2 << 20)).is_ok());
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
