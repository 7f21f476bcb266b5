// SPDX-License-Identifier: GPL-2.0
//! A virtual machine of one CPU by KVM's own interface: memory slots, registers, and a run to the next exit. What runs in
//! it is up to `kvm` and `walker`.

use std::fs::File;
use std::io;

use crate::case::{Named, Outcome};
use crate::ioctl;
use crate::mapping::{Map, Mapping};

/// The CPU, and what it needs to go on.
pub struct Vcpu {
    cpu: File,
    run: Mapping,
    // Kept for the CPU.
    _vm: File,
}

/// Memory of the guest.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    /// Where the guest finds it.
    pub at: u64,
    /// Bytes.
    pub size: u64,
    /// Where this process has it.
    pub address: usize,
}

/// `struct kvm_regs`: the general registers, and these by index.
pub type Registers = [u64; 18];
pub const RAX: usize = 0;
pub const RCX: usize = 2;
pub const RDX: usize = 3;
pub const RDI: usize = 5;
pub const RIP: usize = 16;
pub const RFLAGS: usize = 17;

/// `struct kvm_sregs`: segment and control registers.
pub struct System(pub [u8; 312]);

/// Segments in it, by index.
pub const CS: usize = 0;
pub const DS: usize = 1;
/// Control registers in it, by offset.
pub const CR0: usize = 224;
pub const CR3: usize = 240;
pub const CR4: usize = 248;
pub const EFER: usize = 264;

/// Exit of a guest that has nothing more to do.
pub const EXIT_HALTED: u32 = 5;

const SEGMENT: usize = 24;
const EXIT_REASON_AT: u64 = 8;
// include/uapi/linux/kvm.h
const CREATE_VM: libc::Ioctl = 0xae01;
const RUN_SIZE: libc::Ioctl = 0xae04;
const CREATE_VCPU: libc::Ioctl = 0xae41;
const SET_MEMORY: libc::Ioctl = 0x4020_ae46;
const RUN: libc::Ioctl = 0xae80;
const GET_REGISTERS: libc::Ioctl = 0x8090_ae81;
const SET_REGISTERS: libc::Ioctl = 0x4090_ae82;
const GET_SYSTEM: libc::Ioctl = 0x8138_ae83;
const SET_SYSTEM: libc::Ioctl = 0x4138_ae84;
const GET_SUPPORTED_CPUID: libc::Ioctl = 0xc008_ae05;
const SET_CPUID: libc::Ioctl = 0x4008_ae90;
/// Words of 32 bits that `struct kvm_cpuid2` and each of its entries take.
const CPUID_HEADER: usize = 2;
const CPUID_ENTRY: usize = 10;
const CPUID_ENTRIES: usize = 256;

impl System {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Has a segment begin at `base`, as real mode's do, with selector 0.
    pub fn segment_at(&mut self, segment: usize, base: u64) {
        self.put(segment * SEGMENT, &base.to_le_bytes());
        self.put(segment * SEGMENT + 12, &[0; 2]);
    }

    /// Makes it a segment of 64-bit mode: flat, of this type.
    pub fn flat(&mut self, segment: usize, kind: u8, code: bool) {
        let at = segment * SEGMENT;
        self.put(at, &0u64.to_le_bytes());
        self.put(at + 8, &u32::MAX.to_le_bytes());
        self.put(at + 12, &[8 * (segment as u8 + 1), 0]);
        let (db, l) = (u8::from(!code), u8::from(code));
        // Type, present, privilege, size, no system segment, 64-bit, granularity, free bit, usable.
        self.put(at + 14, &[kind, 1, 0, db, 1, l, 1, 0, 0]);
    }

    /// Sets a control register.
    pub fn set(&mut self, register: usize, value: u64) {
        self.put(register, &value.to_le_bytes());
    }
}

impl Vcpu {
    /// A machine with this memory, its CPU as it is behind a reset.
    pub fn new(slots: &[Slot]) -> Outcome<Vcpu> {
        let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
        let vm = ioctl::make(&kvm, CREATE_VM, 0).named("KVM_CREATE_VM")?;
        for (number, slot) in (0u64..).zip(slots) {
            let slot = [number, slot.at, slot.size, slot.address as u64];
            ioctl::call(&vm, SET_MEMORY, slot.as_ptr() as usize).named("a memory slot")?;
        }
        let cpu = ioctl::make(&vm, CREATE_VCPU, 0).named("KVM_CREATE_VCPU")?;
        // Without, it has no 64-bit mode.
        let mut cpuid = [0u32; CPUID_HEADER + CPUID_ENTRIES * CPUID_ENTRY];
        cpuid[0] = CPUID_ENTRIES as u32;
        let all = cpuid.as_mut_ptr() as usize;
        ioctl::call(&kvm, GET_SUPPORTED_CPUID, all).named("KVM_GET_SUPPORTED_CPUID")?;
        ioctl::call(&cpu, SET_CPUID, all).named("KVM_SET_CPUID2")?;
        let size = ioctl::call(&kvm, RUN_SIZE, 0)?;
        let run = Map::new(size as u64).file(&cpu)?;
        Ok(Vcpu { cpu, run, _vm: vm })
    }

    /// Changes segments and control registers.
    pub fn change_system(&self, change: impl FnOnce(&mut System)) -> Outcome {
        let mut system = System([0; 312]);
        ioctl::call(&self.cpu, GET_SYSTEM, system.0.as_mut_ptr() as usize)
            .named("KVM_GET_SREGS")?;
        change(&mut system);
        ioctl::call(&self.cpu, SET_SYSTEM, system.0.as_ptr() as usize).named("KVM_SET_SREGS")?;
        Ok(())
    }

    /// The general registers.
    pub fn registers(&self) -> Outcome<Registers> {
        let mut registers = Registers::default();
        ioctl::call(&self.cpu, GET_REGISTERS, registers.as_mut_ptr() as usize)
            .named("KVM_GET_REGS")?;
        Ok(registers)
    }

    /// Sets them.
    pub fn set_registers(&self, registers: &Registers) -> Outcome {
        ioctl::call(&self.cpu, SET_REGISTERS, registers.as_ptr() as usize).named("KVM_SET_REGS")?;
        Ok(())
    }

    /// Lets the guest run until KVM comes back.
    pub fn run(&self) -> io::Result<()> {
        ioctl::call(&self.cpu, RUN, 0).map(drop)
    }

    /// Why it came back.
    pub fn exit_reason(&self) -> u32 {
        self.run.read(EXIT_REASON_AT) as u32
    }
}
