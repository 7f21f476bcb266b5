// SPDX-License-Identifier: GPL-2.0
//! Runs a program and kills it as it is about to change something for the nth time.
//!
//! A seccomp filter stops the program at the system calls that change anything, and at no others: under emulation a
//! stop at every call, as strace needs for this, takes ten times as long.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::case::{Failure, Outcome};

/// The calls that change something. Opening a file can empty it: one that nobody reads before it is renamed.
const CHANGES: &[(libc::c_long, &str)] = &[
    (libc::SYS_write, "write"),
    (libc::SYS_pwrite64, "pwrite64"),
    (libc::SYS_writev, "writev"),
    (libc::SYS_rename, "rename"),
    (libc::SYS_renameat, "renameat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_unlink, "unlink"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_symlink, "symlink"),
    (libc::SYS_symlinkat, "symlinkat"),
    (libc::SYS_link, "link"),
    (libc::SYS_linkat, "linkat"),
    (libc::SYS_mkdir, "mkdir"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_rmdir, "rmdir"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_chmod, "chmod"),
    (libc::SYS_fchmod, "fchmod"),
    (libc::SYS_fchmodat, "fchmodat"),
    (libc::SYS_chown, "chown"),
    (libc::SYS_fchown, "fchown"),
    (libc::SYS_lchown, "lchown"),
    (libc::SYS_fchownat, "fchownat"),
];

/// What became of the program.
#[derive(Debug)]
pub struct Traced {
    /// Exit code; `None` when it was killed.
    pub code: Option<i32>,
    /// The calls it was stopped at, in order; it did not make the last one if it was killed.
    pub calls: Vec<&'static str>,
    /// Standard error.
    pub stderr: String,
}

/// Runs the words, blank-separated, and kills the program at its `nth` change, counted from 1.
pub fn killed_at(nth: usize, words: &str) -> Outcome<Traced> {
    let mut words = words.split_ascii_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // SAFETY: between fork and exec the closure makes system calls only, on memory of its own.
    unsafe { command.pre_exec(be_traced) };
    let mut child = command.spawn()?;
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;

    // Stopped at its exec.
    let mut status = wait(pid)?;
    let options = libc::PTRACE_O_TRACESECCOMP | libc::PTRACE_O_EXITKILL;
    ptrace(libc::PTRACE_SETOPTIONS, pid, libc::c_long::from(options))?;
    let mut calls = Vec::new();
    while libc::WIFSTOPPED(status) {
        let mut signal = 0;
        if status >> 8 == libc::SIGTRAP | (libc::PTRACE_EVENT_SECCOMP << 8) {
            calls.push(call(pid)?);
            if calls.len() == nth {
                // SAFETY: the child is stopped, so the id is still its own.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                status = wait(pid)?;
                continue;
            }
        } else if libc::WSTOPSIG(status) != libc::SIGTRAP {
            signal = libc::WSTOPSIG(status);
        }
        ptrace(libc::PTRACE_CONT, pid, libc::c_long::from(signal))?;
        status = wait(pid)?;
    }
    let mut stderr = String::new();
    if let Some(mut pipe) = child.stderr.take() {
        pipe.read_to_string(&mut stderr)?;
    }
    let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
    Ok(Traced {
        code,
        calls,
        stderr,
    })
}

/// In the child: asks to be traced, and to be stopped at [`CHANGES`].
fn be_traced() -> io::Result<()> {
    let statement = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut filter = [statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0);
        2 * CHANGES.len() + 2];
    // The number of the call, at offset 0 of struct seccomp_data.
    filter[0] = statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0);
    for (index, (number, _)) in CHANGES.iter().enumerate() {
        let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        filter[2 * index + 1] = statement(equal, *number as u32, 0, 1);
        filter[2 * index + 2] =
            statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_TRACE, 0, 0);
    }
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    ptrace(libc::PTRACE_TRACEME, 0, 0)?;
    // SAFETY: the program and its filter outlive the call, which copies them.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn ptrace(request: libc::c_uint, pid: libc::pid_t, data: libc::c_long) -> io::Result<()> {
    // SAFETY: none of the requests made here takes an address in this process.
    let result = unsafe { libc::ptrace(request, pid, 0usize, data) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn wait(pid: libc::pid_t) -> io::Result<i32> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    if unsafe { libc::waitpid(pid, &mut status, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(status)
}

/// Name of the call at which the child is stopped.
fn call(pid: libc::pid_t) -> Outcome<&'static str> {
    // SAFETY: all-zero is a valid value of these plain numbers.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: the child is stopped; the request fills in `registers`, which is as large as it writes.
    let result = unsafe { libc::ptrace(libc::PTRACE_GETREGS, pid, 0usize, &mut registers) };
    if result < 0 {
        return Err(io::Error::last_os_error().into());
    }
    let found = CHANGES
        .iter()
        .find(|(number, _)| *number as u64 == registers.orig_rax);
    match found {
        Some((_, name)) => Ok(name),
        None => Err(Failure::Fail(format!(
            "stopped at system call {}",
            registers.orig_rax
        ))),
    }
}
