// SPDX-License-Identifier: GPL-2.0

//! The size of `struct page`, from the running kernel's own description of its types.

use btf_rs::{Btf, Type};

/// What describes them. Everybody may read it.
const TYPES: &str = "/sys/kernel/btf/vmlinux";

/// Bytes of one `struct page`; `None` where the kernel does not say.
pub fn size() -> Option<u64> {
    let types = Btf::from_file(TYPES).ok()?;
    let named = types.resolve_types_by_name("page").ok()?;
    named.into_iter().find_map(|found| match found {
        Type::Struct(page) => u64::try_from(page.size()).ok(),
        _ => None,
    })
}
