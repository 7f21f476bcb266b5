// SPDX-License-Identifier: GPL-2.0
//! A running first-level VM: its process, console, control port and monitor.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use serde_json::json;

use crate::lab::{Lab, Result};
use crate::machine::Machine;
use crate::memory_file::MemoryFile;
use crate::qmp::Qmp;

/// What a VM does.
pub enum Event {
    /// A line on the kernel's console.
    Console(String),
    /// A line from the agent.
    Control(String),
    /// QEMU ended, and nothing more will come from the console.
    Ended,
}

/// A VM; QEMU is killed when the value is dropped, or when the thread that started it ends.
pub struct Vm {
    qemu: Child,
    events: Receiver<Event>,
    control: UnixStream,
    /// The monitor.
    pub qmp: Qmp,
}

impl Vm {
    /// Boots the machine with this initramfs, and these kernel parameters besides the machine's.
    ///
    /// Time limits inside it are multiplied by `patience`.
    pub fn boot(
        lab: &Lab,
        machine: &Machine,
        initramfs: &MemoryFile,
        patience: u32,
        parameters: &str,
    ) -> Result<Vm> {
        let (control, control_far) = UnixStream::pair().map_err(text)?;
        let (monitor, monitor_far) = UnixStream::pair().map_err(text)?;
        let mut command = command(lab, machine, initramfs, patience, parameters);
        for (id, stream) in [("control", &control_far), ("monitor", &monitor_far)] {
            command.args([
                "-chardev",
                &format!("socket,id={id},fd={}", stream.as_raw_fd()),
            ]);
        }
        command.args(["-mon", "chardev=monitor,mode=control", "-serial", "stdio"]);
        command.args([
            "-device",
            "virtio-serial-pci",
            "-device",
            "virtserialport,name=dmem.control,chardev=control",
        ]);
        // QEMU's own complaints belong to the console log.
        let (console, stdout) = wide_pipe().map_err(text)?;
        let stderr = stdout.try_clone().map_err(text)?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let descriptors = [
            control_far.as_raw_fd(),
            monitor_far.as_raw_fd(),
            initramfs.as_raw_fd(),
        ];
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe {
            command.pre_exec(move || keep_open(&descriptors).and_then(|()| die_with_parent()))
        };
        let qemu = command
            .spawn()
            .map_err(|error| format!("qemu-system-x86_64: {error}"))?;
        // Only QEMU may hold the far ends, or their closing would never be seen.
        drop((command, control_far, monitor_far));
        let (sender, events) = channel();
        let port = control.try_clone().map_err(text)?;
        read_lines(console, sender.clone(), Event::Console, Some(Event::Ended));
        read_lines(port, sender, Event::Control, None);
        let mut qemu = qemu;
        match Qmp::new(monitor) {
            Ok(qmp) => Ok(Vm {
                qemu,
                events,
                control,
                qmp,
            }),
            Err(error) => {
                let _ = qemu.kill();
                let _ = qemu.wait();
                let said: Vec<String> = events.iter().filter_map(console_line).collect();
                Err(format!(
                    "machine {}: QEMU did not start: {error}; {}",
                    machine.name,
                    said.join("; ")
                ))
            }
        }
    }

    /// How long the VM's busiest thread was ready to run but had to wait for a host CPU.
    ///
    /// Time that the VM did not get is no sign of a hang, and hosts that run VMs beside compilers are common.
    pub fn waited(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.qemu.id()));
        // "time on CPU, time waiting, slices", in nanoseconds.
        let waiting = |path: std::path::PathBuf| {
            let text = std::fs::read_to_string(path.join("schedstat")).ok()?;
            text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()
        };
        let longest = tasks
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|task| waiting(task.path()))
            .max();
        Duration::from_nanos(longest.unwrap_or(0))
    }

    /// Processor time it has taken so far.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.qemu.id()));
        // Behind the name, which may have blanks in it: the user and system times of all threads, dead ones included.
        let stat = stat.unwrap_or_default();
        let numbers = stat.rsplit(')').next().unwrap_or_default();
        let ticks: u64 = numbers
            .split_ascii_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|number| number.parse::<u64>().ok())
            .sum();
        // USER_HZ is 100 wherever there is x86-64.
        Duration::from_millis(10 * ticks)
    }

    /// The next event, `None` if nothing happens for that long.
    pub fn next(&self, wait: Duration) -> Option<Event> {
        match self.events.recv_timeout(wait) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Event::Ended),
        }
    }

    /// Ends it at once, like a power cut.
    pub fn power_off(&mut self) {
        // Gone already is as good.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }

    /// Resets the machine: it boots again, and what was in its memory is still there.
    ///
    /// The firmware may reset it once more on its way. So a reset does not end the VM (-no-reboot) from here on, until
    /// [`Vm::booted_again`].
    pub fn reset(&mut self) -> Result<()> {
        self.on_reset("reset")?;
        self.qmp.execute("system_reset", json!({})).map(drop)
    }

    /// Has the next reset, after a panic for one, end the VM again.
    pub fn booted_again(&mut self) -> Result<()> {
        self.on_reset("shutdown")
    }

    fn on_reset(&mut self, action: &str) -> Result<()> {
        let action = json!({ "reboot": action });
        self.qmp.execute("set-action", action).map(drop)
    }

    /// Answers a request of the agent.
    pub fn reply(&mut self, payload: &str) -> io::Result<()> {
        self.control
            .write_all(format!("{}\n{payload}", payload.len()).as_bytes())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.power_off();
    }
}

