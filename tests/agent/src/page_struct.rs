// SPDX-License-Identifier: GPL-2.0
//! The size of `struct page`, from the running kernel itself.

use std::fs::File;
use std::io::Read;

use crate::case::{Failure, Named, Outcome};

/// The notes of /proc/kcore begin right behind its headers, far below this.
const NOTES: usize = 64 << 10;

/// Bytes of one `struct page`: `SIZE(page)` in the kernel's vmcoreinfo, a note in /proc/kcore.
pub fn size() -> Outcome<u64> {
    let mut head = vec![0; NOTES];
    let mut file = File::open("/proc/kcore").named("/proc/kcore")?;
    let mut length = 0;
    while length < head.len() {
        match file.read(&mut head[length..])? {
            0 => break,
            count => length += count,
        }
    }
    let text = String::from_utf8_lossy(&head[..length]);
    let number = text
        .split("SIZE(page)=")
        .nth(1)
        .and_then(|rest| rest.lines().next()?.parse().ok());
    number.ok_or_else(|| Failure::Fail("/proc/kcore: no SIZE(page) among its notes".into()))
}
