// SPDX-License-Identifier: GPL-2.0
//! Attributes: small text files of the kernel, in sysfs, debugfs and procfs.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;

use crate::case::{Failure, Named, Outcome};

/// An attribute's text without the newline.
pub fn read(path: impl AsRef<Path>) -> Outcome<String> {
    let path = path.as_ref();
    let text = fs::read_to_string(path).named(path.display())?;
    Ok(text.trim_end().to_owned())
}

/// An attribute that holds one number, decimal or 0x-hexadecimal.
pub fn read_number(path: impl AsRef<Path>) -> Outcome<u64> {
    let path = path.as_ref();
    let text = read(path)?;
    number(&text)
        .ok_or_else(|| Failure::Fail(format!("{}: not a number: '{text}'", path.display())))
}

/// Parses decimal or 0x-hexadecimal.
pub fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => u64::from_str(text).ok(),
    }
}

/// The number behind this name in /proc/vmstat or /proc/PID/status.
pub fn number_in(file: impl AsRef<Path>, name: &str) -> Outcome<u64> {
    let file = file.as_ref();
    let text = read(file)?;
    let value = text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()?.trim_end_matches(':') == name).then(|| words.next()?.parse().ok())?
    });
    value.ok_or_else(|| Failure::Fail(format!("{} has no {name}", file.display())))
}

/// Writes in one write(2), as the kernel's attributes want it; the errno stays visible to the caller.
pub fn try_write(path: impl AsRef<Path>, text: &str) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}

/// Writes in one write(2); the failure names the attribute and what was written.
pub fn write(path: impl AsRef<Path>, text: &str) -> Outcome {
    let path = path.as_ref();
    try_write(path, text).named(format_args!("writing '{text}' to {}", path.display()))
}

/// The last part of the path a symbolic link leads to, `None` when there is no link.
pub fn link_name(path: impl AsRef<Path>) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}
