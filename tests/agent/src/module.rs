// SPDX-License-Identifier: GPL-2.0
//! Kernel modules.

use std::ffi::CString;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::case::Outcome;
use crate::command::Command;

/// `MODULE_INIT_COMPRESSED_FILE` of include/uapi/linux/module.h: the kernel unpacks the file itself.
const COMPRESSED: libc::c_int = 4;

/// Loads the module in this file; a module that is loaded already is no error.
pub fn insert(path: &Path) -> io::Result<()> {
    match insert_with(path, "") {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("{}: {error}", path.display()),
        )),
        Ok(()) => Ok(()),
    }
}

/// Loads the module in this file with these parameters, `NAME=VALUE` with blanks between.
pub fn insert_with(path: &Path, parameters: &str) -> io::Result<()> {
    let file = std::fs::File::open(path)?;
    let flags = if path.extension().is_some_and(|e| e == "ko") {
        0
    } else {
        COMPRESSED
    };
    let parameters = CString::new(parameters).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open and the parameter string NUL-terminated; the kernel copies both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            parameters.as_ptr(),
            flags,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Loads a module and what it needs by name, with modprobe: parameters from the command line apply.
pub fn load(name: &str) -> Outcome {
    // On a host that is busy compiling, ten seconds are not enough.
    Command::new("modprobe")
        .arg(name)
        .limit(120)
        .run()
        .map(drop)
}

/// Removes a module; EBUSY and the like come back as an error.
pub fn unload(name: &str) -> io::Result<()> {
    let name = CString::new(name).map_err(io::Error::other)?;
    // SAFETY: the name is NUL-terminated.
    let result = unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether a module is loaded.
pub fn loaded(name: &str) -> bool {
    Path::new("/sys/module")
        .join(name)
        .join("initstate")
        .exists()
}
