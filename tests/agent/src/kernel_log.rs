// SPDX-License-Identifier: GPL-2.0
//! The kernel log, and the gate that no case gets past with a complaint of the kernel.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;

/// Texts by which the kernel says that something is wrong. A case may expect some of them.
pub const COMPLAINTS: &[&str] = &[
    "WARNING:",
    "BUG:",
    "Oops",
    "bad pgd",
    "bad p4d",
    "bad pud",
    "bad pmd",
    "Bad page",
    "Bad rss-counter",
    "possible recursive locking",
    "possible circular locking",
    "INFO: task",
    "INFO: rcu",
    "rcu: INFO",
    "soft lockup",
    "hard LOCKUP",
    "general protection",
    "Call Trace",
    "UBSAN:",
    "KASAN:",
    "KFENCE:",
    "refcount_t:",
    "list_add corruption",
    "list_del corruption",
    "page allocation failure",
    "Out of memory:",
    "Kernel panic",
    "unreferenced object",
    "leaked",
    "suspected memory leaks",
    "kernel BUG at",
    "ODEBUG:",
    "INFO: trying to register non-static key",
    "INFO: lockdep is turned off",
    "turning off the locking correctness validator",
    "DEBUG_LOCKS_WARN_ON",
    "rust_kernel: panicked",
    "panicked at",
];

/// The slab allocator's way to say it; inside a line it could be the end of a longer word.
const COMPLAINT_AT_START: &str = "BUG ";

/// A reader of /dev/kmsg that has seen everything up to some record.
pub struct KernelLog {
    file: File,
}

impl KernelLog {
    /// Starts behind the newest record.
    pub fn open() -> io::Result<Self> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")?;
        use std::io::Seek;
        let mut log = KernelLog { file };
        log.file.seek(io::SeekFrom::End(0))?;
        Ok(log)
    }

    /// The messages since the last call, one line each.
    pub fn read_new(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut record = [0u8; 8192];
        loop {
            match self.file.read(&mut record) {
                Ok(0) => break,
                // "priority,sequence,time,flags;message\n KEY=value\n"
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    if let Some((_, message)) = text.split_once(';') {
                        lines.push(message.lines().next().unwrap_or("").to_owned());
                    }
                }
                // EPIPE: records were overwritten before they were read; the position is valid again.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {
                    lines.push("BUG: the kernel log overflowed while a case ran".to_owned());
                }
                Err(_) => break,
            }
        }
        lines
    }
}

/// The lines that are complaints, those the case expects left out.
pub fn complaints<'a>(lines: &'a [String], expected: &[&str]) -> Vec<&'a str> {
    let complains = |line: &str| {
        line.starts_with(COMPLAINT_AT_START) || COMPLAINTS.iter().any(|text| line.contains(text))
    };
    let expects = |line: &str| expected.iter().any(|text| line.contains(text));
    lines
        .iter()
        .map(String::as_str)
        .filter(|line| complains(line) && !expects(line))
        .collect()
}

/// Puts a line into the kernel log, and so onto the console.
pub fn note(text: &str) {
    if let Ok(mut file) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        // A lost marker makes the console log harder to read and nothing else.
        let _ = file.write_all(format!("dmem-agent: {text}\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_found_and_expected_ones_left_out() {
        let lines: Vec<String> = [
            "usb: fine",
            "WARNING: CPU: 1 at mm/x.c",
            "foo: bad pud (f00)",
        ]
        .map(String::from)
        .into();
        assert_eq!(complaints(&lines, &[]), [&lines[1], &lines[2]]);
        assert_eq!(complaints(&lines, &["bad pud"]), [&lines[1]]);
    }
}
