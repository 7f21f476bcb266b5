// SPDX-License-Identifier: GPL-2.0
//! Bounds: what was promised, and whether it holds.

use crate::figures::Figures;

const GIB: u64 = 1 << 30;
/// DMEMFS's published usable memory, GiB, of hosts that have no such thing: installed, usable.
pub const PUBLISHED: [(u64, u64); 3] = [(384, 375), (512, 501), (768, 753)];

/// Why a bind may take more than was promised.
const BIND: &str = "a bind takes as much at any size; the promise was made when device_dax took 613 million (7.2), of which 7.3 needs about half, and a first version of this driver 42,000";

/// Why fork itself costs more.
pub const FORK: &str = "fork() copies the page tables of a PFNMAP mapping (vma_needs_copy() in mm/memory.c), \
     and takes the copies away when the child ends; what others have mapped it leaves to the child's faults: \
     see the row with the child's first touch, in which leaves of 4K and 1G are ahead, and those of 2M are not. \
     No driver has a say in it. QEMU's forks take no part: it sets MADV_DONTFORK on a guest's memory";

/// One promise.
pub struct Bound {
    /// What is compared with what.
    pub what: String,
    /// The two numbers.
    pub detail: String,
    /// What came out, `None` if something of it was not counted.
    pub measured: Option<f64>,
    /// What was promised.
    pub limit: f64,
    /// Whether it has to be at least that, and not at most.
    pub at_least: bool,
    /// Why it does not hold, if it does not.
    pub why: &'static str,
}

impl Bound {
    /// Whether it holds; `None` if that is not known.
    pub fn holds(&self) -> Option<bool> {
        let measured = self.measured?;
        Some(if self.at_least {
            measured >= self.limit
        } else {
            measured <= self.limit
        })
    }

    /// `ours / theirs` is at most `limit`.
    fn ratio(
        what: String,
        ours: Option<u64>,
        theirs: Option<u64>,
        limit: f64,
        why: &'static str,
    ) -> Bound {
        let numbers = ours.zip(theirs);
        let detail = |(ours, theirs)| format!("{} / {}", grouped(ours), grouped(theirs));
        Bound {
            what,
            detail: numbers.map(detail).unwrap_or_default(),
            measured: numbers.map(|(ours, theirs)| ours as f64 / theirs.max(1) as f64),
            limit,
            at_least: false,
            why,
        }
    }
}

