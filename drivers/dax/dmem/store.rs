// SPDX-License-Identifier: GPL-2.0

//! Kernel memory for sets of extents.

use core::ops::Deref;

use kernel::prelude::*;

use crate::plan::{Extent, Store};

/// Kernel memory for a set of extents.
pub(crate) struct Extents(KVVec<Extent>);

impl Extents {
    pub(crate) const fn new() -> Self {
        Self(KVVec::new())
    }
}

impl Deref for Extents {
    type Target = [Extent];

    fn deref(&self) -> &[Extent] {
        &self.0
    }
}

impl Store for Extents {
    fn insert(&mut self, index: usize, extent: Extent) -> bool {
        let room = self.0.reserve(1, GFP_KERNEL);
        room.is_ok() && self.0.insert_within_capacity(index, extent).is_ok()
    }

    fn replace(&mut self, index: usize, extent: Extent) {
        if let Some(slot) = self.0.get_mut(index) {
            *slot = extent;
        }
    }

    fn remove(&mut self, index: usize) {
        // The trait promises that there is one.
        let _ = self.0.remove(index);
    }
}
