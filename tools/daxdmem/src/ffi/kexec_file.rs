// SPDX-License-Identifier: GPL-2.0

//! kexec_file_load(2): the kernel that takes over at the next kexec.

use std::ffi::{c_long, CString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

/// `KEXEC_FILE_UNLOAD` of include/uapi/linux/kexec.h.
const UNLOAD: c_long = 1;

/// Loads a kernel with an initramfs and a command line.
pub fn load(kernel: &File, initrd: &File, command_line: &str) -> io::Result<()> {
    let line = CString::new(command_line).map_err(io::Error::other)?;
    let line = line.as_bytes_with_nul();
    // SAFETY: both descriptors are open, and the command line is as long as is said; the kernel copies all of it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            line.len(),
            line.as_ptr(),
            0 as c_long,
        )
    };
    check(result)
}

/// Gives up what was loaded.
pub fn unload() -> io::Result<()> {
    let nothing = std::ptr::null::<u8>();
    // SAFETY: with this flag the kernel looks at no other argument.
    check(unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            -1,
            -1,
            0 as c_long,
            nothing,
            UNLOAD,
        )
    })
}

fn check(result: c_long) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
