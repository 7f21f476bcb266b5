// SPDX-License-Identifier: GPL-2.0
//! Mounts.

use std::ffi::CString;
use std::io;

fn c(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(io::Error::other)
}

/// mount(2), with the directory made first.
pub fn mount(
    source: &str,
    target: &str,
    kind: &str,
    flags: libc::c_ulong,
    options: &str,
) -> io::Result<()> {
    // A missing directory on a read-only file system shows as ENOENT of the mount itself.
    let _ = std::fs::create_dir_all(target);
    let (source, path, kind, options) = (c(source)?, c(target)?, c(kind)?, c(options)?);
    // SAFETY: all pointers are NUL-terminated strings that outlive the call.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            path.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(io::Error::new(
        error.kind(),
        format!("mount on {target}: {error}"),
    ))
}

/// umount(2).
pub fn unmount(target: &str) -> io::Result<()> {
    let path = c(target)?;
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    match unsafe { libc::umount(path.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes `target` the root directory, moving /dev, /proc and /sys along; the old root is gone from view.
pub fn switch_root(target: &str) -> io::Result<()> {
    for name in ["/dev", "/proc", "/sys"] {
        mount(name, &format!("{target}{name}"), "", libc::MS_MOVE, "")?;
    }
    std::env::set_current_dir(target)?;
    mount(".", "/", "", libc::MS_MOVE, "")?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")
}
