// SPDX-License-Identifier: GPL-2.0
//! A stand-in for a guest that warms up: in 64-bit mode it writes a word to each page of its memory, and halts.

use crate::case::Outcome;
use crate::check_eq;
use crate::mapping::{Map, Mapping};
use crate::poison::PAGE;
use crate::region::GIB;
use crate::vcpu::{
    Registers, Slot, Vcpu, CR0, CR3, CR4, CS, DS, EFER, EXIT_HALTED, RAX, RCX, RDI, RDX, RFLAGS,
    RIP,
};

/// The guest.
pub struct Walker {
    vcpu: Vcpu,
    size: u64,
    // Kept for the guest.
    _own: Mapping,
}

/// Its code, the top of its page tables, and the next level, of which each entry maps 1 GiB to where it is.
const CODE_AT: u64 = 0x1000;
const TOP_AT: u64 = 0x2000;
const NEXT_AT: u64 = 0x3000;
/// Where it has its memory: KVM can use leaves as large as those of the process, whose addresses are as round.
const MEMORY_AT: u64 = 4 * GIB;
/// Present, writable; a leaf above the last level.
const TABLE: u64 = 3;
const LEAF: u64 = 0x83;
const ENTRIES: u64 = 512;

impl Walker {
    /// Its memory is `size` bytes from this address on.
    pub fn new(address: usize, size: u64) -> Outcome<Walker> {
        // again: mov [rdi], rax; add rdi, rcx; cmp rdi, rdx; jb again; hlt
        const CODE: [[u8; 8]; 2] = [
            [0x48, 0x89, 0x07, 0x48, 0x01, 0xcf, 0x48, 0x39],
            [0xd7, 0x72, 0xf5, 0xf4, 0, 0, 0, 0],
        ];
        let own = Map::new(3 * PAGE).anonymous()?;
        own.write(0, u64::from_le_bytes(CODE[0]));
        own.write(8, u64::from_le_bytes(CODE[1]));
        own.write(TOP_AT - CODE_AT, NEXT_AT | TABLE);
        for entry in 0..ENTRIES {
            own.write(NEXT_AT - CODE_AT + 8 * entry, (entry * GIB) | LEAF);
        }
        let vcpu = Vcpu::new(&[
            Slot {
                at: CODE_AT,
                size: 3 * PAGE,
                address: own.address(),
            },
            Slot {
                at: MEMORY_AT,
                size,
                address,
            },
        ])?;
        vcpu.change_system(|system| {
            // Code that was executed; data, writable.
            system.flat(CS, 0xb, true);
            for segment in DS..DS + 5 {
                system.flat(segment, 0x3, false);
            }
            // Protection, coprocessor, paging; page tables of 64 bits; 64-bit mode, enabled and active.
            system.set(CR0, 1 | (1 << 4) | (1 << 31));
            system.set(CR3, TOP_AT);
            system.set(CR4, 1 << 5);
            system.set(EFER, (1 << 8) | (1 << 10));
        })?;
        Ok(Walker {
            vcpu,
            size,
            _own: own,
        })
    }

    /// Has it write a word, which is not zero, to each page.
    pub fn walk(&self) -> Outcome {
        let mut registers = Registers::default();
        registers[RAX] = 1;
        registers[RDI] = MEMORY_AT;
        registers[RCX] = PAGE;
        registers[RDX] = MEMORY_AT + self.size;
        registers[RIP] = CODE_AT;
        // A bit that is always set.
        registers[RFLAGS] = 2;
        self.vcpu.set_registers(&registers)?;
        self.vcpu.run()?;
        check_eq!(self.vcpu.exit_reason(), EXIT_HALTED, "the guest's exit");
        let at = self.vcpu.registers()?[RDI];
        check_eq!(at, MEMORY_AT + self.size, "where the guest ended");
        Ok(())
    }
}
