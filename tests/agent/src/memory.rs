// SPDX-License-Identifier: GPL-2.0
//! The kernel's own account of memory.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::case::{Failure, Outcome};
use crate::region::KIB;
use crate::sysfs;

/// Lends memory to the host by what `lend` does, as movable memory whatever the kernel's default is: of other memory
/// it may not give back what it has used for itself.
pub fn movable<T>(lend: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    const POLICY: &str = "/sys/devices/system/memory/auto_online_blocks";
    let before = sysfs::read(POLICY)?;
    sysfs::write(POLICY, "online_movable")?;
    let lent = lend();
    sysfs::write(POLICY, before.trim())?;
    lent
}

/// /proc/meminfo at one moment.
#[derive(Debug, Clone)]
pub struct Meminfo {
    fields: BTreeMap<String, u64>,
}

impl Meminfo {
    /// Reads it as it is.
    pub fn read() -> Outcome<Meminfo> {
        let text = sysfs::read("/proc/meminfo")?;
        let fields = text.lines().filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            let number: u64 = value.split_ascii_whitespace().next()?.parse().ok()?;
            Some((name.to_owned(), number * KIB))
        });
        Ok(Meminfo {
            fields: fields.collect(),
        })
    }

    /// Reads it for comparing two moments: caches dropped, statistics of all CPUs gathered, and the free pages
    /// that CPUs keep for themselves, which the kernel leaves out, added to `MemFree` and `MemAvailable`.
    pub fn settled() -> Outcome<Meminfo> {
        sysfs::write("/proc/sys/vm/drop_caches", "3")?;
        let mut last = Meminfo::exact()?;
        // Frees by RCU arrive within a few ticks; three equal readings in a row say that they did.
        let mut equal = 0;
        for _ in 0..40 {
            std::thread::sleep(Duration::from_millis(40));
            let next = Meminfo::exact()?;
            equal = if next.bytes("MemFree")? == last.bytes("MemFree")? {
                equal + 1
            } else {
                0
            };
            last = next;
            if equal == 2 {
                break;
            }
        }
        Ok(last)
    }

    fn exact() -> Outcome<Meminfo> {
        // Reading it folds every CPU's pending counts into the totals (mm/vmstat.c, vmstat_refresh).
        sysfs::read("/proc/sys/vm/stat_refresh")?;
        let mut meminfo = Meminfo::read()?;
        let zones = sysfs::read("/proc/zoneinfo")?;
        let kept = zones.lines().filter_map(|line| {
            line.trim()
                .strip_prefix("count:")?
                .trim()
                .parse::<u64>()
                .ok()
        });
        let kept = kept.sum::<u64>() * 4 * KIB;
        for field in ["MemFree", "MemAvailable"] {
            if let Some(value) = meminfo.fields.get_mut(field) {
                *value += kept;
            }
        }
        Ok(meminfo)
    }

    /// A field in bytes, such as `MemAvailable`.
    pub fn bytes(&self, field: &str) -> Outcome<u64> {
        let value = self.fields.get(field).copied();
        value.ok_or_else(|| Failure::Fail(format!("/proc/meminfo has no {field}")))
    }
}

/// Bytes in use per slab cache, from /proc/slabinfo: active objects times their size. What is free but kept in reserve for
/// each CPU, or by KASAN so that late accesses are noticed, would count as active: it is given up before.
pub fn slabs() -> Outcome<BTreeMap<String, u64>> {
    for cache in fs::read_dir("/sys/kernel/slab")? {
        sysfs::write(cache?.path().join("shrink"), "1")?;
    }
    let text = sysfs::read("/proc/slabinfo")?;
    let rows = text.lines().skip(2).filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let name = words.next()?;
        let active: u64 = words.next()?.parse().ok()?;
        let size: u64 = words.nth(1)?.parse().ok()?;
        Some((name.to_owned(), active * size))
    });
    Ok(rows.collect())
}

/// Bytes as people read them: `1536 MiB`, `64 KiB`, `3.6 GiB`, `0 B`. Exact unless it shows a decimal point.
pub fn human(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB"), (0, "B")];
    // Four digits are read at a glance.
    let short = |shift: u32| bytes % (1 << shift) == 0 && (1..10_000).contains(&(bytes >> shift));
    if let Some((shift, unit)) = units.into_iter().find(|(shift, _)| short(*shift)) {
        return format!("{} {unit}", bytes >> shift);
    }
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64),
        None => "0 B".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let sizes = [
            0,
            512,
            64 * KIB,
            1536 << 20,
            3_769_000 * KIB,
            6 << 30,
            10_001 * KIB,
        ];
        let texts = [
            "0 B", "512 B", "64 KiB", "1536 MiB", "3.6 GiB", "6 GiB", "9.8 MiB",
        ];
        assert_eq!(sizes.map(human), texts);
    }
}
