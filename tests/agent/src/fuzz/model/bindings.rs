// SPDX-License-Identifier: GPL-2.0
//! Bindings, from bind until the last user is gone.

use super::{share_blocks, Binding, Model};
use crate::fuzz::op::{Expected, Seen, Want};
use crate::scrub::Policy;

impl Model {
    /// Bindings that are over but for their users.
    fn is_quarantined(&self, parts: &[(u64, u64)]) -> bool {
        self.bindings
            .iter()
            .any(|binding| !binding.live && !binding.over && share_blocks(&binding.parts, parts))
    }

    pub(super) fn bind(&mut self, device: usize, policy: Policy) -> Option<Expected> {
        let parts = self.devices.get(device)?.as_ref()?.parts.clone();
        if self.is_quarantined(&parts) {
            return Some(Expected::one(Want::Is(Seen::Errno(libc::EBUSY))));
        }
        if policy != Policy::Never {
            for (block, blocks) in &parts {
                (*block..block + blocks).for_each(|block| self.memory.zero(block));
            }
        }
        self.bindings.push(Binding {
            parts,
            policy,
            opened: false,
            live: true,
            over: false,
        });
        self.devices.get_mut(device)?.as_mut()?.binding = Some(self.bindings.len() - 1);
        Some(Expected::one(Want::DONE))
    }

    pub(super) fn unbind(&mut self, binding: usize) -> Option<Expected> {
        let binding = self.bindings.get_mut(binding)?;
        binding.live = false;
        if !binding.opened && binding.policy != Policy::Never {
            // Perhaps in the middle of scrubbing.
            for (block, blocks) in &binding.parts {
                (*block..block + blocks).for_each(|block| self.memory.forget(block));
            }
        }
        Some(Expected::one(Want::DONE))
    }

    /// The device's binding, which somebody opens.
    pub(super) fn opened(&mut self, device: usize) -> Option<usize> {
        let binding = self.devices.get(device)?.as_ref()?.binding?;
        self.bindings.get_mut(binding)?.opened = true;
        Some(binding)
    }

    /// Notices bindings whose last user is gone.
    pub(super) fn end_bindings(&mut self) {
        for index in 0..self.bindings.len() {
            let binding = &self.bindings[index];
            if binding.live || binding.over || self.is_used(index) {
                continue;
            }
            self.bindings[index].over = true;
            if self.bindings[index].policy == Policy::Release {
                // Zeroed in the background: until the next bind that scrubs nobody knows how much of it.
                for (block, blocks) in self.bindings[index].parts.clone() {
                    (block..block + blocks).for_each(|block| self.memory.forget(block));
                }
            }
        }
    }

    fn is_used(&self, binding: usize) -> bool {
        let leads_there = |file: usize| {
            self.files
                .get(file)
                .is_some_and(|file| file.binding == binding)
        };
        self.processes.iter().flatten().any(|process| {
            process
                .files
                .iter()
                .flatten()
                .any(|file| leads_there(*file))
                || process.space.vmas().iter().any(|vma| leads_there(vma.file))
        })
    }
}
