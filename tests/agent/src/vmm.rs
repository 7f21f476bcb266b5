// SPDX-License-Identifier: GPL-2.0
//! Second-level guests: a real QEMU with KVM in the first-level VM, the stock kernel, this program as init.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::case::{Failure, Named, Outcome};
use crate::cmdline::patient;
use crate::device::Device;
use crate::payload::{self, GuestModules};
use crate::region::MIB;
use crate::{check, fail, sysfs};

/// What the guest prints about its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// MemTotal in the guest, bytes.
    pub memory: u64,
    /// Bytes that were filled with a pattern and read back right.
    pub pattern: u64,
}

/// What QEMU says before it stops a guest for good, followed by the registers.
const BROKEN: &str = "KVM internal error";

/// A running guest, killed on drop.
pub struct Guest {
    name: String,
    qemu: Child,
    input: Option<ChildStdin>,
    console: Receiver<String>,
    seen: Vec<String>,
}

/// QEMU's arguments for ordinary memory.
pub fn ram(bytes: u64) -> Vec<String> {
    let object = format!("memory-backend-ram,id=ram,size={bytes}");
    ["-object", &object, "-machine", "memory-backend=ram"]
        .map(str::to_owned)
        .into()
}

/// QEMU's arguments for a whole device.
pub fn device(device: &Device, align: &str) -> Outcome<Vec<String>> {
    let object = format!(
        "memory-backend-file,id=ram,mem-path={},size={},share=on,align={align},prealloc=off,merge=off,dump=off",
        device.path().display(),
        device.size()?
    );
    Ok(["-object", &object, "-machine", "memory-backend=ram"]
        .map(str::to_owned)
        .into())
}

/// What a guest is, besides its memory.
#[derive(Clone, Copy)]
pub struct Model {
    /// `-cpu`.
    pub cpu: &'static str,
    /// Further kernel parameters: what the guest's init does, see [`crate::guest`].
    pub parameters: &'static str,
    /// The modules that it gets along.
    pub modules: GuestModules,
    /// What QEMU does instead of a reset of the guest, `-action reboot=`.
    pub on_reboot: &'static str,
}

impl Model {
    /// Tries its memory and powers off.
    pub const PLAIN: Model = Model {
        cpu: "qemu64,+svm",
        parameters: "",
        modules: GuestModules::None,
        on_reboot: "shutdown",
    };
}

impl Guest {
    /// Boots a guest of `bytes` on the memory these QEMU arguments describe. With `hold` it stays after its
    /// report, reading its pattern over and over, until [`Guest::power_off`].
    pub fn start(name: &str, bytes: u64, memory: &[String], hold: bool) -> Outcome<Guest> {
        let parameters = if hold { " dmem.hold=1" } else { "" };
        let model = Model {
            parameters,
            ..Model::PLAIN
        };
        Self::boot(name, bytes, memory, model)
    }

