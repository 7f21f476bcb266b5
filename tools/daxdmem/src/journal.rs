// SPDX-License-Identifier: GPL-2.0

//! The running operation, written down before its first step: what a later run needs to undo or finish it.
//!
//! An entry names what it is about to touch by [`Identity`] and by ranges, so that undoing never touches a device
//! that another program made meanwhile.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::access::Access;
use crate::bus::{Identity, Range};
use crate::host::Knob;
use crate::mode::Mode;
use crate::name::{GuestName, PartName};
use crate::settings::Settings;

/// An operation that has begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum Operation {
    /// A device without memory is added to a region to learn where the region starts, and deleted again.
    Survey(Survey),
    /// A device is made for a guest. Interrupted, it is unmade.
    Create(Create),
    /// A guest's device is unmade. Interrupted, it goes on.
    Destroy(Destroy),
    /// A device is bound. Interrupted, its name may be left in the driver's lists.
    Bind(Bind),
    /// What was chosen for a device is changed. Interrupted, it goes on.
    Set(Set),
    /// A guest gets another name. Interrupted, it goes on.
    Rename(Rename),
    /// A device gets other ranges. Interrupted, it has those that it had or those that it was to have.
    Resize(Resize),
    /// A device goes to another driver. Interrupted, it goes back to the one that had it, or on to the next where that
    /// has begun.
    Mode(ChangeMode),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Survey(survey) => {
                write!(f, "a look at the region {}", survey.region.display())
            }
            Operation::Create(create) => write!(f, "create {}", create.name),
            Operation::Destroy(destroy) => write!(f, "destroy {}", destroy.name),
            Operation::Bind(bind) => write!(f, "bind {}", bind.device.device),
            Operation::Set(set) => write!(f, "set {}", set.device.device),
            Operation::Rename(rename) => write!(f, "rename {} {}", rename.from, rename.to),
            Operation::Resize(resize) => write!(f, "resize {}", resize.name),
            Operation::Mode(mode) => write!(f, "mode {}", mode.device.device),
        }
    }
}

/// What is done to all devices of a guest that has several, operation by operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum Group {
    /// They are made. Interrupted, those that are there are unmade.
    Create(CreateAll),
    /// They are unmade. Interrupted, it goes on.
    Destroy(DestroyAll),
    /// What was chosen for them is changed. Interrupted, it goes on.
    Set(SetAll),
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Group::Create(create) => write!(f, "create {}", create.guest),
            Group::Destroy(destroy) => write!(f, "destroy {}", destroy.guest),
            Group::Set(set) => write!(f, "set {}", set.guest),
        }
    }
}

/// See [`Group::Create`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateAll {
    /// For whom.
    pub guest: GuestName,
    /// The nodes of the devices to make.
    pub nodes: Vec<u32>,
}

/// See [`Group::Destroy`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestroyAll {
    /// Whose.
    pub guest: GuestName,
    /// Whether their users are not to be asked.
    pub force: bool,
}

/// See [`Group::Set`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAll {
    /// Whose.
    pub guest: GuestName,
    /// The single changes.
    pub sets: Vec<Set>,
}

/// See [`Operation::Survey`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survey {
    /// Directory of the region in sysfs.
    pub region: PathBuf,
    /// Inode number of the newest device that was there before.
    pub newest: u64,
}

/// See [`Operation::Create`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// For whom.
    pub name: PartName,
    /// Directory of the region in sysfs.
    pub region: PathBuf,
    /// Inode number of the region's newest device before.
    pub newest: u64,
    /// The device, once there is one.
    pub device: Option<Identity>,
    /// Its alignment before, if it was there before and only put to use: then it is not deleted, but put back.
    pub reused: Option<u64>,
    /// The alignment to set, in bytes.
    pub align: u64,
    /// The ranges to add, in order of offset.
    pub ranges: Vec<Range>,
    /// The whole region: later devices may leave none behind that tells.
    #[serde(default)]
    pub whole: Option<Range>,
    /// What was chosen for it.
    #[serde(default)]
    pub settings: Settings,
}

/// See [`Operation::Destroy`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destroy {
    /// Whose.
    pub name: PartName,
    /// Whether its users are not to be asked.
    pub force: bool,
}

/// See [`Operation::Bind`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// The device.
    pub device: Identity,
    /// The guest whose it is.
    #[serde(default)]
    pub name: Option<PartName>,
    /// What was chosen for it.
    #[serde(default)]
    pub settings: Settings,
    /// Its node before.
    #[serde(default)]
    pub before: Option<Access>,
}

/// See [`Operation::Set`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// The device.
    pub device: Identity,
    /// The guest whose it is.
    pub name: Option<PartName>,
    /// What is chosen for it from now on.
    pub settings: Settings,
}

/// See [`Operation::Rename`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rename {
    /// The name it has.
    pub from: GuestName,
    /// The name it gets.
    pub to: GuestName,
}

/// See [`Operation::Resize`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// The device.
    pub device: Identity,
    /// The guest whose it is.
    pub name: PartName,
    /// Its ranges before.
    pub from: Vec<Range>,
    /// Its ranges afterwards.
    pub to: Vec<Range>,
    /// What it is used as, before and afterwards.
    pub mode: Mode,
    /// What was chosen for it.
    pub settings: Settings,
}

impl Resize {
    /// Number of ranges that are the same before and afterwards.
    pub fn kept(&self) -> usize {
        let pairs = self.from.iter().zip(&self.to);
        pairs.take_while(|(from, to)| from == to).count()
    }
}

/// See [`Operation::Mode`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeMode {
    /// The device.
    pub device: Identity,
    /// What it was used as.
    pub from: Mode,
    /// What it is to be used as.
    pub to: Mode,
    /// What was chosen for it.
    pub settings: Settings,
    /// Settings of the host as they were, and to which they have to be put back.
    pub host: Vec<Knob>,
}
