// SPDX-License-Identifier: GPL-2.0

//! Sizes in bytes, as people write and read them: `4G`, `512M`, `1.5GiB`, `1073741824`.
//!
//! The letters stand for powers of 1024, in either case. What is printed is exact and can be given back as it is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Size(pub u64);

const UNITS: [(char, u32); 6] = [
    ('E', 60),
    ('P', 50),
    ('T', 40),
    ('G', 30),
    ('M', 20),
    ('K', 10),
];

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No number, or an unknown unit.
    #[error("'{0}' is no size: write a number with K, M, G or T behind it (powers of 1024), like 4G, or plain bytes")]
    Malformed(String),
    /// A fraction that leaves a part of a byte.
    #[error("'{0}' is no whole number of bytes: choose a smaller unit")]
    Fraction(String),
    /// More than 64 bits hold.
    #[error("'{0}' is larger than any memory")]
    TooLarge(String),
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let malformed = || SizeError::Malformed(text.to_owned());
        let digits = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let (whole, fraction) = match number.split_once('.') {
            Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
            Some(_) => return Err(malformed()),
            None => (number, ""),
        };
        if whole.is_empty() || fraction.contains('.') {
            return Err(malformed());
        }
        let shift = shift(unit).ok_or_else(malformed)?;

        let too_large = || SizeError::TooLarge(text.to_owned());
        let scale = 1u128 << shift;
        let bytes = whole
            .parse::<u128>()
            .ok()
            .and_then(|whole| whole.checked_mul(scale))
            .ok_or_else(too_large)?;
        let parts = match fraction {
            "" => 0,
            // 20 digits suffice for any size of 64 bits, and keep the product within 128.
            _ if fraction.len() > 18 => return Err(SizeError::Fraction(text.to_owned())),
            _ => {
                let places = u32::try_from(fraction.len()).map_err(|_| malformed())?;
                let scaled = fraction.parse::<u128>().map_err(|_| malformed())? * scale;
                if scaled % 10u128.pow(places) != 0 {
                    return Err(SizeError::Fraction(text.to_owned()));
                }
                scaled / 10u128.pow(places)
            }
        };
        let bytes = bytes.checked_add(parts).ok_or_else(too_large)?;
        u64::try_from(bytes).map(Size).map_err(|_| too_large())
    }
}

/// log2 of the unit: nothing, `B`, `K`, `KB`, `KiB` and so on.
fn shift(unit: &str) -> Option<u32> {
    let unit = unit.to_ascii_uppercase();
    if unit.is_empty() || unit == "B" {
        return Some(0);
    }
    let mut letters = unit.chars();
    let letter = letters.next()?;
    let (_, shift) = UNITS.into_iter().find(|(name, _)| *name == letter)?;
    matches!(letters.as_str(), "" | "B" | "IB").then_some(shift)
}

impl fmt::Display for Size {
    /// In the largest unit that shows it exactly with at most two decimals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, shift) in UNITS {
            let unit = 1u64 << shift;
            let hundredths = u128::from(self.0 % unit) * 100;
            if self.0 < unit || hundredths % u128::from(unit) != 0 {
                continue;
            }
            let text = match (self.0 / unit, hundredths / u128::from(unit)) {
                (whole, 0) => format!("{whole}{letter}"),
                (whole, tenths) if tenths % 10 == 0 => format!("{whole}.{}{letter}", tenths / 10),
                (whole, hundredths) => format!("{whole}.{hundredths:02}{letter}"),
            };
            return f.pad(&text);
        }
        f.pad(&self.0.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Result<u64, SizeError> {
        text.parse::<Size>().map(|size| size.0)
    }

    #[test]
    fn every_way_to_write_a_size() {
        for text in [
            "4G",
            "4g",
            "4GiB",
            "4gib",
            "4GB",
            "4096M",
            "4194304K",
            "4294967296",
            "4294967296B",
            "4.0G",
        ] {
            assert_eq!(parsed(text), Ok(4 << 30), "{text}");
        }
        assert_eq!(parsed("1.5G"), Ok(3 << 29));
        assert_eq!(parsed("0"), Ok(0));
        assert_eq!(parsed("2T"), Ok(2 << 40));
        assert_eq!(parsed("18446744073709551615"), Ok(u64::MAX));
    }

    #[test]
    fn what_is_no_size() {
        for text in [
            "", "G", "4X", "4 G", "-1", "4..5G", "4.5.6G", ".5G", "4.G", "4GG", "4iB", "0x1000",
            "4Gi b", "é",
        ] {
            assert_eq!(
                parsed(text),
                Err(SizeError::Malformed(text.to_owned())),
                "{text}"
            );
        }
        for text in [
            "18446744073709551616",
            "16E",
            "99999999999999999999999999999999999999999T",
        ] {
            assert_eq!(
                parsed(text),
                Err(SizeError::TooLarge(text.to_owned())),
                "{text}"
            );
        }
        for text in ["1.5", "1.0001K", "0.3333333333333333333G"] {
            assert_eq!(
                parsed(text),
                Err(SizeError::Fraction(text.to_owned())),
                "{text}"
            );
        }
    }

    #[test]
    fn shown_in_the_largest_exact_unit() {
        for (bytes, text) in [
            (0, "0"),
            (1, "1"),
            (4096, "4K"),
            (2 << 20, "2M"),
            (1 << 30, "1G"),
            (3 << 29, "1.5G"),
            (5 << 28, "1.25G"),
            ((1 << 30) + (2 << 20), "1026M"),
            ((4 << 30) + 4096, "4194308K"),
            ((1 << 30) + 1, "1073741825"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn shown_sizes_can_be_given_back(bytes in any::<u64>(), shift in 0u32..64) {
            let size = Size(bytes >> shift << (shift / 2));
            prop_assert_eq!(size.to_string().parse::<Size>(), Ok(size));
        }

        #[test]
        fn no_text_is_a_trap(text in ".{0,40}", number in "[0-9.]{0,45}[a-zA-Z]{0,3}") {
            // Any answer will do; it has to be one.
            let _ = text.parse::<Size>();
            let _ = number.parse::<Size>();
        }
    }
}