    /// Boots a guest that is like this.
    pub fn boot(name: &str, bytes: u64, memory: &[String], model: Model) -> Outcome<Guest> {
        let release = sysfs::read("/proc/sys/kernel/osrelease")?;
        // Exits through two levels are slow. quiet: each character on the serial line costs some. noaperture: or
        // else the kernel looks for an AGP bridge in 8,192 PCI slots (arch/x86/kernel/aperture_64.c).
        let append = format!(
            "console=ttyS0 quiet iommu=noaperture panic=-1 dmem.role=guest{}",
            model.parameters
        );
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-name", name, "-accel", "kvm", "-cpu", model.cpu, "-smp", "1",
        ]);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-action",
            &format!("reboot={}", model.on_reboot),
            "-serial",
            "stdio",
        ]);
        // Virtio devices are notified through ports, not MMIO. At an exit, the emulator of the first level reports the
        // exception that the guest took last, if only without the bit that says that it was being delivered; KVM looks
        // at its type alone, and will emulate no store in the middle of a delivery ("KVM internal error. Suberror: 3").
        command.args(["-global", "virtio-pci.modern-pio-notify=on"]);
        command
            .args(["-m", &format!("{}M", bytes / MIB)])
            .args(memory);
        command.args(["-kernel", &format!("/usr/lib/modules/{release}/vmlinuz")]);
        let initramfs = payload::guest_initramfs(model.modules)?;
        command.arg("-initrd").arg(initramfs);
        command.args(["-append", &append]);
        // QEMU's own complaints share the console's way into the report.
        let (reader, writer) = UnixStream::pair()?;
        let stdout = OwnedFd::from(writer.try_clone()?);
        command
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(OwnedFd::from(writer));
        let mut qemu = command.spawn().named("qemu-system-x86_64")?;
        drop(command);
        let input = qemu.stdin.take();
        let (sender, console) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                if sender
                    .send(String::from_utf8_lossy(&line).trim_end().to_owned())
                    .is_err()
                {
                    break;
                }
            }
        });
        Ok(Guest {
            name: name.to_owned(),
            qemu,
            input,
            console,
            seen: Vec::new(),
        })
    }

    /// Waits for the guest's report on its memory.
    pub fn report(&mut self, limit: Duration) -> Outcome<Report> {
        let line = self.wait_for("guest: memory=", limit)?;
        let number = |key: &str| {
            let value = line
                .split_ascii_whitespace()
                .find_map(|word| word.strip_prefix(key))?;
            value.strip_suffix("MiB")?.parse::<u64>().ok()
        };
        match (number("memory="), number("pattern="), line.ends_with(" ok")) {
            (Some(memory), Some(pattern), true) => Ok(Report {
                memory: memory * MIB,
                pattern: pattern * MIB,
            }),
            _ => Err(Failure::Fail(format!("{}: {line}", self.name))),
        }
    }

    /// Waits until the guest's console shows a line with this text; that line from the text on.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Outcome<String> {
        let limit = patient(limit);
        let deadline = Instant::now() + limit;
        loop {
            match self
                .console
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if let Some(at) = line.find(text) {
                        return Ok(line[at..].to_owned());
                    }
                    if line.starts_with(BROKEN) {
                        // Behind it come the registers, and no more.
                        std::thread::sleep(patient(Duration::from_secs(1)));
                        return Err(self.trouble(&line));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.trouble(&format!("no '{text}' within {} s", limit.as_secs())))
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.trouble(&format!("ended before '{text}'")))
                }
            }
        }
    }

    /// Has a guest with commands ([`crate::guest`]) do something, and waits for its answer, without `guest: `.
    pub fn ask(&mut self, command: &str) -> Outcome<String> {
        self.ask_within(command, Duration::from_secs(60))
    }

    /// The same for something that takes its time.
    pub fn ask_within(&mut self, command: &str, limit: Duration) -> Outcome<String> {
        self.tell(command)?;
        let line = self.wait_for("guest: ", limit)?;
        Ok(line["guest: ".len()..].to_owned())
    }

    /// Writes a line on the guest's console.
    pub fn tell(&mut self, command: &str) -> Outcome {
        match self.input.as_mut() {
            Some(input) => {
                let line = format!("{command}\n");
                input
                    .write_all(line.as_bytes())
                    .named("the guest's console")
            }
            None => fail!("{}: no way to reach the guest's console", self.name),
        }
    }

    /// Whether its console has shown this text so far.
    pub fn has_said(&mut self, text: &str) -> bool {
        self.seen.extend(self.console.try_iter());
        self.seen.iter().any(|line| line.contains(text))
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.qemu.id()
    }

    /// What its console has shown so far.
    pub fn transcript(&mut self) -> String {
        self.seen.extend(self.console.try_iter());
        self.seen.join("\n")
    }

    /// Asks a holding guest how many rounds of its memory it has made.
    pub fn rounds(&mut self) -> Outcome<u64> {
        let line = self.ask("rounds")?;
        let rounds = line
            .strip_prefix("rounds ")
            .and_then(|text| text.parse().ok());
        rounds.ok_or_else(|| Failure::Fail(format!("{}: {line}", self.name)))
    }

    /// Asks a holding guest to power off, and waits until it says that its memory was right to the end.
    pub fn power_off(&mut self) -> Outcome {
        self.tell("off")?;
        let line = self.wait_for("guest: ", Duration::from_secs(120))?;
        check!(line.ends_with(" ok"), "{}: {line}", self.name);
        Ok(())
    }

    /// Waits for QEMU's end: its exit code, or the signal that killed it as a negative number.
    pub fn wait_end(&mut self, limit: Duration) -> Outcome<i32> {
        use std::os::unix::process::ExitStatusExt;
        let limit = patient(limit);
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.qemu.try_wait()? {
                return Ok(status
                    .code()
                    .unwrap_or_else(|| -status.signal().unwrap_or(0)));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(self.trouble(&format!("QEMU still runs after {} s", limit.as_secs())))
    }

    fn trouble(&mut self, what: &str) -> Failure {
        self.seen.extend(self.console.try_iter());
        // As much as QEMU says when KVM cannot go on, and a few lines before it.
        let begin = self.seen.len().saturating_sub(40);
        for line in &self.seen[begin..] {
            crate::say!("{}: {line}", self.name);
        }
        Failure::Fail(format!("{}: {what}", self.name))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
