// SPDX-License-Identifier: GPL-2.0

//! Attributes in sysfs: short texts, read and written in one call.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{Mode, OFlags, RawDir};

/// The attribute's text without the line end; `None` where it does not exist or may not be read.
pub fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim_end().to_owned())
}

/// The attribute as a number; `None` too where it is none.
pub fn number<T: FromStr>(path: &Path) -> Option<T> {
    text(path)?.parse().ok()
}

/// The attribute as an address, which the kernel writes as 0x and hexadecimal digits.
pub fn address(path: &Path) -> Option<u64> {
    u64::from_str_radix(text(path)?.strip_prefix("0x")?, 16).ok()
}

/// Last component of a link's target: the name of a driver, for one.
pub fn link_name(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// Calls `each` with name and inode number of every entry of a directory but `.` and `..`. As quick as can be: the
/// directories of regions have as many as there are devices.
pub fn entries(directory: &Path, mut each: impl FnMut(&str, u64)) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = rustix::fs::open(directory, flags, Mode::empty())?;
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(open, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => each(name, entry.ino()),
        }
    }
    Ok(())
}

/// Writes an attribute. Success says that the kernel took the text, not that it did as told.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    // One call: the kernel takes each write() for a text of its own.
    match file.write(text.as_bytes())? {
        written if written == text.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}
