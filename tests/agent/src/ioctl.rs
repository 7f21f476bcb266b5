// SPDX-License-Identifier: GPL-2.0
//! ioctl(2), for interfaces that take a number or the address of a value, and make descriptors.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

/// An ioctl with what the request demands: a number, or the address of a live value of its type.
pub fn call(file: &File, request: libc::Ioctl, argument: usize) -> io::Result<i32> {
    // SAFETY: the callers pass what the request is for, and keep it until this returns.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, argument) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// As [`call`], for a request that answers with a new descriptor.
pub fn make(file: &File, request: libc::Ioctl, argument: usize) -> io::Result<File> {
    let fd = call(file, request, argument)?;
    // SAFETY: the kernel has just made the descriptor for this process.
    Ok(unsafe { File::from_raw_fd(fd) })
}
