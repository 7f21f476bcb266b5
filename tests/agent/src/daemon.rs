// SPDX-License-Identifier: GPL-2.0
//! The real programs that stand between guests and their disks, directories and networks.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::case::{Named, Outcome};
use crate::check;
use crate::cmdline::patient;

/// A running program that QEMU talks to by sockets, killed on drop.
pub struct Daemon(Child);

impl Daemon {
    /// Starts a program with these arguments, blanks between, and waits until these sockets are there.
    pub fn start(program: &str, arguments: &str, sockets: &[&str]) -> Outcome<Daemon> {
        for socket in sockets {
            // One that is left over would be taken for the new one.
            let _ = std::fs::remove_file(socket);
        }
        let child = Command::new(program)
            .args(arguments.split_ascii_whitespace())
            .stdin(Stdio::null())
            .spawn()
            .named(program)?;
        let mut daemon = Daemon(child);
        let deadline = Instant::now() + patient(Duration::from_secs(60));
        while !sockets.iter().all(|socket| Path::new(socket).exists()) {
            check!(
                daemon.0.try_wait()?.is_none() && Instant::now() < deadline,
                "{program} did not make {sockets:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(daemon)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
