// SPDX-License-Identifier: GPL-2.0

//! Units: physical and virtual addresses in bytes, device offsets in 4 KiB pages, and the sizes of
//! a leaf.
//!
//! The inner numbers are private and there is no arithmetic operator on them: whoever adds has to
//! say in which unit, and gets `None` instead of a wrapped address.

use core::fmt;

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// Bytes in a base page, the size of the smallest leaf. x86-64 only: nothing here holds for other
/// page sizes.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// Size of one page-table entry that maps memory. Ordered by size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Leaf {
    /// 4 KiB.
    Pte,
    /// 2 MiB.
    Pmd,
    /// 1 GiB.
    Pud,
}

impl Leaf {
    /// All sizes, largest first: the order in which they are worth trying.
    pub const LARGEST_FIRST: [Leaf; 3] = [Leaf::Pud, Leaf::Pmd, Leaf::Pte];

    /// log2 of [`Leaf::pages`], as `vm_operations_struct::huge_fault` is given it: 0, 9 or 18.
    #[inline]
    pub const fn order(self) -> u32 {
        match self {
            Leaf::Pte => 0,
            Leaf::Pmd => 9,
            Leaf::Pud => 18,
        }
    }

    /// The leaf of this order; `None` for an order no leaf has.
    #[inline]
    pub const fn from_order(order: u32) -> Option<Leaf> {
        match order {
            0 => Some(Leaf::Pte),
            9 => Some(Leaf::Pmd),
            18 => Some(Leaf::Pud),
            _ => None,
        }
    }

    /// Number of 4 KiB pages a leaf of this size maps.
    #[inline]
    pub const fn pages(self) -> u64 {
        1 << self.order()
    }

    /// Number of bytes a leaf of this size maps; always a power of two.
    #[inline]
    pub const fn size(self) -> u64 {
        self.pages() << PAGE_SHIFT
    }

    /// The next smaller leaf; `None` below [`Leaf::Pte`].
    #[inline]
    pub const fn smaller(self) -> Option<Leaf> {
        match self {
            Leaf::Pte => None,
            Leaf::Pmd => Some(Leaf::Pte),
            Leaf::Pud => Some(Leaf::Pmd),
        }
    }

    /// Mask of the address bits below this size.
    #[inline]
    pub(super) const fn mask(self) -> u64 {
        self.size().wrapping_sub(1)
    }
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// Takes a number of bytes from address 0 for what it is.
            #[inline]
            pub const fn from_raw(bytes: u64) -> Self {
                Self(bytes)
            }

            /// The number of bytes from address 0.
            #[inline]
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// The address `bytes` further up; `None` where that exceeds 64 bits.
            #[inline]
            pub fn checked_add(self, bytes: u64) -> Option<Self> {
                self.0.checked_add(bytes).map(Self)
            }

            /// The address `bytes` further down; `None` below address 0.
            #[inline]
            pub fn checked_sub(self, bytes: u64) -> Option<Self> {
                self.0.checked_sub(bytes).map(Self)
            }

            /// How many bytes this address lies above `origin`; `None` when it lies below.
            #[inline]
            pub fn bytes_above(self, origin: Self) -> Option<u64> {
                self.0.checked_sub(origin.0)
            }

            /// Whether a leaf of this size can start here.
            #[inline]
            pub const fn is_aligned(self, leaf: Leaf) -> bool {
                self.0 & leaf.mask() == 0
            }

            /// Start of the naturally aligned block of this size that contains the address.
            #[inline]
            pub const fn align_down(self, leaf: Leaf) -> Self {
                Self(self.0 & !leaf.mask())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

address! {
    /// Physical address, in bytes.
    PhysAddr
}

address! {
    /// User virtual address, in bytes.
    VirtAddr
}

impl PhysAddr {
    /// Number of the 4 KiB page frame that contains the address.
    #[inline]
    pub const fn pfn(self) -> u64 {
        self.0 >> PAGE_SHIFT
    }
}

/// Offset into a device, in 4 KiB pages (as `vm_pgoff` and the dax bus count it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageOff(u64);

impl PageOff {
    /// Takes a number of 4 KiB pages from the device's start for what it is.
    #[inline]
    pub const fn from_raw(pages: u64) -> Self {
        Self(pages)
    }

    /// The number of 4 KiB pages from the device's start.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The offset `pages` further on; `None` where that exceeds 64 bits.
    #[inline]
    pub fn checked_add(self, pages: u64) -> Option<Self> {
        self.0.checked_add(pages).map(Self)
    }

    /// How many pages this offset lies beyond `origin`; `None` when it lies before.
    #[inline]
    pub fn pages_beyond(self, origin: Self) -> Option<u64> {
        self.0.checked_sub(origin.0)
    }

    /// The offset in bytes; `None` where that exceeds 64 bits.
    #[inline]
    pub fn bytes(self) -> Option<u64> {
        self.0.checked_mul(PAGE_SIZE)
    }
}
