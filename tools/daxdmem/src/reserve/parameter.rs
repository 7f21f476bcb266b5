// SPDX-License-Identifier: GPL-2.0

//! The kernel's parameter `memmap=`: what stands on a command line, and what daxdmem puts there.
//!
//! A reservation takes two: `memmap=SIZE$START` keeps the boot code, which places the kernel at random, out of the
//! range, and `memmap=SIZE%START-2+0xefffffff` turns what is reserved then into a dax region (type 2 is "reserved",
//! 0xefffffff "soft reserved"). Read as the kernel reads them: arch/x86/kernel/e820.c, `parse_memmap_one`.

use std::fmt;

use crate::bus::Range;

/// Longest command line that the kernel takes: `COMMAND_LINE_SIZE` less the end mark.
pub const LONGEST: usize = 2047;

/// One setting of a `memmap=` parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Memmap {
    /// `SIZE$START`: reserved.
    Reserved(Range),
    /// `SIZE%START-2+0xefffffff`: what is reserved becomes a dax region.
    Region(Range),
    /// Anything else that is about one range.
    Range {
        /// The range.
        range: Range,
        /// The setting.
        text: String,
        /// Whether the boot code keeps the kernel out of it, which it does for few ranges.
        avoided: bool,
    },
    /// What changes memory as a whole, such as `exactmap`, or a limit: a size alone.
    Whole(String),
}

impl Memmap {
    fn parse(text: &str) -> Memmap {
        let whole = || Memmap::Whole(text.to_owned());
        let Some((len, rest)) = number(text) else {
            return whole();
        };
        let mut letters = rest.chars();
        let sign = letters.next();
        let Some((start, rest)) = number(letters.as_str()) else {
            return whole();
        };
        let range = Range { start, len };
        match (sign, rest) {
            (Some('$'), "") => Memmap::Reserved(range),
            (Some('%'), "-2+0xefffffff") => Memmap::Region(range),
            (Some(sign @ ('@' | '#' | '!' | '%' | '$')), _) => Memmap::Range {
                range,
                text: text.to_owned(),
                avoided: matches!(sign, '#' | '!' | '$'),
            },
            _ => whole(),
        }
    }

    /// Whether the boot code keeps the kernel out of it, as it does for few ranges.
    pub fn is_avoided(&self) -> bool {
        matches!(
            self,
            Memmap::Reserved(_) | Memmap::Range { avoided: true, .. }
        )
    }
}

impl fmt::Display for Memmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Memmap::Reserved(range) => {
                write!(f, "memmap={}${}", Bytes(range.len), Bytes(range.start))
            }
            Memmap::Region(range) => {
                write!(
                    f,
                    "memmap={}%{}-2+0xefffffff",
                    Bytes(range.len),
                    Bytes(range.start)
                )
            }
            Memmap::Range { text, .. } | Memmap::Whole(text) => write!(f, "memmap={text}"),
        }
    }
}

/// The two parameters that make a dax region of a range.
pub fn pair(range: Range) -> String {
    format!("{} {}", Memmap::Reserved(range), Memmap::Region(range))
}

/// The `memmap=` settings of a command line, sorted out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Ranges with both parameters, as daxdmem writes them, in the order of the command line.
    pub pairs: Vec<Range>,
    /// All others.
    pub others: Vec<Memmap>,
}

impl Settings {
    /// Of a kernel's command line.
    pub fn of(line: &str) -> Settings {
        let found = words(line)
            .into_iter()
            .filter_map(value)
            .flat_map(|value| value.split(',').map(Memmap::parse).collect::<Vec<Memmap>>());
        let mut settings = Settings {
            pairs: Vec::new(),
            others: found.collect(),
        };
        while let Some((reserved, region)) = settings.next_pair() {
            if let Memmap::Reserved(range) = settings.others[reserved] {
                settings.pairs.push(range);
            }
            // The second comes later: removed first, it does not move the other.
            settings.others.remove(region);
            settings.others.remove(reserved);
        }
        settings
    }

    /// Only the order that works: a region is made of what is reserved by then.
    fn next_pair(&self) -> Option<(usize, usize)> {
        let all = self.others.iter().enumerate();
        let reserved = all.clone().filter_map(|(index, found)| match found {
            Memmap::Reserved(range) => Some((index, *range)),
            _ => None,
        });
        reserved.into_iter().find_map(|(index, range)| {
            let region = |(other, found): &(usize, &Memmap)| {
                *other > index && **found == Memmap::Region(range)
            };
            Some((index, all.clone().find(region)?.0))
        })
    }
}

/// The command line without the pairs of [`Settings::pairs`]; everything else stays as it is, byte for byte.
pub fn without_pairs(line: &str) -> String {
    let pairs = Settings::of(line).pairs;
    let is_ours = |word: &str| {
        value(word).is_some_and(|text| match Memmap::parse(text) {
            Memmap::Reserved(range) | Memmap::Region(range) => pairs.contains(&range),
            _ => false,
        })
    };
    let mut kept = String::new();
    let mut rest = line;
    for word in words(line) {
        let Some(at) = rest.find(word) else { continue };
        let (gap, after) = rest.split_at(at);
        rest = &after[word.len()..];
        if is_ours(word) {
            // One of the gaps beside it goes with it.
            if gap.contains('\n') {
                kept.push_str(gap);
            }
            continue;
        }
        kept.push_str(gap);
        kept.push_str(word);
    }
    kept.push_str(rest);
    kept
}