/// Runs a VM in the foreground with its console and QEMU's monitor on the terminal.
pub fn run_interactive(lab: &Lab, machine: &Machine, initramfs: &MemoryFile) -> Result<()> {
    let mut command = command(lab, machine, initramfs, 1, " dmem.mode=shell quiet");
    command.args(["-serial", "mon:stdio"]);
    let descriptors = [initramfs.as_raw_fd()];
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe { command.pre_exec(move || keep_open(&descriptors).and_then(|()| die_with_parent())) };
    let status = command
        .status()
        .map_err(|error| format!("qemu-system-x86_64: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!(
            "machine {}: QEMU ended with {status}",
            machine.name
        ))
    }
}

fn command(
    lab: &Lab,
    machine: &Machine,
    initramfs: &MemoryFile,
    patience: u32,
    parameters: &str,
) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-name",
        machine.name,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    command.args(machine.qemu_arguments());
    command
        .arg("-kernel")
        .arg(&lab.kernel)
        .arg("-initrd")
        .arg(initramfs.path_in_child());
    let mut line = format!(
        "{}{} dmem.role=init dmem.patience={patience}{parameters}",
        machine.command_line(),
        lab.choice.parameters()
    );
    // Disks get their letters in this order.
    let disks = [
        Some(("root", &lab.image)),
        lab.overlay.as_ref().map(|path| ("overlay", path)),
    ];
    for (id, path) in disks.into_iter().flatten() {
        let drive = format!(
            "file={},format=raw,if=none,id={id},readonly=on",
            path.display()
        );
        let device = format!("virtio-blk-pci,drive={id}");
        command.args(["-drive", &drive, "-device", &device]);
    }
    if lab.overlay.is_some() {
        line.push_str(" dmem.overlay=/dev/vdb");
    }
    if machine.disks {
        // Behind the others, and found by their serial numbers. What is written to the empty one goes to a file that
        // QEMU makes for itself.
        let initramfs = format!(
            "file={},format=raw,if=none,id=initramfs,readonly=on",
            initramfs.path_in_child()
        );
        let empty =
            "driver=raw,file.driver=null-co,file.size=2G,file.read-zeroes=on,if=none,id=empty,snapshot=on";
        for (id, drive) in [("initramfs", initramfs.as_str()), ("empty", empty)] {
            let device = format!("virtio-blk-pci,drive={id},serial={id}");
            command.args(["-drive", drive, "-device", &device]);
        }
    }
    command.args(["-append", &line]);
    command
}

fn keep_open(descriptors: &[RawFd]) -> io::Result<()> {
    for fd in descriptors {
        // SAFETY: clears close-on-exec of a descriptor of this process.
        if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// However the runner ends, its VMs end with it.
fn die_with_parent() -> io::Result<()> {
    // SAFETY: a plain system call on the calling process.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A pipe with room for what a boot prints.
///
/// QEMU writes single characters, of which a socket takes 277. It loses some when there is no room, and Linux waits
/// for each.
fn wide_pipe() -> io::Result<(File, OwnedFd)> {
    const ROOM: libc::c_int = 1 << 20;
    let mut ends = [0; 2];
    // SAFETY: the call writes two descriptors, which nothing else owns yet.
    let (reader, writer) = unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
        (File::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    };
    // SAFETY: a plain system call on an open descriptor.
    match unsafe { libc::fcntl(ends[1], libc::F_SETPIPE_SZ, ROOM) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok((reader, writer)),
    }
}

fn read_lines(
    source: impl Read + Send + 'static,
    sender: Sender<Event>,
    make: fn(String) -> Event,
    last: Option<Event>,
) {
    std::thread::spawn(move || {
        for line in BufReader::new(source)
            .split(b'\n')
            .map_while(io::Result::ok)
        {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(make(line)).is_err() {
                return;
            }
        }
        if let Some(event) = last {
            // Nobody listens any more when the VM was given up.
            let _ = sender.send(event);
        }
    });
}

fn console_line(event: Event) -> Option<String> {
    match event {
        Event::Console(line) => Some(line),
        _ => None,
    }
}

fn text(error: io::Error) -> String {
    format!("making the pipes of a VM: {error}")
}
