// SPDX-License-Identifier: GPL-2.0

//! What the kernel would need for the same bytes in other ways to give them to guests.
//!
//! The formulas are in Documentation/daxdmem-json.md. They are the kernel's: mm/hugetlb_vmemmap.c keeps one page of
//! struct pages for each huge page, mm/sparse-vmemmap.c two for each compound page of device_dax.

use dmem_plan::Leaf;
use serde::Serialize;

const PAGE: u64 = Leaf::Pte.size();
const MIB2: u64 = Leaf::Pmd.size();
const GIB: u64 = Leaf::Pud.size();

/// A way to give guests the bytes that are page-less now, and what it takes of the kernel's own memory.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Metadata {
    /// The way, in words of the JSON.
    pub way: &'static str,
    /// What it takes.
    pub bytes: u64,
}

/// Struct pages for so many bytes, one for each 4 KiB.
pub(super) fn struct_pages(bytes: u64, struct_page: u64) -> u64 {
    (bytes / PAGE).saturating_mul(struct_page)
}

/// The same where of each huge page's struct pages only so many pages are kept, and the page tables that this takes:
/// one for each 2 MiB of struct pages.
fn optimised(bytes: u64, struct_page: u64, huge: u64, kept: u64) -> u64 {
    let all = struct_pages(bytes, struct_page);
    let kept = bytes.div_ceil(huge).saturating_mul(kept * PAGE);
    kept.saturating_add(all.div_ceil(MIB2).saturating_mul(PAGE))
        .min(all)
}

/// All ways.
pub(super) fn metadata(bytes: u64, struct_page: u64) -> Vec<Metadata> {
    let way = |way, bytes| Metadata { way, bytes };
    let optimised = |huge, kept| optimised(bytes, struct_page, huge, kept);
    vec![
        way("page-less", 0),
        way("hugetlbfs", struct_pages(bytes, struct_page)),
        way("hugetlbfs-hvo-2m", optimised(MIB2, 1)),
        way("hugetlbfs-hvo-1g", optimised(GIB, 1)),
        way("device-dax-4k", struct_pages(bytes, struct_page)),
        way("device-dax-2m", optimised(MIB2, 2)),
        way("device-dax-1g", optimised(GIB, 2)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_needs() {
        let tib = 1 << 40;
        let of = |way: &str, bytes| {
            let all = metadata(bytes, 64).into_iter();
            all.filter(|entry| entry.way == way)
                .map(|entry| entry.bytes)
                .sum::<u64>()
        };
        let tables = 32 << 20;
        assert_eq!(of("hugetlbfs", tib), 16 << 30);
        assert_eq!(of("hugetlbfs-hvo-2m", tib), (2 << 30) + tables);
        assert_eq!(of("hugetlbfs-hvo-1g", tib), (4 << 20) + tables);
        assert_eq!(of("device-dax-2m", tib), (4 << 30) + tables);
        assert_eq!(of("device-dax-1g", tib), (8 << 20) + tables);
        assert_eq!(of("page-less", tib), 0);
        // 64 GiB with align 2M were measured to take 265,852 KiB.
        let difference = 265_852u64.abs_diff(of("device-dax-2m", 64 << 30) >> 10);
        assert!(difference * 100 < 265_852, "{difference} KiB");
    }
}
