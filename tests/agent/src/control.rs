// SPDX-License-Identifier: GPL-2.0
//! The control port: the line protocol with the runner on the host.
//!
//! Lines to the host are report lines, forwarded, or requests, which start with `@` and are answered by
//! `<byte count>\n<payload>`. The port is a virtio-serial port that can be open once only, so the running
//! case inherits PID 1's descriptor; only one of the two talks at a time, except for diagnostics, each of
//! which is one write(2) and stays whole.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::case::{Failure, Outcome};
use crate::cmdline::patient;

/// The name the runner gives the port.
const NAME: &str = "dmem.control";
/// Names the inherited descriptor to the process of a case.
pub const FD_VARIABLE: &str = "DMEM_CONTROL_FD";

/// One end of the control port.
pub struct Control {
    file: File,
}

impl Control {
    /// Opens the port, which appears a little after the kernel has started init.
    pub fn open() -> io::Result<Self> {
        let deadline = Instant::now() + patient(Duration::from_secs(10));
        loop {
            match find() {
                Some(path) => {
                    return Ok(Control {
                        file: File::options().read(true).write(true).open(path)?,
                    })
                }
                None if Instant::now() > deadline => {
                    return Err(io::Error::other(format!(
                        "no virtio-serial port is named {NAME}"
                    )))
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// The port as PID 1 left it open for the process of a case.
    pub fn inherited() -> Outcome<Self> {
        let fd = std::env::var(FD_VARIABLE)
            .ok()
            .and_then(|text| text.parse::<RawFd>().ok());
        let Some(fd) = fd else {
            return Err(Failure::Fail(format!(
                "{FD_VARIABLE} names no descriptor: cases are started by PID 1"
            )));
        };
        // SAFETY: PID 1 opened the descriptor for this process, and nothing here ever closes it.
        let file = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
        Ok(Control { file: file.into() })
    }

    /// A second handle, for another thread's report lines.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Control {
            file: self.file.try_clone()?,
        })
    }

    /// A duplicate of the descriptor that survives exec, for [`Control::inherited`].
    pub fn duplicate_for_child(&self) -> io::Result<RawFd> {
        // SAFETY: the descriptor is open; dup clears close-on-exec.
        let fd = unsafe { libc::dup(self.file.as_raw_fd()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(fd)
    }

    /// Sends one report line.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        self.file.write_all(format!("{text}\n").as_bytes())
    }

    /// Sends a request and waits for the reply's payload.
    pub fn request(&mut self, text: &str) -> io::Result<String> {
        self.line(&format!("@{text}"))?;
        let mut count = String::new();
        loop {
            match self.byte()? {
                b'\n' => break,
                byte => count.push(char::from(byte)),
            }
        }
        let count: usize = count
            .parse()
            .map_err(|_| io::Error::other(format!("bad reply length '{count}'")))?;
        let mut payload = vec![0; count];
        self.file.read_exact(&mut payload)?;
        String::from_utf8(payload).map_err(io::Error::other)
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.file.read_exact(&mut byte)?;
        Ok(byte[0])
    }
}

fn find() -> Option<PathBuf> {
    let ports = std::fs::read_dir("/sys/class/virtio-ports").ok()?;
    let port = ports.flatten().find(|port| {
        std::fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim_end() == NAME)
    })?;
    let path = Path::new("/dev").join(port.file_name());
    path.exists().then_some(path)
}
