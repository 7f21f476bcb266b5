// SPDX-License-Identifier: GPL-2.0

//! The command line of the next kernel: that of the running one, and a token.

use std::path::Path;

use crate::bus::Range;
use crate::reserve::parameter::{words, Settings};
use crate::sysfs;

/// What the token stands behind. The kernel takes a word with a dot for the parameter of a module, and keeps silent
/// where there is no such module.
const TOKEN: &str = "daxdmem.kexec=";

/// What a boot loader adds for itself.
const LOADERS: [&str; 2] = ["BOOT_IMAGE=", "initrd="];

/// The running kernel's.
pub fn running() -> String {
    sysfs::text(Path::new("/proc/cmdline")).unwrap_or_default()
}

/// The tokens on a command line.
pub fn tokens(line: &str) -> Vec<String> {
    words(line)
        .into_iter()
        .filter_map(|word| word.strip_prefix(TOKEN))
        .map(str::to_owned)
        .collect()
}

/// The next kernel's: with the same reservation, as everything else stays as it is.
pub fn next(running: &str, append: Option<&str>, token: &str) -> String {
    let stays = |word: &&str| {
        !LOADERS
            .iter()
            .chain([&TOKEN])
            .any(|start| word.starts_with(start))
    };
    let mut next: Vec<&str> = words(running).into_iter().filter(stays).collect();
    next.extend(append.map(str::trim).filter(|text| !text.is_empty()));
    let token = format!("{TOKEN}{token}");
    next.push(&token);
    // What is behind it is init's.
    if let Some((_, rest)) = running.split_once(" -- ") {
        next.extend(["--", rest.trim()]);
    }
    next.join(" ")
}

/// Whether all of a range is kept from the kernel and made a region.
pub fn reserves(line: &str, range: Range) -> bool {
    let pairs = Settings::of(line).pairs;
    pairs
        .iter()
        .any(|pair| pair.start <= range.start && range.last() <= pair.last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_one_has_what_this_one_has() {
        let running = "BOOT_IMAGE=/boot/vmlinuz-7.2 root=/dev/sda1 memmap=4G$4G memmap=4G%4G-2+0xefffffff quiet \
                       dyndbg=\"file x +p\" initrd=\\a daxdmem.kexec=old -- single";
        let next = next(running, Some(" panic=5 "), "new");
        assert_eq!(
            next,
            "root=/dev/sda1 memmap=4G$4G memmap=4G%4G-2+0xefffffff quiet dyndbg=\"file x +p\" panic=5 \
             daxdmem.kexec=new -- single"
        );
        assert_eq!(tokens(&next), ["new"]);
        assert_eq!(tokens(running), ["old"]);
        assert_eq!(tokens("quiet -- daxdmem.kexec=x"), [""; 0]);
        assert_eq!(super::next("", None, "t"), "daxdmem.kexec=t");
    }

    #[test]
    fn what_is_reserved() {
        let line = "memmap=4G$4G memmap=4G%4G-2+0xefffffff memmap=1G$16G";
        let range = |start: u64, len: u64| Range { start, len };
        assert!(reserves(line, range(4 << 30, 4 << 30)));
        assert!(reserves(line, range(5 << 30, 1 << 20)));
        assert!(!reserves(line, range(7 << 30, 2 << 30)));
        assert!(!reserves(line, range(16 << 30, 1 << 30)));
        assert!(!reserves("", range(4 << 30, 1)));
    }
}
