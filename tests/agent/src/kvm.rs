// SPDX-License-Identifier: GPL-2.0
//! KVM of the first-level VM: loading it, the leaf sizes it maps guests with, and a guest of two instructions.

use std::path::Path;

use crate::case::{Failure, Outcome};
use crate::mapping::{Map, Mapping};
use crate::poison::PAGE;
use crate::probe::{self, Fault};
use crate::vcpu::{Registers, Slot, Vcpu, CS, DS, EXIT_HALTED, RAX, RIP};
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
    vcpu: Vcpu,
    registers: Registers,
    // Kept for the guest.
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

const CODE_AT: u64 = 0x1000;
const MEMORY_AT: u64 = 0x10000;
const MEMORY_SIZE: u64 = 0x10000;

impl Tiny {
    /// Its memory is 64 KiB from this address on; it moves the word at `offset`, into AX or, with `write`, from AX.
    pub fn new(memory: usize, offset: u16, write: bool) -> Outcome<Tiny> {
        let code = Map::new(PAGE).anonymous()?;
        let [low, high] = offset.to_le_bytes();
        let opcode = if write { 0xa3 } else { 0xa1 };
        // mov ax, [offset], or the reverse; hlt
        code.write(0, u64::from_le_bytes([opcode, low, high, 0xf4, 0, 0, 0, 0]));
        let slot = |at, size, address| Slot { at, size, address };
        let vcpu = Vcpu::new(&[
            slot(CODE_AT, PAGE, code.address()),
            slot(MEMORY_AT, MEMORY_SIZE, memory),
        ])?;
        vcpu.change_system(|system| {
            system.segment_at(CS, 0);
            system.segment_at(DS, MEMORY_AT);
        })?;
        let registers = vcpu.registers()?;
        Ok(Tiny {
            vcpu,
            registers,
            _code: code,
        })
    }

    /// What it writes.
    pub fn set_ax(&mut self, ax: u16) {
        self.registers[RAX] = u64::from(ax);
    }

    /// Runs it from its beginning, with what it has read or is to write in AX.
    pub fn run(&mut self) -> Outcome<Ran> {
        let before = self.registers[RAX];
        self.registers[RIP] = CODE_AT;
        self.vcpu.set_registers(&self.registers)?;
        let (result, signal) = probe::signalled(|| self.vcpu.run());
        self.registers = self.vcpu.registers()?;
        let [rax, rip] = [RAX, RIP].map(|index| self.registers[index]);
        let reason = self.vcpu.exit_reason();
        match (result, signal) {
            (Ok(()), None) if reason == EXIT_HALTED => Ok(Ran::ToItsEnd { ax: rax as u16 }),
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
