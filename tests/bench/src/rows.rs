// SPDX-License-Identifier: GPL-2.0
//! The rows: what each means, and in which unit it is.

/// How numbers of a row are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Instructions, or any other number.
    Count,
    /// Bytes.
    Bytes,
}

/// One row.
#[derive(Debug)]
pub struct Row {
    /// As the figures name it.
    pub name: &'static str,
    /// Heading.
    pub title: &'static str,
    /// What is counted.
    pub text: &'static str,
    /// Of the numbers.
    pub unit: Unit,
    /// Whether its sizes are numbers of guests, and not bytes.
    pub guests: bool,
    /// Whether it is drawn as well.
    pub plot: bool,
    /// Why peers may be ahead.
    pub why: &'static str,
}

const fn row(name: &'static str, title: &'static str, text: &'static str) -> Row {
    Row {
        name,
        title,
        text,
        unit: Unit::Count,
        guests: false,
        plot: false,
        why: "",
    }
}

const fn bytes(row: Row) -> Row {
    Row {
        unit: Unit::Bytes,
        ..row
    }
}

const fn because(row: Row, why: &'static str) -> Row {
    Row { why, ..row }
}

const fn drawn(row: Row) -> Row {
    Row { plot: true, ..row }
}

const fn guests(row: Row) -> Row {
    Row {
        guests: true,
        plot: true,
        ..row
    }
}

/// All, in the order of the report.
pub const ROWS: &[Row] = &[
    drawn(bytes(row(
        "kernel-memory",
        "Kernel memory",
        "What the kernel keeps for this much guest memory, page tables of users apart. hugetlbfs: the struct pages of the pool that are left.",
    ))),
    bytes(row(
        "page-tables",
        "Page tables of users",
        "What one process's page tables take once it has touched all of it, in the largest of the guests' mappings as well as in those of single pages.",
    )),
    bytes(row(
        "memtotal",
        "MemTotal of hosts",
        "`MemTotal` of a host with this much memory: all but 8 GiB reserved, or nothing.",
    )),
    bytes(row("reserved", "Reserved memory of the same hosts", "Guest memory beside that, page-less.")),
    row(
        "boot",
        "Boot of hosts",
        "From the kernel's first line to init; one CPU, so that deferred work is in it as far as it was done by then.",
    ),
    drawn(row(
        "grow-ready",
        "Making memory ready, by size",
        "Binding the device, or reserving the hugetlb pages. Hosts larger than the one that plays them: nothing is zeroed at allocation (`init_on_alloc=0`).",
    )),
    drawn(row(
        "grow-give-back",
        "Giving it back, by size",
        "Unbinding the device (nothing is scrubbed), or freeing the pages.",
    )),
    drawn(row(
        "grow-touch",
        "First touch, by size",
        "One read per leaf. Left out where it takes more than 262,144 faults.",
    )),
    row("grow-unmap", "Unmapping, by size", "munmap() of all that."),
    because(
        row(
            "ready",
            "Making a guest's memory ready",
            "As above, with Debian's own settings: the kernel zeroes pages when it allocates them.",
        ),
        "memfd has nothing to make ready: it takes and zeroes pages at the first touch, which the host may not have left by then",
    ),
    because(
        row("map", "Mapping it", "open() or memfd_create(), and mmap()."),
        "once per guest: open() counts the user, mmap() keeps the address space for the quarantine and looks for an address that fits large leaves",
    ),
    row(
        "touch",
        "First touch of all of it",
        "One access per leaf: what page faults take, and for hugetlbfs and memfd the zeroing, which page-less memory has behind it.",
    ),
    row("faults", "Page faults meanwhile", "Of the process."),
    because(
        row(
            "fork",
            "fork() with the mapping",
            "With the end of the child, which does nothing, and waiting for it.",
        ),
        "above",
    ),
    because(
        row(
            "fork-touch",
            "fork() and the child's first touch of all of it",
            "The same with a child that touches each leaf before it ends.",
        ),
        "processes that map the same 1 GiB of hugetlbfs with 2 MiB pages share its page table (huge_pmd_share() in mm/hugetlb.c), so that the child has one fault for 512 leaves",
    ),
    because(row(
        "fork-apart",
        "fork() without the mapping",
        "As QEMU does: it sets MADV_DONTFORK on a guest's memory. What the two rows above have more than this is what the mapping adds.",
    ), "the processes of two cases: their other memory"),
    row("unmap", "Unmapping it", "munmap()."),
    because(
        row("close", "Closing it", "The last file: hugetlbfs and memfd free the pages."),
        "once per guest: the user is counted",
    ),
    because(
        row(
            "give-back",
            "Giving it back",
            "Unbinding the device without scrub, or emptying the pool.",
        ),
        "memfd has given its pages back when it was closed",
    ),
    row(
        "start",
        "From create to first touch, scrubbed at release",
        "Bind, open, mmap, touch of every leaf, on memory that is known to be zero.",
    ),
    row(
        "start-hand-out",
        "From create to first touch, scrubbed on hand-out",
        "The same on memory that somebody has used.",
    ),
    row(
        "release-scrub",
        "Release with scrub",
        "Unbind, until all of it is zero again.",
    ),
    row(
        "kvm-faults",
        "KVM's faults until a guest is warm",
        "A guest without a kernel writes to each page of its memory, once. Entries that KVM makes in its own page tables. Left out where they are more than 262,144.",
    ),
    row(
        "kvm-warm",
        "KVM until a guest is warm",
        "The same in instructions: faults of the process and of KVM, the zeroing of hugetlbfs and memfd, and the guest's own four per page.",
    ),
    because(
        row(
            "kvm-warm-populated",
            "KVM until a guest is warm, its memory populated before",
            "The process had touched all of it (`prealloc=on`): what is left is KVM's part.",
        ),
        "for each fault KVM asks twice for a page in vain before it takes an address without one (hva_to_pfn() in virt/kvm/kvm_main.c)",
    ),
    drawn(because(
        row(
            "dma-map",
            "VFIO: DMA map",
            "VFIO_IOMMU_MAP_DMA (type1) of all of it, each leaf being there already. hugetlbfs: up to 8 GiB, as it has to be written.",
        ),
        "type1 takes pages by batches of 512, and memory without pages by leaves (vaddr_get_pfns() in drivers/vfio/vfio_iommu_type1.c): one page for a leaf of 4 KiB",
    )),
    drawn(because(
        row("dma-unmap", "VFIO: DMA unmap", "VFIO_IOMMU_UNMAP_DMA of all that."),
        "type1 asks of each 4 KiB page by itself whether it has to be let go, where it may not be (vfio_unpin_pages_remote(), has_rsvd); pages of hugetlbfs it lets go by folios",
    )),
    row("dma-pinned", "VFIO: pages pinned meanwhile", "Of 4 KiB, by the DMA map."),
    bytes(row("dma-tables", "VFIO: page tables of the IOMMU", "By which the DMA map has made them grow.")),
    guests(row("tool-create", "daxdmem create", "Of the last of so many guests.")),
    guests(row("tool-list", "daxdmem list", "With so many guests.")),
    guests(row("tool-list-json", "daxdmem list --json", "With so many guests.")),
    guests(row("tool-bind", "daxdmem bind", "Of the last guest.")),
    guests(row("tool-unbind", "daxdmem unbind", "Of the last guest.")),
    guests(row("tool-destroy", "daxdmem destroy", "Of the last guest.")),
    guests(row(
        "tool-apply",
        "daxdmem apply",
        "From a tenth of the guests to one fewer than so many, in one go.",
    )),
];