/// Whether a word stands on the command line.
pub fn has_word(line: &str, wanted: &str) -> bool {
    words(line).contains(&wanted)
}

fn value(word: &str) -> Option<&str> {
    Some(word.strip_prefix("memmap=")?.trim_matches('"'))
}

/// The parameters of a command line: parted by blanks, but not within double quotes; those after `--` are init's.
pub fn words(line: &str) -> Vec<&str> {
    let mut quoted = false;
    line.split(move |c: char| {
        quoted ^= c == '"';
        c.is_ascii_whitespace() && !quoted
    })
    .filter(|word| !word.is_empty())
    .take_while(|word| *word != "--")
    .collect()
}

/// A number as the kernel reads it (lib/cmdline.c, `memparse`), and what follows.
fn number(text: &str) -> Option<(u64, &str)> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    let end = digits
        .find(|c: char| !c.is_digit(radix))
        .unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    let number = u64::from_str_radix(digits, radix).ok()?;
    let shift = match rest.chars().next().map(|c| c.to_ascii_uppercase()) {
        Some('K') => 10,
        Some('M') => 20,
        Some('G') => 30,
        Some('T') => 40,
        Some('P') => 50,
        Some('E') => 60,
        _ => return Some((number, rest)),
    };
    Some((number.checked_mul(1 << shift)?, &rest[1..]))
}

/// The range of a size and a start, each as the kernel reads them.
pub fn range(size: &str, start: &str) -> Option<Range> {
    let (len, _) = number(size).filter(|(_, rest)| rest.is_empty())?;
    let (start, _) = number(start).filter(|(_, rest)| rest.is_empty())?;
    Some(Range { start, len })
}

/// Whole units only: the kernel reads no fractions.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "G"), (20, "M"), (10, "K")];
        let fits = |(shift, _): &(u32, &str)| self.0 % (1 << shift) == 0;
        match units.into_iter().find(fits) {
            Some((shift, letter)) => write!(f, "{}{letter}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn range(start: u64, len: u64) -> Range {
        Range { start, len }
    }

    #[test]
    fn pairs_are_written_as_they_were_tried() {
        assert_eq!(
            pair(range(4 * GIB, 60 * GIB)),
            "memmap=60G$4G memmap=60G%4G-2+0xefffffff"
        );
        assert_eq!(
            pair(range(4 * GIB + GIB / 2, GIB + GIB / 8)),
            "memmap=1152M$4608M memmap=1152M%4608M-2+0xefffffff"
        );
    }

    #[test]
    fn pairs_are_found_among_others() {
        let line = "quiet memmap=2G$4G memmap=64M!0x100000000,1M#2M memmap=2048M%4G-2+0xefffffff \
                    x=\"a memmap=1G$9G\" memmap=60GG memmap=1G$8G -- memmap=3G$3G";
        let settings = Settings::of(line);
        assert_eq!(settings.pairs, [range(4 * GIB, 2 * GIB)]);
        let texts: Vec<String> = settings.others.iter().map(Memmap::to_string).collect();
        assert_eq!(
            texts,
            [
                "memmap=64M!0x100000000",
                "memmap=1M#2M",
                "memmap=60GG",
                "memmap=1G$8G"
            ]
        );
        let avoided: Vec<bool> = settings.others.iter().map(Memmap::is_avoided).collect();
        assert_eq!(avoided, [true, true, false, true]);
    }

    #[test]
    fn half_a_pair_is_no_pair() {
        for line in [
            "memmap=2G$4G",
            "memmap=2G%4G-2+0xefffffff",
            "memmap=2G%4G-2+0xefffffff memmap=2G$4G",
            "memmap=2G$4G memmap=1G%4G-2+0xefffffff",
            "memmap=2G$4G memmap=2G%4G-1+0xefffffff",
        ] {
            assert_eq!(Settings::of(line).pairs, [], "{line}");
            assert_eq!(without_pairs(line), line);
        }
    }

    #[test]
    fn numbers_as_the_kernel_reads_them() {
        assert_eq!(number("60G$4G"), Some((60 * GIB, "$4G")));
        assert_eq!(number("0x10k,"), Some((0x4000, ",")));
        assert_eq!(number("010"), Some((8, "")));
        assert_eq!(number("0"), Some((0, "")));
        for text in ["", "G", "99999999999999999999", "99999999E", "exactmap"] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn the_rest_of_a_line_stays() {
        let line = "root=/dev/vda1 ro  memmap=2G$4G memmap=2G%4G-2+0xefffffff quiet memmap=1M$1M\n";
        assert_eq!(
            without_pairs(line),
            "root=/dev/vda1 ro quiet memmap=1M$1M\n"
        );
        assert_eq!(without_pairs("a b\n"), "a b\n");
        assert_eq!(
            without_pairs("memmap=2G$4G memmap=2G%4G-2+0xefffffff\n"),
            "\n"
        );
    }
}
