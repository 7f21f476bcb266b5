// SPDX-License-Identifier: GPL-2.0
//! KVM of the first-level VM: loading it, and the leaf sizes it maps guests with.

use std::path::Path;

use crate::case::{Failure, Outcome};
use crate::{module, sysfs};

/// Leaves of all running guests, by size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KvmPages {
    /// 4 KiB leaves.
    pub small: u64,
    /// 2 MiB leaves.
    pub medium: u64,
    /// 1 GiB leaves.
    pub large: u64,
}

/// Loads KVM: QEMU's TCG emulates AMD's extension.
pub fn load() -> Outcome {
    module::load("kvm-amd")?;
    if !Path::new("/dev/kvm").exists() {
        return Err(Failure::Fail(
            "kvm-amd is loaded but there is no /dev/kvm".into(),
        ));
    }
    Ok(())
}

impl KvmPages {
    /// Reads KVM's counters from debugfs.
    pub fn read() -> Outcome<KvmPages> {
        let field = |name: &str| sysfs::read_number(Path::new("/sys/kernel/debug/kvm").join(name));
        Ok(KvmPages {
            small: field("pages_4k")?,
            medium: field("pages_2m")?,
            large: field("pages_1g")?,
        })
    }
}