/// A number with its thousands apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// All of them.
pub fn all(figures: &Figures) -> Vec<Bound> {
    let mut bounds = Vec::new();
    let most = figures.most("kernel-memory", "dax_dmem");
    bounds.push(Bound {
        what: "kernel memory of a bound device at any size and leaf, KiB".into(),
        detail: most
            .map(|bytes| format!("{} bytes at most", grouped(bytes)))
            .unwrap_or_default(),
        measured: most.map(|bytes| bytes as f64 / 1024.0),
        limit: 64.0,
        at_least: false,
        why: "",
    });
    for (installed, _) in PUBLISHED {
        let part = |row| figures.get(row, "dax_dmem", installed * GIB);
        let sum = part("memtotal").zip(part("reserved"));
        bounds.push(Bound {
            what: format!("MemTotal and page-less memory of a host of {installed} GiB, % of what is installed"),
            detail: sum
                .map(|(total, reserved)| format!("{:.2} + {} GiB", gib(total), reserved / GIB))
                .unwrap_or_default(),
            measured: sum
                .map(|(total, reserved)| 100.0 * (total + reserved) as f64 / (installed * GIB) as f64),
            limit: 99.9,
            at_least: true,
            why: "",
        });
    }
    let get = |row: &str, peer: &str, size: u64| figures.get(row, peer, size * GIB);
    let ours = get("grow-ready", "dax_dmem 1G", 64);
    for (peer, limit) in [("device_dax 2M", 5000.0), ("device_dax 1G", 500.0)] {
        let what = format!("bind of 64 GiB, to {peer}");
        bounds.push(Bound::ratio(
            what,
            ours,
            get("grow-ready", peer, 64),
            1.0 / limit,
            BIND,
        ));
    }
    for (leaf, limit, why) in [
        (
            "1G",
            1.0,
            "one fault, of which the page table above the leaf is a part",
        ),
        ("2M", 1.0, ""),
        (
            "4K",
            1.0 / 30.0,
            "the access to each page itself is in both",
        ),
    ] {
        let what = format!("first touch of 1 GiB by leaves of {leaf}, to device_dax {leaf}");
        let touch = |driver: &str| get("touch", &format!("{driver} {leaf}"), 1);
        bounds.push(Bound::ratio(
            what,
            touch("dax_dmem"),
            touch("device_dax"),
            limit,
            why,
        ));
    }
    for (row, what, why) in [
        ("unmap", "unmap", ""),
        ("fork", "fork", FORK),
        ("fork-touch", "fork and the child's first touch", FORK),
    ] {
        for (leaf, size) in [("1G", 8), ("2M", 8), ("4K", 1)] {
            let ours = net(figures, row, &format!("dax_dmem {leaf}"), size * GIB);
            let best = best(figures, row, leaf, size * GIB);
            let name = best.map_or("others", |(peer, _)| peer);
            let what =
                format!("{what} of {size} GiB by leaves of {leaf}, to {name}, the best peer");
            bounds.push(Bound::ratio(
                what,
                ours,
                best.map(|(_, value)| value),
                1.0,
                why,
            ));
        }
    }
    let zeroing = get("map", "hugetlbfs 1G", 8).zip(get("touch", "hugetlbfs 1G", 8));
    let zeroing = zeroing.map(|(map, touch)| map + touch);
    for (row, what, limit) in [
        ("start", "create to first touch of 8 GiB, scrubbed at release, to mmap and first touch of hugetlbfs 1G", 0.01),
        ("start-hand-out", "the same, scrubbed on hand-out, to hugetlbfs's own zeroing", 1.0),
    ] {
        bounds.push(Bound::ratio(what.into(), get(row, "dax_dmem 1G", 8), zeroing, limit, ""));
    }
    bounds
}

/// The best of the peers with such leaves.
pub fn best<'a>(figures: &'a Figures, row: &str, leaf: &str, size: u64) -> Option<(&'a str, u64)> {
    let peers = figures.peers(row).into_iter();
    let peers = peers.filter(|peer| !peer.starts_with("dax_dmem") && leaf_of(peer) == Some(leaf));
    peers
        .filter_map(|peer| Some((peer, net(figures, row, peer, size)?)))
        .min_by_key(|(_, value)| *value)
}

/// A number as it is compared: of forks what the mapping adds, as the processes of different cases differ otherwise.
pub fn net(figures: &Figures, row: &str, peer: &str, size: u64) -> Option<u64> {
    let value = figures.get(row, peer, size)?;
    match row {
        "fork" | "fork-touch" => {
            Some(value.saturating_sub(figures.get("fork-apart", peer, size)?))
        }
        _ => Some(value),
    }
}

/// The leaf that is in the name of a peer.
pub fn leaf_of(peer: &str) -> Option<&str> {
    peer.split(' ').nth(1)
}

/// GiB.
pub fn gib(bytes: u64) -> f64 {
    bytes as f64 / GIB as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::tests::figures;

    #[test]
    fn a_bound_holds_fails_or_is_not_known() {
        let list = [
            ("grow-ready", "dax_dmem 1G", 64 * GIB, 40_000),
            ("grow-ready", "device_dax 2M", 64 * GIB, 600_000_000),
            ("grow-ready", "device_dax 1G", 64 * GIB, 10_000_000),
        ];
        let holds: Vec<Option<bool>> = all(&figures(&list))
            .iter()
            .filter(|bound| bound.what.starts_with("bind"))
            .map(Bound::holds)
            .collect();
        assert_eq!(holds, [Some(true), Some(false)]);
        assert!(all(&figures(&[]))
            .iter()
            .all(|bound| bound.holds().is_none()));
    }

    #[test]
    fn thousands_stand_apart() {
        let texts = [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ];
        for (number, text) in texts {
            assert_eq!(grouped(number), text);
        }
    }
}
