// SPDX-License-Identifier: GPL-2.0

//! Why memory cannot be reserved as asked.

use std::path::PathBuf;

use super::plan::{mib, Circumstances, Node, SECTION};
use crate::size::Size;

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A node that is not there, or has no memory.
    #[error("there is no node {node} with memory\nThere {}", one_of(known))]
    UnknownNode {
        /// The node.
        node: u32,
        /// Those there are.
        known: Vec<u32>,
    },
    /// Memory is reserved by sections.
    #[error("{size} cannot be reserved: sizes are multiples of 128M, better of 1G\nUse {}", near(*size))]
    Misaligned {
        /// The size.
        size: Size,
    },
    /// A node cannot give so much.
    #[error("node {node} cannot give {size}: of its {memory} at most {most} can be reserved{why}\nAsk for less")]
    Short {
        /// The node.
        node: u32,
        /// What was asked.
        size: Size,
        /// What it has.
        memory: Size,
        /// What it could give.
        most: Size,
        /// Where the rest is.
        why: Reasons,
    },
    /// A node has no more than the host is to keep, or nothing that can be reserved.
    #[error("nothing of node {node} can be reserved when the host keeps {keep} of it: it has {memory}{why}\nLet the host keep less, or name other nodes: --all-but NODE=SIZE")]
    NothingBut {
        /// The node.
        node: u32,
        /// What the host is to keep.
        keep: Size,
        /// What it has.
        memory: Size,
        /// Where the rest is.
        why: Reasons,
    },
    /// The same for all nodes.
    #[error(
        "nothing can be reserved when the host keeps {keep} of each node\nLet the host keep less"
    )]
    NothingAnywhere {
        /// What the host is to keep.
        keep: Size,
    },
    /// All nodes together cannot give so much.
    #[error(
        "{size} cannot be reserved: at most {most} can{}\nAsk for less",
        if *scattered { format!(", in the {ranges} ranges that the boot code keeps the kernel out of; the rest is scattered") }
        else { String::new() }
    )]
    TooLarge {
        /// What was asked.
        size: Size,
        /// What there is.
        most: Size,
        /// In so many ranges.
        ranges: usize,
        /// Whether there is more in more ranges.
        scattered: bool,
    },
    /// More ranges than the boot code keeps the kernel out of.
    #[error(
        "this takes {needed} ranges ({}), and the boot code keeps the randomly placed kernel out of {most} more at most{}\n\
         Reserve on fewer nodes (--node NODE=SIZE, --all-but NODE=SIZE). Or boot with `nokaslr`, which has the kernel stay \
         where the boot loader puts it; when that is in force, repeat the command",
        per_node(nodes),
        if *others > 0 { format!(" ({others} are used up by other memmap= parameters)") } else { String::new() }
    )]
    TooManyRanges {
        /// So many.
        needed: usize,
        /// So many are to be had.
        most: usize,
        /// So many others have.
        others: usize,
        /// Node, and how many it takes.
        nodes: Vec<(u32, usize)>,
    },
    /// The host has to live, too.
    #[error(
        "this leaves {left} of {memory} to the host, which needs {needed} at least: 2G for itself, and for the guests' page \
         tables 1/256 of what is reserved\nReserve {most} at most"
    )]
    TooLittleLeft {
        /// What is left.
        left: Size,
        /// What it needs.
        needed: Size,
        /// What there is.
        memory: Size,
        /// What may be reserved.
        most: Size,
    },
}

/// Where the memory of a node is that cannot be reserved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reasons(Vec<String>);

impl std::fmt::Display for Reasons {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_slice() {
            [] => Ok(()),
            reasons => write!(f, " ({})", reasons.join("; ")),
        }
    }
}

impl Reasons {
    fn of(node: &Node, circumstances: &Circumstances) -> Reasons {
        let mut reasons = Vec::new();
        match node.low() {
            0 => {}
            low => reasons.push(format!(
                "{} lies below 4G, which is never reserved",
                mib(low)
            )),
        }
        for taken in &node.taken {
            reasons.push(format!("{} has {}", taken.by, taken.range));
        }
        let free = super::topology::total(&node.free);
        match free - node.capacity(SECTION, usize::MAX) {
            0 => {}
            lost => reasons.push(format!(
                "{} lies beside holes and ends, between 128M boundaries",
                mib(lost)
            )),
        }
        match node.specific_purpose {
            0 => {}
            size if circumstances.intel => reasons.push(format!(
                "{} more is EFI specific-purpose memory, which KVM maps uncached on Intel hosts: with the kernel \
                 parameter `efi=nosoftreserve` it is plain RAM and can be reserved",
                Size(size)
            )),
            size => reasons.push(format!(
                "{} more is EFI specific-purpose memory: a region by itself, without a reservation",
                Size(size)
            )),
        }
        Reasons(reasons)
    }
}

