// SPDX-License-Identifier: GPL-2.0
//! KVM of the first-level VM: loading it, the leaf sizes it maps guests with, and a guest of two instructions.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::path::Path;

use crate::case::{Failure, Named, Outcome};
use crate::mapping::{Map, Mapping};
use crate::poison::PAGE;
use crate::probe::{self, Fault};
use crate::{module, sysfs};

/// Leaves of all running guests, by size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KvmPages {
    /// 4 KiB leaves.
    pub small: u64,
    /// 2 MiB leaves.
    pub medium: u64,
    /// 1 GiB leaves.
    pub large: u64,
}

/// Loads KVM: QEMU's TCG emulates AMD's extension.
pub fn load() -> Outcome {
    module::load("kvm-amd")?;
    if !Path::new("/dev/kvm").exists() {
        return Err(Failure::Fail(
            "kvm-amd is loaded but there is no /dev/kvm".into(),
        ));
    }
    Ok(())
}

/// One of KVM's counters in debugfs: of all running guests.
fn counter(name: &str) -> Outcome<u64> {
    sysfs::read_number(Path::new("/sys/kernel/debug/kvm").join(name))
}

/// Faults of all running guests for which KVM entered a leaf.
pub fn faults_fixed() -> Outcome<u64> {
    counter("pf_fixed")
}

impl KvmPages {
    /// Reads KVM's counters from debugfs.
    pub fn read() -> Outcome<KvmPages> {
        Ok(KvmPages {
            small: counter("pages_4k")?,
            medium: counter("pages_2m")?,
            large: counter("pages_1g")?,
        })
    }
}

/// A guest without a kernel: in real mode it moves a word between AX and its memory, and halts. To be used in a process
/// of its own that has nothing to do with SIGBUS otherwise.
pub struct Tiny {
    vcpu: File,
    run: Mapping,
    registers: [u64; REGISTERS],
    // Kept for the guest.
    _vm: File,
    _code: Mapping,
}

/// How a run of a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ran {
    /// It halted.
    ToItsEnd {
        /// What is in AX.
        ax: u16,
    },
    /// KVM left it before its first instruction, and the process got this signal.
    Signalled(Fault),
}

const REGISTERS: usize = 18;
const RAX: usize = 0;
const RIP: usize = 16;
const CODE_AT: u64 = 0x1000;
const MEMORY_AT: u64 = 0x10000;
const MEMORY_SIZE: u64 = 0x10000;
const SEGMENT_REGISTERS: usize = 312;
/// Bytes of a segment in them: the base comes first, the selector 12 bytes later.
const SEGMENT: usize = 24;
const EXIT_REASON_AT: u64 = 8;
const EXIT_HALTED: u32 = 5;
// include/uapi/linux/kvm.h
const CREATE_VM: libc::c_ulong = 0xae01;
const RUN_SIZE: libc::c_ulong = 0xae04;
const CREATE_VCPU: libc::c_ulong = 0xae41;
const SET_MEMORY: libc::c_ulong = 0x4020_ae46;
const RUN: libc::c_ulong = 0xae80;
const GET_REGISTERS: libc::c_ulong = 0x8090_ae81;
const SET_REGISTERS: libc::c_ulong = 0x4090_ae82;
const GET_SEGMENTS: libc::c_ulong = 0x8138_ae83;
const SET_SEGMENTS: libc::c_ulong = 0x4138_ae84;

/// An ioctl with a number or a pointer to what the request demands.
fn control(fd: RawFd, request: libc::c_ulong, argument: usize) -> io::Result<i32> {
    // SAFETY: the callers pass what the request is for, and keep it until this returns.
    match unsafe { libc::ioctl(fd, request, argument) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

fn owned(fd: i32) -> File {
    // SAFETY: KVM has just made the descriptor for this process.
    unsafe { File::from_raw_fd(fd) }
}

impl Tiny {
    /// Its memory is 64 KiB from this address on; it moves the word at `offset`, into AX or, with `write`, from AX.
    pub fn new(memory: usize, offset: u16, write: bool) -> Outcome<Tiny> {
        let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
        let vm = owned(control(kvm.as_raw_fd(), CREATE_VM, 0).named("KVM_CREATE_VM")?);
        let code = Map::new(PAGE).anonymous()?;
        let [low, high] = offset.to_le_bytes();
        let opcode = if write { 0xa3 } else { 0xa1 };
        // mov ax, [offset], or the reverse; hlt
        code.write(0, u64::from_le_bytes([opcode, low, high, 0xf4, 0, 0, 0, 0]));
        let slots = [
            (CODE_AT, PAGE, code.address()),
            (MEMORY_AT, MEMORY_SIZE, memory),
        ];
        for (slot, (at, size, address)) in (0u64..).zip(slots) {
            let slot = [slot, at, size, address as u64];
            control(vm.as_raw_fd(), SET_MEMORY, slot.as_ptr() as usize).named("a memory slot")?;
        }
        let vcpu = owned(control(vm.as_raw_fd(), CREATE_VCPU, 0).named("KVM_CREATE_VCPU")?);
        let size = control(kvm.as_raw_fd(), RUN_SIZE, 0)?;
        let run = Map::new(size as u64).file(&vcpu)?;
        let mut segments = [0u8; SEGMENT_REGISTERS];
        let fd = vcpu.as_raw_fd();
        control(fd, GET_SEGMENTS, segments.as_mut_ptr() as usize).named("KVM_GET_SREGS")?;
        // CS is the first, DS the second.
        for (segment, base) in [(0, 0), (SEGMENT, MEMORY_AT)] {
            segments[segment..segment + 8].copy_from_slice(&base.to_le_bytes());
            segments[segment + 12..segment + 14].fill(0);
        }
        control(fd, SET_SEGMENTS, segments.as_ptr() as usize).named("KVM_SET_SREGS")?;
        let mut registers = [0; REGISTERS];
        control(fd, GET_REGISTERS, registers.as_mut_ptr() as usize).named("KVM_GET_REGS")?;
        Ok(Tiny {
            vcpu,
            run,
            registers,
            _vm: vm,
            _code: code,
        })
    }

    /// What it writes.
    pub fn set_ax(&mut self, ax: u16) {
        self.registers[RAX] = u64::from(ax);
    }

    /// Runs it from its beginning, with what it has read or is to write in AX.
    pub fn run(&mut self) -> Outcome<Ran> {
        let fd = self.vcpu.as_raw_fd();
        let before = self.registers[RAX];
        self.registers[RIP] = CODE_AT;
        control(fd, SET_REGISTERS, self.registers.as_ptr() as usize).named("KVM_SET_REGS")?;
        let (result, signal) = probe::signalled(|| control(fd, RUN, 0));
        let registers = self.registers.as_mut_ptr() as usize;
        control(fd, GET_REGISTERS, registers).named("KVM_GET_REGS")?;
        let [rax, rip] = [RAX, RIP].map(|index| self.registers[index]);
        let reason = self.run.read(EXIT_REASON_AT) as u32;
        match (result, signal) {
            (Ok(_), None) if reason == EXIT_HALTED => Ok(Ran::ToItsEnd { ax: rax as u16 }),
            (Err(error), Some(fault))
                if error.raw_os_error() == Some(libc::EINTR)
                    && rip == CODE_AT
                    && rax == before =>
            {
                Ok(Ran::Signalled(fault))
            }
            (result, signal) => Err(Failure::Fail(format!(
                "KVM_RUN: {result:?}, exit {reason}, signal {signal:?}, RIP {rip:#x}, RAX {before:#x} to {rax:#x}"
            ))),
        }
    }
}
