// SPDX-License-Identifier: GPL-2.0

//! What `top` shows: the statistics on one page, with what changes as it changes.

use std::time::Duration;

use super::text::{leaves, processes, total};
use super::{Device, Process, Stats};
use crate::report::table::{or_none, Table};
use crate::size::Size;

/// One page; `before` are the statistics of so long ago.
pub fn text(now: &Stats, before: Option<(&Stats, Duration)>) -> String {
    let mut parts = vec![total(&now.total), devices(now, before)];
    let mut mapping: Vec<Process> = now.processes.clone();
    mapping.sort_by_key(|process| (std::cmp::Reverse(process.mapped), process.pid));
    if !mapping.is_empty() {
        parts.push(processes(&mapping));
    }
    parts.join("\n")
}

/// The devices, those with most faults first.
fn devices(now: &Stats, before: Option<(&Stats, Duration)>) -> String {
    let mut table = Table::new(&[
        "GUEST", "DEVICE", "NODE", "SIZE", "STATE", "OPEN", "MAPS", "MAPPED", "LEAVES", "FAULTS",
        "/S", "SAVED",
    ]);
    let mut rows: Vec<(Option<u64>, &Device)> = now
        .devices()
        .map(|device| (rate(device, before), device))
        .collect();
    rows.sort_by_key(|(rate, _)| std::cmp::Reverse(*rate));
    for (rate, device) in rows {
        let mapped = now.processes.iter();
        let mapped = mapped.filter(|process| process.device == device.device);
        let mapped = mapped.fold(0u64, |sum, process| sum.saturating_add(process.mapped));
        table.row(&[
            or_none(device.guest.as_ref()),
            device.device.clone(),
            or_none(device.node),
            Size(device.size).to_string(),
            device.state.clone().unwrap_or_else(|| device.mode.clone()),
            or_none(device.openers),
            or_none(device.mappings),
            Size(mapped).to_string(),
            or_none(device.leaves.as_ref().map(leaves)),
            or_none(device.faults_mapped()),
            or_none(rate),
            Size(device.saved).to_string(),
        ]);
    }
    table.text()
}

/// Faults in a second. A device that was bound anew counts from 0.
fn rate(device: &Device, before: Option<(&Stats, Duration)>) -> Option<u64> {
    let (before, time) = before?;
    let earlier = before.devices().find(|other| other.device == device.device);
    let earlier = earlier.and_then(Device::faults_mapped).unwrap_or(0);
    let faults = device.faults_mapped()?.checked_sub(earlier)?;
    let time = time.as_millis().max(1);
    u64::try_from(u128::from(faults) * 1000 / time).ok()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{seen, stats};
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn one_page() {
        let mut later = seen();
        for counters in later.counters.values_mut() {
            counters.faults[0].mapped += 300;
        }
        let later = Stats::new(&report(), &later);
        let text = text(&later, Some((&stats(), Duration::from_secs(2))));
        let expected = "\
GUEST  DEVICE  NODE  SIZE  STATE   OPEN  MAPS  MAPPED  LEAVES     FAULTS  /S   SAVED
vm1    dax0.0  0     2G    mapped  1     2     2G      2x1G+3x2M  305     150  32M
";
        assert!(text.contains(expected), "{text}");
        let text = super::text(&stats(), None);
        assert!(text.contains("  5       -   32M\n"), "{text}");
        // Bound anew in between: what it has counted since is not known.
        let text = super::text(&stats(), Some((&later, Duration::from_secs(2))));
        assert!(text.contains("  5       -   32M\n"), "{text}");
    }
}
