// SPDX-License-Identifier: GPL-2.0

//! Everything that can go wrong, said so that the reader knows what to do next.
//!
//! Each message names the object, what was wrong with it, and a way on.

mod verbs;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::align::Align;
use crate::driver::Quarantine;
use crate::kexec::error::KexecError;
use crate::layout::LayoutError;
use crate::libvirt::LibvirtError;
use crate::name::{DeviceName, GuestName, PartName, Target};
use crate::nodes::NodesError;
use crate::poison::error::PoisonError;
use crate::reserve::error::ReserveError;
use crate::size::Size;
use crate::space::Shortage;
use crate::users::Users;

pub use verbs::VerbError;

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("daxdmem {verb} changes the host, which takes root: run it with sudo")]
    NotRoot { verb: &'static str },

    #[error(
        "the driver dax_dmem is not loaded, and loading it failed: {said}\n\
         Install the module for this kernel, see that `modprobe dax_dmem` works, then repeat the command"
    )]
    NoDriver { said: String },

    #[error(
        "the driver dax_dmem that is loaded is older than this daxdmem, and does not scrub\n\
         Install the module that belongs to it. When no page-less device is left (`daxdmem list`), \
         `rmmod dax_dmem && modprobe dax_dmem`, then repeat the command"
    )]
    OldDriver,

    #[error(
        "this host has no dax region: no memory is reserved, or dax_hmem is not loaded\n\
         `daxdmem reserve` plans a reservation, `daxdmem check` says what is missing"
    )]
    NoRegion,

    #[error(
        "there is no region {region}\nThere are: {known}. Name one of them, or leave --region out"
    )]
    UnknownRegion { region: u32, known: String },

    #[error(
        "region {region} has one device for good, {device}, and cannot be cut into others\n\
         Use that one: `daxdmem bind {device}`"
    )]
    StaticRegion { region: u32, device: DeviceName },

    #[error("no region lies on node {node}\nThere are: {known}. Name the node of one of them, or leave --node out")]
    UnknownNode { node: u32, known: String },

    #[error(
        "size {size} is no multiple of {grain}, the unit of devices with align {align}\nUse {near}"
    )]
    Misaligned {
        size: Size,
        align: Align,
        grain: Size,
        near: String,
    },

    #[error("no space for {size} with align {align}: {shortage}")]
    NoSpace {
        size: Size,
        align: Align,
        shortage: Shortage,
    },

    #[error(
        "the name {name} is taken: it stands for {device}\n\
         Choose another one, or free it with `daxdmem destroy {name}`"
    )]
    NameTaken { name: GuestName, device: DeviceName },

    #[error("no guest is called {name}\n{known}")]
    UnknownName { name: PartName, known: String },

    #[error("there is no device {device}\n`daxdmem list` shows the devices there are")]
    UnknownDevice { device: DeviceName },

    #[error(
        "{device}, which {name} stood for, is gone or was changed by another program than daxdmem\n\
         `daxdmem destroy {name}` forgets the name and leaves the devices alone"
    )]
    Gone { name: PartName, device: DeviceName },

    #[error("{target} is in use: {users}\nEnd that first. With --force it is taken away from them: they get SIGBUS")]
    InUse { target: String, users: Users },

    #[error(
        "{device} cannot be bound: {} was unbound from {} while in use, and is in quarantine {}\n\
         `daxdmem list` shows the quarantine; end those programs first",
        held.range, held.device, held.end()
    )]
    Quarantined {
        device: DeviceName,
        held: Quarantine,
    },

    #[error(
        "{device} is system RAM: the kernel's own memory may be in it\n\
         Take it back first: `daxdmem mode {device} page-less`"
    )]
    SystemRam { device: DeviceName },

    #[error("{device} is bound to the driver {driver}\nTake it away from there first: `daxdmem unbind {device}`")]
    OtherDriver { device: DeviceName, driver: String },

    #[error("{device} is bound to the driver {driver}, which daxdmem does not know\nUnbind it by that driver's own means")]
    ForeignDriver { device: DeviceName, driver: String },

    #[error(
        "there is no {kind} called {name}\n`getent {}` shows those there are; or give a number",
        if *kind == "user" { "passwd" } else { "group" }
    )]
    UnknownOwner { kind: &'static str, name: String },

    #[error(
        "{device} could not be scrubbed, so nobody can open it\n\
         The kernel log says why: `dmesg | tail`. Unbind and bind it to try again: `daxdmem unbind {device}`"
    )]
    ScrubFailed { device: DeviceName },

    #[error(
        "{device} was taken away from dax_dmem while it was being scrubbed\n\
         Another program did that; `daxdmem list` shows what became of it"
    )]
    ScrubLost { device: DeviceName },

    #[error(
        "{device} has no memory\n`daxdmem create NAME --size SIZE` makes a device with memory"
    )]
    Vacant { device: DeviceName },

    #[error(
        "{target} is page-less already, and stays as it is\n\
         Change how it is kept with `daxdmem set {target}`, or unbind it first: `daxdmem unbind {target}`"
    )]
    Bound { target: Target },

    #[error(
        "{target} is not page-less now ({mode})\nMake it so first: `daxdmem {}`",
        if mode == "unbound" { format!("bind {target}") } else { format!("mode {target} page-less") }
    )]
    NotBound { target: Target, mode: String },

    #[error(
        "{target} is no window for DMA: it is {mode}, and has no struct pages\n\
         Give it some: `daxdmem mode {target} devdax`"
    )]
    NoWindow { target: Target, mode: String },

    #[error("dax_dmem did not take {device}{instead}\nThe kernel log says why: `dmesg | tail`")]
    Refused { device: DeviceName, instead: String },

    #[error(
        "{device} is not what daxdmem made it: {what}\n\
         Another program (daxctl?) works on the same region: repeat the command when it is done"
    )]
    Disturbed { device: DeviceName, what: String },

    #[error(transparent)]
    Layout(#[from] LayoutError),

    #[error(transparent)]
    Nodes(#[from] NodesError),

    #[error(transparent)]
    Libvirt(#[from] LibvirtError),

    #[error(transparent)]
    Verb(#[from] VerbError),

    #[error(transparent)]
    Poison(#[from] PoisonError),

    #[error(transparent)]
    Kexec(#[from] KexecError),

    #[error("{what}: {source}{hint}")]
    Kernel {
        what: String,
        source: io::Error,
        hint: &'static str,
    },

    #[error(
        "{path} cannot be used: {why}\n\
         It holds the guests' names and nothing else. Repair it, or move it away: then the devices stay as they are, \
         nameless"
    )]
    State { path: PathBuf, why: String },

    #[error("{path} is in the way: daxdmem keeps its links there\nMove it away, then repeat the command")]
    InTheWay { path: PathBuf },

    #[error("{error}\nUndoing it is no longer safe: {what}\n`daxdmem list` shows it")]
    LeftBehind { error: Box<Error>, what: String },

    #[error(
        "{operation} was interrupted earlier and has to be repaired first, which failed: {error}\n\
         The next daxdmem command tries again"
    )]
    Unrepaired {
        operation: String,
        error: Box<Error>,
    },

    #[error(transparent)]
    Reserve(#[from] ReserveError),

    #[error(
        "{error}\n{}The next daxdmem command tries again",
        match undo.to_string() {
            undo if undo == error.to_string() => "It is not done, and not undone. ".to_owned(),
            undo => format!("Undoing what had been done failed as well: {undo}\n"),
        }
    )]
    Unfinished { error: Box<Error>, undo: Box<Error> },
}

/// Result of everything that can fail with an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A system call that failed while doing `what`.
    pub fn kernel(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        |source| Error::Kernel {
            what,
            source,
            hint: "",
        }
    }

    /// Whether the host is not as it was.
    pub fn leaves_something(&self) -> bool {
        match self {
            Error::Unfinished { .. }
            | Error::Unrepaired { .. }
            | Error::LeftBehind { .. }
            | Error::ScrubFailed { .. }
            | Error::ScrubLost { .. }
            | Error::Verb(VerbError::Kept { .. })
            | Error::Reserve(ReserveError::LoaderTwice { .. }) => true,
            Error::Layout(LayoutError::NotReached { left, .. }) => *left,
            Error::Poison(error) => error.leaves_something(),
            _ => false,
        }
    }

    /// 1: refused or failed, and the host is as it was. 3: something is left behind. (2 is for a
    /// command line that was not understood, and comes from the argument parser.)
    pub fn exit_code(&self) -> ExitCode {
        match self.leaves_something() {
            true => ExitCode::from(3),
            false => ExitCode::from(1),
        }
    }
}
