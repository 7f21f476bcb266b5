// SPDX-License-Identifier: GPL-2.0

//! What libvirt has to be told: [`domain`] writes and edits domain XML, [`access`] its configuration, so that its QEMU
//! may open the devices. [`splice`] changes XML without touching the rest.

pub mod access;
pub mod domain;
mod error;
mod splice;

pub use error::LibvirtError;
