// SPDX-License-Identifier: GPL-2.0
//! PID 1 of a first-level VM: prepares the system and runs one case after the other.
//!
//! A case runs in a process of its own. Its output becomes diagnostics; its verdict needs a clean exit *and*
//! a kernel log without complaints. After a failed case the runner throws the VM away, so there is no
//! cleaning up here beyond stray processes.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::case::{Case, Failure, Outcome};
use crate::control::{Control, FD_VARIABLE};
use crate::kernel_log::{complaints, note, KernelLog};
use crate::{cases, cmdline, mount, payload, reset, sample, sysfs};

/// The command line word that starts this part.
pub const ARGUMENT: &str = "supervise";
/// Where this program lies in the first-level VM.
pub const PROGRAM: &str = "/run/dmem/agent";

const REASON: &str = "/run/dmem/reason";
const PASS: i32 = 0;
const SKIP: i32 = 4;

/// Runs as PID 1 until the runner has no more cases, then powers off.
pub fn main() -> ExitCode {
    match supervise() {
        Ok(()) => power_off(),
        Err(Failure::Fail(reason) | Failure::Skip(reason)) => {
            // The end of PID 1 is a panic, and a panic is what the runner looks for.
            eprintln!("dmem-agent: PID 1 gives up: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn supervise() -> Outcome {
    let mut log = KernelLog::open()?;
    prepare()?;
    if cmdline::value("dmem.mode").as_deref() == Some("shell") {
        return shell();
    }
    let mut control = Control::open()?;
    note("ready");
    loop {
        let next = control.request("next")?;
        if next.is_empty() {
            return Ok(());
        }
        let (name, resets) = next.split_once(' ').unwrap_or((&next, "0"));
        std::env::set_var(reset::VARIABLE, resets);
        match cases::all().find(|case| case.name == name) {
            Some(case) => run(case, &mut control, &mut log)?,
            None => control.line(&format!("not ok - {name} # no such case in this agent"))?,
        }
    }
}

fn prepare() -> Outcome {
    note("root file system is there");
    std::env::set_var(
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    );
    std::env::set_var("HOME", "/root");
    mount::mount("tmp", "/tmp", "tmpfs", 0, "mode=1777")?;
    mount::mount("shm", "/dev/shm", "tmpfs", 0, "mode=1777")?;
    mount::mount("devpts", "/dev/pts", "devpts", 0, "")?;
    mount::mount("debugfs", "/sys/kernel/debug", "debugfs", 0, "")?;
    mount::mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, "")?;
    sysfs::write("/proc/sys/kernel/hostname", "lab")?;
    payload::install()?;
    crate::module::load("dax_hmem")?;
    crate::module::load("device_dax")?;
    if payload::has_module() {
        crate::module::load(payload::MODULE)?;
    }
    Ok(())
}

fn run(case: &Case, control: &mut Control, log: &mut KernelLog) -> Outcome {
    note(&format!("case {} begins", case.name));
    let begin = Instant::now();
    let _ = fs::remove_file(REASON);
    let ended = run_process(case, control);
    let seconds = begin.elapsed().as_secs_f64();
    let lines = log.read_new();
    let found = complaints(&lines, case.expects_log);
    for line in found.iter().take(8) {
        control.line(&format!("# kernel: {line}"))?;
    }
    let reason = || {
        let text = fs::read_to_string(REASON).unwrap_or_default();
        text.lines().next().unwrap_or("no reason given").to_owned()
    };
    let verdict = match (ended, found.first()) {
        (_, Some(line)) => format!("not ok - {} # the kernel log has: {line}", case.name),
        (Ok(Some(PASS)), None) => format!("ok - {} # time {seconds:.1}s", case.name),
        (Ok(Some(reset::CODE)), None) => {
            note(&format!("case {} has the VM reset", case.name));
            // No answer comes: the reset does.
            control.request("reset")?;
            format!("not ok - {} # the VM was not reset", case.name)
        }
        (Ok(Some(reset::BOOT_CODE)), None) => {
            note(&format!("case {} wants another boot", case.name));
            let parameters = fs::read_to_string(reset::PARAMETERS)?;
            // No answer comes: the end does.
            control.request(&format!("boot {}", parameters.trim()))?;
            format!("not ok - {} # the VM was not booted again", case.name)
        }
        (Ok(Some(reset::KEXEC_CODE)), None) => {
            note(&format!("case {} goes on in another kernel", case.name));
            control.request("kexec")?;
            // SAFETY: plain system calls; what was written has to be on the disks.
            unsafe {
                libc::sync();
                libc::reboot(libc::RB_KEXEC);
            }
            format!("not ok - {} # no kernel took over", case.name)
        }
        (Ok(Some(reset::CRASH_CODE)), None) => {
            note(&format!("case {} has the kernel panic", case.name));
            control.request("crash")?;
            // SAFETY: a plain system call.
            unsafe { libc::sync() };
            sysfs::write("/proc/sysrq-trigger", "c")?;
            format!("not ok - {} # the kernel did not panic", case.name)
        }
        (Ok(Some(SKIP)), None) => format!("ok - {} # SKIP {}", case.name, reason()),
        (Ok(Some(_)), None) => format!("not ok - {} # {}", case.name, reason()),
        (Ok(None), None) => format!("not ok - {} # the case was killed by a signal", case.name),
        (Err(error), None) => format!(
            "not ok - {} # the case could not be run: {error}",
            case.name
        ),
    };
    note(&format!("case {} ends", case.name));
    control.line(&verdict)?;
    Ok(())
}

/// Runs the case's process, passing its output on; the exit code, `None` if a signal ended it.
fn run_process(case: &Case, control: &mut Control) -> std::io::Result<Option<i32>> {
    let fd = control.duplicate_for_child()?;
    let (reader, writer) = UnixStream::pair()?;
    let mut command = Command::new(PROGRAM);
    command
        .arg("case")
        .arg(case.name)
        .env(FD_VARIABLE, fd.to_string())
        .env(sample::VARIABLE, sample::of(case));
    let stdout = OwnedFd::from(writer.try_clone()?);
    command
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(OwnedFd::from(writer))
        .process_group(0);
    let child = command.spawn();
    // The command holds the pipe's write ends: end of file comes only once they are gone here.
    drop(command);
    // SAFETY: `fd` was made above for the child, which has it by now, and nothing else here uses it.
    unsafe { libc::close(fd) };
    let mut port = control.try_clone()?;
    let forwarder = std::thread::spawn(move || forward(reader, &mut port));
    let code = child?.wait()?.code();
    // A process the case left behind would keep the pipe open.
    if case.dies {
        // No use waiting, and the runner does not wait long for a verdict after an Oops.
        let _ = kill_strays(Duration::ZERO);
    } else {
        kill_strays(cmdline::patient(Duration::from_secs(5)))?;
    }
    forwarder.join().unwrap_or(Ok(()))?;
    Ok(code)
}

/// Turns each line of output into a diagnostic until the last writer is gone.
fn forward(reader: impl Read, control: &mut Control) -> std::io::Result<()> {
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        control.line(&format!("# {}", String::from_utf8_lossy(&line).trim_end()))?;
    }
    Ok(())
}

/// Kills what a case left running, so that it cannot disturb the next one, and waits so long for its end.
fn kill_strays(wait: Duration) -> std::io::Result<()> {
    let deadline = Instant::now() + wait;
    loop {
        // SAFETY: plain system calls. As PID 1, -1 means every other process.
        let left = unsafe {
            libc::kill(-1, libc::SIGKILL);
            libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG)
        };
        if left < 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(std::io::Error::other(
                "a process it started cannot be killed",
            ));
        }
        if left == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The process of one case.
pub fn run_case(name: &str) -> ExitCode {
    let Some(case) = cases::all().find(|case| case.name == name) else {
        return ExitCode::FAILURE;
    };
    let (text, code) = match (case.run)() {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Fail(reason)) => (reason, ExitCode::FAILURE),
        Err(Failure::Skip(reason)) => (reason, ExitCode::from(SKIP as u8)),
    };
    println!("{text}");
    if let Err(error) = fs::write(REASON, &text) {
        eprintln!("{REASON}: {error}");
    }
    code
}

const BANNER: &str = "
A first-level VM of daxdmem's lab: the stock kernel, with driver and tool installed if they were built.
Nothing written here is kept. exit ends the VM; Ctrl-A C switches to QEMU's monitor and back, Ctrl-A X kills it.
";

fn shell() -> Outcome {
    println!("{BANNER}");
    let mut command = Command::new("/bin/bash");
    command.arg("-i").env("TERM", "linux").current_dir("/root");
    let console = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/ttyS0")?;
    command
        .stdin(console.try_clone()?)
        .stdout(console.try_clone()?)
        .stderr(console);
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            libc::ioctl(0, libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
    command.status()?;
    Ok(())
}

/// Ends the VM.
pub fn power_off() -> ExitCode {
    // SAFETY: plain system calls; nothing needs to reach a disk, sync is for the habit of it.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
    ExitCode::FAILURE
}
