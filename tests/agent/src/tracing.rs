// SPDX-License-Identifier: GPL-2.0
//! Trace events, above all of the driver under test, through tracefs and perf.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::FromRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::case::{Named, Outcome};
use crate::sysfs;

const TRACEFS: &str = "/sys/kernel/tracing";

/// Events that are on; all of them are off, and what was traced is gone, when it is dropped.
pub struct Tracing(Vec<PathBuf>);

/// An event's directory, or with an empty name that of all.
pub fn event(name: &str) -> PathBuf {
    Path::new(TRACEFS).join("events/dax_dmem").join(name)
}

impl Tracing {
    /// Switches on the event of that name, all of the driver's if it is empty.
    pub fn start(name: &str) -> Outcome<Tracing> {
        sysfs::write(Path::new(TRACEFS).join("trace"), "0")?;
        Tracing(Vec::new()).on(event(name))
    }

    /// Switches on one of the kernel's own as well: `GROUP/NAME`.
    pub fn with(self, name: &str) -> Outcome<Tracing> {
        self.on(Path::new(TRACEFS).join("events").join(name))
    }

    fn on(mut self, event: PathBuf) -> Outcome<Tracing> {
        self.0.push(event.join("enable"));
        sysfs::write(&self.0[self.0.len() - 1], "1")?;
        Ok(self)
    }

    /// What was traced since the last call: of each event its name and its text, in the order in which they came.
    pub fn lines(&self) -> Outcome<Vec<String>> {
        let pipe = Path::new(TRACEFS).join("trace_pipe");
        let mut options = OpenOptions::new();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut pipe = options.open(pipe)?;
        let mut text = Vec::new();
        match pipe.read_to_end(&mut text) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
            _ => {}
        }
        let text = String::from_utf8_lossy(&text);
        // `TASK-PID [CPU] FLAGS TIME: EVENT: TEXT`
        let line = |line: &str| {
            let (_, event) = line.split_once("] ")?.1.split_once(": ")?;
            Some(event.to_owned())
        };
        Ok(text.lines().filter_map(line).collect())
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        // The next case says loudly enough where this fails.
        for enable in &self.0 {
            let _ = fs::write(enable, "0");
        }
        let _ = fs::write(Path::new(TRACEFS).join("trace"), "0");
    }
}

/// Counts an event as perf does, in this process.
pub struct Counter(File);

impl Counter {
    /// From now on.
    pub fn start(name: &str) -> Outcome<Counter> {
        const PERF_TYPE_TRACEPOINT: u32 = 2;
        let id = sysfs::read_number(event(name).join("id"))?;
        // struct perf_event_attr: type, size, config, and nothing else that is not 0.
        let mut attributes = [0u64; 16];
        let size = std::mem::size_of_val(&attributes) as u64;
        attributes[0] = u64::from(PERF_TYPE_TRACEPOINT) | (size << 32);
        attributes[1] = id;
        let (this, any, no_group, flags) = (0, -1, -1, 0);
        // SAFETY: the attributes are as long as they say, and outlive the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                attributes.as_ptr(),
                this,
                any,
                no_group,
                flags,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error()).named(format_args!("perf event {name}"));
        }
        // SAFETY: it is open, and nobody else's.
        Ok(Counter(unsafe { File::from_raw_fd(fd as i32) }))
    }

    /// How many there were.
    pub fn count(&self) -> Outcome<u64> {
        let mut count = [0; 8];
        (&self.0).read_exact(&mut count)?;
        Ok(u64::from_ne_bytes(count))
    }
}
