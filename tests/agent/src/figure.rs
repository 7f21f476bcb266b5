// SPDX-License-Identifier: GPL-2.0
//! Figures: what benchmarks count, as lines from which `dmem-bench` makes the report.
//!
//! On machines that count, an instruction takes a nanosecond of the VM's time, and time in which the CPU has nothing to do
//! passes at once. What is counted is therefore the shorter of two times: the one that went by, which has such waiting in
//! it, and the one in which the CPU had a task to run, which has the program's own sleep in it.

use std::time::{Duration, Instant};

use crate::case::{Failure, Outcome};
use crate::{say, sysfs};

/// Says that `row` came out as `value` for this peer at this size (bytes, or number of devices).
pub fn figure(row: &str, peer: &str, size: u64, unit: &str, value: u64) {
    say!("figure\t{row}\t{peer}\t{size}\t{unit}\t{value}");
}

/// Says what the kernel calls itself.
pub fn kernel() -> Outcome {
    let release = sysfs::read("/proc/sys/kernel/osrelease")?;
    say!("fact\tkernel\t{release}");
    Ok(())
}

/// What the closure returns, and the instructions it took, those of kernel threads on its behalf included.
pub fn count<T>(work: impl FnOnce() -> Outcome<T>) -> Outcome<(T, u64)> {
    let before = ran()?;
    let begin = Instant::now();
    let result = work()?;
    let went_by = begin.elapsed().as_nanos() as u64;
    let tasks = ran()? - before;
    Ok((result, went_by.min(tasks)))
}

/// Counts, and says so.
pub fn counted<T>(
    row: &str,
    peer: &str,
    size: u64,
    work: impl FnOnce() -> Outcome<T>,
) -> Outcome<(T, u64)> {
    let (result, instructions) = count(work)?;
    figure(row, peer, size, "instructions", instructions);
    Ok((result, instructions))
}

/// Time in which the CPU had a task to run, in ns.
pub fn ran() -> Outcome<u64> {
    // The kernel adds a task's time when the task leaves the CPU.
    std::thread::sleep(Duration::from_millis(1));
    let text = sysfs::read("/proc/schedstat")?;
    let line = text.lines().find_map(|line| line.strip_prefix("cpu0 "));
    let ran = line.and_then(|line| line.split_ascii_whitespace().nth(6)?.parse().ok());
    ran.ok_or_else(|| Failure::Fail(format!("/proc/schedstat is {text}")))
}

/// Page faults of this process so far.
pub fn faults() -> u64 {
    // SAFETY: all-zero is a valid value of these plain numbers, and the call fills them in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    (usage.ru_minflt + usage.ru_majflt) as u64
}
