// SPDX-License-Identifier: GPL-2.0
//! Accesses that may fault: the signal comes back as a value.
//!
//! The load and the store are two instructions at known places. The handler for SIGBUS and SIGSEGV checks that
//! the fault came from there, notes what the kernel said, and resumes behind the instruction. Any other fault
//! gets the default action back and kills the process as it should.

use std::arch::global_asm;
use std::sync::Once;

/// What the kernel said about a faulting access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Fault {
    /// SIGBUS or SIGSEGV; 0: no fault.
    pub signal: i32,
    /// `si_code`: BUS_ADRERR, BUS_MCEERR_AR, SEGV_ACCERR…
    pub code: i32,
    /// `si_addr`.
    pub address: usize,
    /// `si_addr_lsb`: log2 of the bytes lost, for memory errors.
    pub lsb: i16,
}

const NONE: Fault = Fault {
    signal: 0,
    code: 0,
    address: 0,
    lsb: 0,
};

impl Fault {
    /// # Safety
    ///
    /// `info` must be what the kernel passed to a handler of SIGBUS or SIGSEGV.
    unsafe fn of(signal: libc::c_int, info: *mut libc::siginfo_t) -> Fault {
        // SAFETY: by the safety requirement.
        let (code, details) = unsafe { ((*info).si_code, &*info.cast::<FaultInfo>()) };
        Fault {
            signal,
            code,
            address: details.address,
            lsb: details.lsb,
        }
    }
}

global_asm!(
    ".globl dmem_probe_load",
    ".globl dmem_probe_store",
    ".globl dmem_probe_resume",
    "dmem_probe_load:", // rdi: address, rsi: fault record
    "mov rax, [rdi]",
    "ret",
    "dmem_probe_store:", // rdi: address, rsi: fault record, rdx: value
    "mov [rdi], rdx",
    "dmem_probe_resume:",
    "ret",
    ".globl dmem_probe_wait",
    ".globl dmem_probe_loop",
    ".globl dmem_probe_waited",
    "dmem_probe_wait:", // rdi: address, rsi: fault record, rdx: value for R15
    "push r15",
    "mov r15, rdx",
    "dmem_probe_loop:",
    "mov rax, [rdi]",
    "jmp dmem_probe_loop",
    "dmem_probe_waited:",
    "pop r15",
    "ret",
);

extern "C" {
    fn dmem_probe_load(address: usize, fault: *mut Fault) -> u64;
    fn dmem_probe_store(address: usize, fault: *mut Fault, value: u64);
    fn dmem_probe_resume();
    fn dmem_probe_wait(address: usize, fault: *mut Fault, mark: u64) -> u64;
    fn dmem_probe_loop();
    fn dmem_probe_waited();
}

/// Reads the word at an address.
pub fn read(address: usize) -> Result<u64, Fault> {
    install();
    let mut fault = NONE;
    // SAFETY: a bad address faults inside the load, which the handler turns into `fault`.
    let value = unsafe { dmem_probe_load(address, &mut fault) };
    match fault.signal {
        0 => Ok(value),
        _ => Err(fault),
    }
}

/// Writes the word at an address, which must not be memory that Rust values live in.
pub fn write(address: usize, value: u64) -> Result<(), Fault> {
    install();
    let mut fault = NONE;
    // SAFETY: as in `read`; the caller names memory of a mapping.
    unsafe { dmem_probe_store(address, &mut fault, value) };
    match fault.signal {
        0 => Ok(()),
        _ => Err(fault),
    }
}

/// Reads the word at an address over and over, in user mode with `mark` in R15, until that fails.
pub fn read_until_fault(address: usize, mark: u64) -> Fault {
    install();
    let mut fault = NONE;
    // SAFETY: as in `read`; the handler ends the loop, and R15 is put back.
    unsafe { dmem_probe_wait(address, &mut fault, mark) };
    fault
}

/// Runs the closure, a system call, and gives back the signal for a memory error that interrupted it.
pub fn signalled<T>(call: impl FnOnce() -> T) -> (T, Option<Fault>) {
    static mut SEEN: Fault = NONE;
    extern "C" fn note(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the kernel passes valid structures. The thread that `SEEN` is about is the one that is interrupted.
        unsafe { SEEN = Fault::of(signal, info) };
    }
    // SAFETY: plain data; the handler in use before is put back. Only one thread of a case uses signals.
    unsafe {
        SEEN = NONE;
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut before: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = note as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &action, &mut before);
        let result = call();
        libc::sigaction(libc::SIGBUS, &before, std::ptr::null_mut());
        let seen = (&raw const SEEN).read_volatile();
        (result, (seen.signal != 0).then_some(seen))
    }
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: `action` is plain data, zero is a valid value of every field set by nobody.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
            libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut());
        }
    });
}

/// `siginfo_t` up to the field libc does not offer (include/uapi/asm-generic/siginfo.h).
#[repr(C)]
struct FaultInfo {
    _signal_errno_code_pad: [i32; 4],
    address: usize,
    lsb: i16,
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes valid structures; in the two probe instructions RSI is the caller's record.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let at = registers[libc::REG_RIP as usize] as usize;
        let resume = match at {
            // A machine check may come with either instruction of the loop.
            _ if (dmem_probe_loop as usize..dmem_probe_waited as usize).contains(&at) => {
                dmem_probe_waited as usize
            }
            _ if at == dmem_probe_load as usize || at == dmem_probe_store as usize => {
                dmem_probe_resume as usize
            }
            _ => 0,
        };
        if resume == 0 {
            // Returning repeats the access, now fatally.
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        let record = registers[libc::REG_RSI as usize] as *mut Fault;
        *record = Fault::of(signal, info);
        registers[libc::REG_RIP as usize] = resume as i64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_comes_back_as_a_value() {
        let word = 7u64;
        assert_eq!(read(&word as *const u64 as usize), Ok(7));
        let fault = read(0x10).unwrap_err();
        assert_eq!((fault.signal, fault.address), (libc::SIGSEGV, 0x10));
        assert_eq!(write(0x18, 1).unwrap_err().address, 0x18);
    }
}
