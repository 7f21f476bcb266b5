// SPDX-License-Identifier: GPL-2.0

//! Why libvirt's files are not changed.

use std::path::PathBuf;

use crate::name::Target;

/// What is wrong with a file of libvirt's, or with what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LibvirtError {
    #[error("{file} is no well-formed XML: {why}\nIt stays as it is")]
    NotXml { file: String, why: String },

    #[error(
        "{file} is no domain of libvirt's: {why}\n`virsh dumpxml --inactive DOMAIN` writes one"
    )]
    NotDomain { file: String, why: String },

    #[error(
        "{file} cannot take its memory from a device:\n{}\nIt stays as it is",
        list(conflicts)
    )]
    Conflicts {
        file: String,
        conflicts: Vec<String>,
    },

    #[error(
        "{target} has several devices, one for each NUMA node, and libvirt has no way to give a guest several\n\
         Start it by QEMU itself, `daxdmem qemu-args {target}`, or use a guest with one device"
    )]
    Several { target: Target },

    #[error("{path}: {why}\nPut that right by hand, then repeat the command")]
    Settings { path: PathBuf, why: String },
}

fn list(conflicts: &[String]) -> String {
    let lines: Vec<String> = conflicts.iter().map(|line| format!("  {line}")).collect();
    lines.join("\n")
}