impl PlanError {
    /// A node that cannot give `size`.
    pub fn short(node: &Node, size: Size, circumstances: &Circumstances) -> PlanError {
        PlanError::Short {
            node: node.id,
            size,
            memory: mib(node.memory()),
            most: Size(node.capacity(SECTION, usize::MAX)),
            why: Reasons::of(node, circumstances),
        }
    }

    /// A node of which nothing is left when the host keeps that much.
    pub fn nothing_but(node: &Node, keep: Size, circumstances: &Circumstances) -> PlanError {
        PlanError::NothingBut {
            node: node.id,
            keep,
            memory: mib(node.memory()),
            why: Reasons::of(node, circumstances),
        }
    }
}

/// Why a plan could not be made, shown or applied.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// There is no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The same was asked twice.
    #[error("{0}\nGive it once")]
    Twice(String),
    /// --apply alone.
    #[error("--apply needs to be told what to reserve: --total, --per-node, --node or --all-but")]
    NothingAsked,
    /// The command line has parameters that change memory as a whole.
    #[error(
        "the kernel was booted with {what}, which changes memory as a whole: no reservation can be planned beside it\n\
         Take it out of the boot configuration, reboot, then repeat the command"
    )]
    Whole {
        /// The parameters.
        what: String,
    },
    /// The table of memory or nodes cannot be had.
    #[error("cannot read the host's memory: {why}\n{advice}")]
    Unreadable {
        /// Why.
        why: String,
        /// What to do.
        advice: &'static str,
    },
    /// A file with memory instead of the host's own is malformed.
    #[error("{path} describes no memory: {why}\nIt holds what --json shows as \"topology\"", path = path.display())]
    Topology {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Nothing to write to.
    #[error(
        "no boot loader is found that daxdmem knows: neither GRUB (update-grub, /etc/default/grub) nor systemd-boot \
         (kernel-install, /etc/kernel/cmdline)\nAdd the parameters to the kernel's command line by that boot loader's own means{hint}"
    )]
    NoLoader {
        /// What would make it known.
        hint: &'static str,
    },
    /// Others have put such parameters there.
    #[error(
        "{path} has a reservation of its own: {what}\n\
         Take it out there: daxdmem keeps its own in a place of its own, and both would hold", path = path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The parameters.
        what: String,
    },
    /// The kernel cuts long command lines.
    #[error(
        "the command line would have {len} characters, and the kernel reads {most}: the end would be lost\n\
         Shorten it, or reserve fewer ranges",
        most = super::parameter::LONGEST
    )]
    TooLong {
        /// So many.
        len: usize,
    },
    /// A file could not be written; everything is as it was.
    #[error("cannot write {path}: {why}\nNothing has changed", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The boot loader's program failed; everything is as it was.
    #[error("{command} failed: {said}\nEverything is as it was before: repair that first, then repeat the command")]
    Loader {
        /// The program.
        command: String,
        /// What it said.
        said: String,
    },
    /// As above, and the way back failed as well.
    #[error(
        "{command} failed: {said}\n\
         The files are as they were, but {command} fails with them, too: the boot configuration may be incomplete. See \
         that {command} works before the next reboot"
    )]
    LoaderTwice {
        /// The program.
        command: String,
        /// What it said.
        said: String,
    },
}

fn one_of(nodes: &[u32]) -> String {
    let texts: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    match texts.as_slice() {
        [] => "is none".to_owned(),
        [one] => format!("is node {one} only"),
        _ => format!("are {}", texts.join(", ")),
    }
}

fn near(size: Size) -> String {
    let below = size.0 / SECTION * SECTION;
    let above = Size(below.saturating_add(SECTION) / SECTION * SECTION);
    match below {
        0 => above.to_string(),
        below => format!("{} or {above}", Size(below)),
    }
}

fn per_node(nodes: &[(u32, usize)]) -> String {
    let texts = nodes
        .iter()
        .map(|(node, count)| format!("{count} on node {node}"));
    texts.collect::<Vec<_>>().join(", ")
}
