// SPDX-License-Identifier: GPL-2.0
//! Another process's memory, by the two ways there are: /proc/PID/mem and ptrace(2).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::case::{Named, Outcome};

/// /proc/PID/mem, opened for reading and writing.
pub struct Memory {
    file: File,
}

impl Memory {
    /// Opens it; the errno stays visible to the caller.
    pub fn try_open(pid: libc::pid_t) -> io::Result<Memory> {
        let path = format!("/proc/{pid}/mem");
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Memory { file })
    }

    /// Opens it.
    pub fn open(pid: libc::pid_t) -> Outcome<Memory> {
        Memory::try_open(pid).named(format_args!("/proc/{pid}/mem"))
    }

    /// Reads in one read(2): what it got, which may be less.
    pub fn read(&self, address: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let count = self.file.read_at(&mut bytes, address)?;
        bytes.truncate(count);
        Ok(bytes)
    }

    /// Writes in one write(2): how much was written.
    pub fn write(&self, address: u64, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(bytes, address)
    }
}

/// A process stopped by ptrace, let go on drop.
pub struct Tracee {
    pid: libc::pid_t,
}

impl Tracee {
    /// Attaches to a process of this one's and waits until it has stopped.
    pub fn attach(pid: libc::pid_t) -> Outcome<Tracee> {
        request(libc::PTRACE_ATTACH, pid, 0, 0).named(format_args!("attaching to {pid}"))?;
        let tracee = Tracee { pid };
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result.
        if unsafe { libc::waitpid(pid, &mut status, 0) } < 0 {
            return Err(io::Error::last_os_error()).named(format_args!("waiting for {pid}"));
        }
        Ok(tracee)
    }

    /// PTRACE_PEEKDATA: the word at an address.
    pub fn peek(&self, address: u64) -> io::Result<u64> {
        let mut word = 0u64;
        // The system call itself puts the word where the last argument points; only the C library returns it.
        let place = &mut word as *mut u64 as u64;
        // SAFETY: `place` is a valid place for a word.
        let result = unsafe {
            libc::syscall(
                libc::SYS_ptrace,
                libc::PTRACE_PEEKDATA as u64,
                self.pid,
                address,
                place,
            )
        };
        match result {
            0 => Ok(word),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// PTRACE_POKEDATA: writes the word at an address.
    pub fn poke(&self, address: u64, word: u64) -> io::Result<()> {
        request(libc::PTRACE_POKEDATA, self.pid, address, word)
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = request(libc::PTRACE_DETACH, self.pid, 0, 0);
    }
}

/// A request none of whose arguments is an address in this process.
fn request(request: libc::c_uint, pid: libc::pid_t, address: u64, data: u64) -> io::Result<()> {
    // SAFETY: the kernel touches nothing in this process.
    match unsafe { libc::syscall(libc::SYS_ptrace, u64::from(request), pid, address, data) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
