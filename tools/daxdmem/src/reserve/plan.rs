// SPDX-License-Identifier: GPL-2.0

//! Chooses the ranges to reserve: a function of the host's memory, its circumstances and what is asked.
//!
//! - All ranges start and end on 1 GiB boundaries where what is asked can be had so, or else on 128 MiB: within such a
//!   section the kernel has struct pages for all or nothing.
//! - Nothing below 4 GiB is reserved. It is what the kernel, its initial ramdisk, a crash kernel, bounce buffers and
//!   devices that reach 32 bits need, and it is little.
//! - A range lies in RAM of one node, whole: over a hole the kernel would make a region of what is no memory, and all
//!   of a region belongs to the node of its first byte.
//! - There are at most four: out of more the boot code does not keep the kernel that it places at random.

use std::collections::BTreeMap;

use super::error::PlanError;
use super::topology::{self, total, Topology};
use crate::bus::Range;
use crate::size::Size;

/// Boundaries by preference.
const GIB: u64 = 1 << 30;
/// Boundaries that are needed: a section, for which the kernel has struct pages or not.
pub const SECTION: u64 = 128 << 20;
/// Below this nothing is reserved.
pub const LOW: u64 = 4 << 30;
/// Ranges that the boot code keeps the randomly placed kernel out of (arch/x86/boot/compressed/kaslr.c,
/// `MAX_MEMMAP_REGIONS`).
const AVOIDED: usize = 4;
/// With a kernel that is not placed at random only the length of the command line sets a limit.
const MANY: usize = 16;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// So much, spread evenly.
    Total(Size),
    /// So much of each node.
    PerNode(Size),
    /// So much of these nodes.
    Nodes(BTreeMap<u32, Size>),
    /// As much as can be had, but for so much of each node.
    AllBut {
        /// Of nodes that are not named; `None`: nothing is reserved there.
        each: Option<Size>,
        /// Of these.
        nodes: BTreeMap<u32, Size>,
    },
}

/// What else bears on a plan.
#[derive(Debug, Clone, Default)]
pub struct Circumstances {
    /// Ranges that other parameters of the kernel's command line are about.
    pub taken: Vec<Taken>,
    /// How many of these the boot code keeps the kernel out of.
    pub avoided: usize,
    /// Whether the kernel stays where it is put (`nokaslr`).
    pub fixed_kernel: bool,
    /// Whether this is an Intel host.
    pub intel: bool,
}

/// A range that is not free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The range.
    pub range: Range,
    /// By what.
    pub by: String,
}

/// What to reserve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The ranges in ascending order.
    pub ranges: Vec<Planned>,
    /// What becomes of each node.
    pub nodes: Vec<NodePlan>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// A range to reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// Its node.
    pub node: u32,
    /// The range.
    pub range: Range,
}

/// Whole MiB, for people: what firmware leaves is odd.
pub fn mib(bytes: u64) -> Size {
    Size(bytes >> 20 << 20)
}

/// What becomes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodePlan {
    /// The node.
    pub node: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// Bytes to reserve.
    pub reserved: u64,
}

impl NodePlan {
    /// Bytes that the host keeps.
    pub fn left(&self) -> u64 {
        self.memory - self.reserved
    }
}

impl Plan {
    /// The parameters for the kernel's command line.
    pub fn parameters(&self) -> String {
        let pairs = self
            .ranges
            .iter()
            .map(|planned| super::parameter::pair(planned.range));
        pairs.collect::<Vec<_>>().join(" ")
    }
}

/// A node, as far as planning goes.
pub struct Node {
    /// Its number.
    pub id: u32,
    /// Its RAM.
    pub ram: Vec<Range>,
    /// What of it may be reserved, as it is.
    pub free: Vec<Range>,
    /// Its EFI specific-purpose memory.
    pub specific_purpose: u64,
    /// What of it other parameters have, and which.
    pub taken: Vec<Taken>,
}

impl Node {
    fn of(id: u32, topology: &Topology, circumstances: &Circumstances) -> Node {
        let ram = topology.ram(id);
        let high = Range {
            start: LOW,
            len: u64::MAX - LOW,
        };
        let all_taken = &circumstances.taken;
        let others: Vec<Range> = all_taken.iter().map(|taken| taken.range).collect();
        let concerns = |taken: &&Taken| ram.iter().any(|range| range.overlaps(taken.range));
        Node {
            id,
            free: topology::without(&topology::within(&ram, high), &others),
            specific_purpose: total(&topology.specific_purpose(id)),
            taken: all_taken.iter().filter(concerns).cloned().collect(),
            ram,
        }
    }

    /// Bytes of RAM.
    pub fn memory(&self) -> u64 {
        total(&self.ram)
    }

    /// Bytes of RAM below [`LOW`].
    pub fn low(&self) -> u64 {
        total(&topology::within(&self.ram, Range { start: 0, len: LOW }))
    }

    /// What may be reserved, cut to boundaries, the largest pieces first.
    pub fn pieces(&self, grain: u64) -> Vec<Range> {
        let cut = |range: &Range| {
            let start = range.start.checked_next_multiple_of(grain)?;
            let end = range.start.saturating_add(range.len) / SECTION * SECTION;
            let len = end.checked_sub(start)?;
            (len > 0).then_some(Range { start, len })
        };
        let mut pieces: Vec<Range> = self.free.iter().filter_map(cut).collect();
        pieces.sort_by_key(|range| (std::cmp::Reverse(range.len / grain), range.start));
        pieces
    }

    /// Whole grains in the `most` largest pieces.
    pub fn capacity(&self, grain: u64, most: usize) -> u64 {
        let pieces = self.pieces(grain);
        let whole = |range: &Range| range.len / grain * grain;
        pieces.iter().take(most).map(whole).sum()
    }

    /// `size` bytes in as few ranges as possible; `None` where they are not to be had.
    fn take(&self, size: u64, grain: u64) -> Option<Vec<Range>> {
        let mut left = size;
        let mut ranges = Vec::new();
        for piece in self.pieces(grain) {
            // Only the last one may end between two grains.
            let len = if left <= piece.len {
                left
            } else {
                piece.len / grain * grain
            };
            if len == 0 {
                continue;
            }
            ranges.push(Range {
                start: piece.start,
                len,
            });
            left -= len;
            if left == 0 {
                return Some(ranges);
            }
        }
        None
    }
}

/// Makes the plan.
pub fn plan(
    topology: &Topology,
    circumstances: &Circumstances,
    request: &Request,
) -> Result<Plan, PlanError> {
    let ids = topology.nodes();
    let nodes: Vec<Node> = ids
        .iter()
        .map(|id| Node::of(*id, topology, circumstances))
        .collect();
    check(request, &ids)?;
    let budget = match circumstances.fixed_kernel {
        true => MANY,
        false => AVOIDED.saturating_sub(circumstances.avoided),
    };
    let planner = Planner {
        nodes: &nodes,
        circumstances,
        budget,
    };
    // What cannot be had on 1 GiB boundaries may still be had on those that are needed.
    let (sizes, grain) = match planner.attempt(request, GIB) {
        Ok(sizes) => (sizes, GIB),
        Err(_) => (planner.attempt(request, SECTION)?, SECTION),
    };
    let plan = planner.finish(request, sizes, grain);
    planner.check_left(&plan)?;
    Ok(plan)
}

/// What can be said without looking at memory.
fn check(request: &Request, nodes: &[u32]) -> Result<(), PlanError> {
    let named = match request {
        Request::Nodes(nodes) | Request::AllBut { nodes, .. } => Some(nodes),
        _ => None,
    };
    for node in named.into_iter().flat_map(BTreeMap::keys) {
        if !nodes.contains(node) {
            return Err(PlanError::UnknownNode {
                node: *node,
                known: nodes.to_vec(),
            });
        }
    }
    let sizes: Vec<Size> = match request {
        Request::Total(size) | Request::PerNode(size) => vec![*size],
        Request::Nodes(nodes) => nodes.values().copied().collect(),
        // What the host keeps need not be on any boundary.
        Request::AllBut { .. } => Vec::new(),
    };
    match sizes
        .into_iter()
        .find(|size| size.0 == 0 || size.0 % SECTION != 0)
    {
        Some(size) => Err(PlanError::Misaligned { size }),
        None => Ok(()),
    }
}

struct Planner<'a> {
    nodes: &'a [Node],
    circumstances: &'a Circumstances,
    budget: usize,
}

/// The ranges of each node that has some.
type Chosen = BTreeMap<u32, Vec<Range>>;

impl Planner<'_> {
    fn attempt(&self, request: &Request, grain: u64) -> Result<Chosen, PlanError> {
        match request {
            Request::Total(size) => self.spread(size.0, grain),
            Request::PerNode(size) => {
                let sizes = self.nodes.iter().map(|node| (node.id, *size)).collect();
                self.exactly(&sizes, grain)
            }
            Request::Nodes(sizes) => self.exactly(sizes, grain),
            Request::AllBut { each, nodes } => self.all_but(*each, nodes, grain),
        }
    }

    fn exactly(&self, sizes: &BTreeMap<u32, Size>, grain: u64) -> Result<Chosen, PlanError> {
        let mut chosen = Chosen::new();
        for node in self.nodes {
            let Some(size) = sizes.get(&node.id) else {
                continue;
            };
            let ranges = node
                .take(size.0, grain)
                .ok_or_else(|| PlanError::short(node, *size, self.circumstances))?;
            chosen.insert(node.id, ranges);
        }
        self.within_budget(chosen)
    }

    fn within_budget(&self, chosen: Chosen) -> Result<Chosen, PlanError> {
        let needed = chosen.values().map(Vec::len).sum();
        if needed > self.budget {
            return Err(PlanError::TooManyRanges {
                needed,
                most: self.budget,
                others: self.circumstances.avoided,
                nodes: chosen
                    .iter()
                    .map(|(node, ranges)| (*node, ranges.len()))
                    .collect(),
            });
        }
        Ok(chosen)
    }

    fn all_but(
        &self,
        each: Option<Size>,
        named: &BTreeMap<u32, Size>,
        grain: u64,
    ) -> Result<Chosen, PlanError> {
        let mut wanted: BTreeMap<u32, u64> = BTreeMap::new();
        for node in self.nodes {
            let Some(keep) = named.get(&node.id).copied().or(each) else {
                continue;
            };
            let most = node.memory().saturating_sub(keep.0) / grain * grain;
            let can = most.min(node.capacity(grain, usize::MAX));
            if can > 0 {
                wanted.insert(node.id, can);
            } else if named.contains_key(&node.id) {
                return Err(PlanError::nothing_but(node, keep, self.circumstances));
            }
        }
        if wanted.is_empty() {
            let keep = each.unwrap_or_default();
            return Err(match self.nodes {
                [node] => PlanError::nothing_but(node, keep, self.circumstances),
                _ => PlanError::NothingAnywhere { keep },
            });
        }
        if wanted.len() > self.budget {
            return Err(PlanError::TooManyRanges {
                needed: wanted.len(),
                most: self.budget,
                others: self.circumstances.avoided,
                nodes: wanted.keys().map(|node| (*node, 1)).collect(),
            });
        }
        let counts = self.share(&wanted, grain);
        let ranges = |node: &Node| {
            let size = wanted.get(&node.id)?;
            let most = counts.get(&node.id)?;
            let size = (*size).min(node.capacity(grain, *most));
            Some((node.id, node.take(size, grain)?))
        };
        self.within_budget(self.nodes.iter().filter_map(ranges).collect())
    }

    fn spread(&self, size: u64, grain: u64) -> Result<Chosen, PlanError> {
        let mut able: Vec<&Node> = self
            .nodes
            .iter()
            .filter(|node| node.capacity(grain, 1) > 0)
            .collect();
        able.sort_by_key(|node| (std::cmp::Reverse(node.capacity(grain, 1)), node.id));
        able.truncate(self.budget);
        able.sort_by_key(|node| node.id);
        let all = able
            .iter()
            .map(|node| (node.id, node.capacity(grain, usize::MAX)))
            .collect();
        let counts = self.share(&all, grain);
        let mut room: BTreeMap<u32, u64> = able
            .iter()
            .map(|node| {
                let most = counts.get(&node.id).copied().unwrap_or(0);
                (node.id, node.capacity(grain, most))
            })
            .collect();
        let most = room.values().sum::<u64>();
        if size > most {
            return Err(PlanError::TooLarge {
                size: Size(size),
                most: Size(most),
                ranges: self.budget,
                // Whether more is to be had in more ranges.
                scattered: self
                    .nodes
                    .iter()
                    .map(|node| node.capacity(grain, usize::MAX))
                    .sum::<u64>()
                    > most,
            });
        }
        let mut given: BTreeMap<u32, u64> = BTreeMap::new();
        let mut left = size;
        while left > 0 {
            let open = room.values().filter(|room| **room > 0).count();
            // Equal shares of what is left; who has no room for one takes what fits.
            let share = (left / grain / open.max(1) as u64 * grain).max(grain.min(left));
            for (node, room) in &mut room {
                let part = share.min(left).min(*room);
                *given.entry(*node).or_default() += part;
                *room -= part;
                left -= part;
            }
        }
        given.retain(|_, size| *size > 0);
        let sizes = given
            .into_iter()
            .map(|(node, size)| (node, Size(size)))
            .collect();
        self.exactly(&sizes, grain)
    }

    /// How many ranges each node may have: one, and what is left of the budget where it brings most.
    fn share(&self, wanted: &BTreeMap<u32, u64>, grain: u64) -> BTreeMap<u32, usize> {
        let mut counts: BTreeMap<u32, usize> = wanted.keys().map(|node| (*node, 1)).collect();
        let gain = |node: &Node, count: usize| {
            let most = wanted.get(&node.id).copied().unwrap_or(0);
            let with = |count| node.capacity(grain, count).min(most);
            with(count + 1) - with(count)
        };
        for _ in wanted.len()..self.budget {
            let best = self
                .nodes
                .iter()
                .filter_map(|node| Some((gain(node, *counts.get(&node.id)?), node.id)))
                .max_by_key(|(gain, node)| (*gain, std::cmp::Reverse(*node)));
            match best {
                Some((1.., node)) => *counts.entry(node).or_default() += 1,
                _ => break,
            }
        }
        counts
    }

    fn finish(&self, request: &Request, chosen: Chosen, grain: u64) -> Plan {
        let nodes: Vec<NodePlan> = self
            .nodes
            .iter()
            .map(|node| NodePlan {
                node: node.id,
                memory: node.memory(),
                reserved: chosen.get(&node.id).map_or(0, |ranges| total(ranges)),
            })
            .collect();
        let notes = self.notes(request, &nodes, grain);
        let planned = |(node, ranges): (u32, Vec<Range>)| {
            ranges.into_iter().map(move |range| Planned { node, range })
        };
        let mut ranges: Vec<Planned> = chosen.into_iter().flat_map(planned).collect();
        ranges.sort_by_key(|planned| planned.range.start);
        Plan {
            ranges,
            nodes,
            notes,
        }
    }

    fn notes(&self, request: &Request, plans: &[NodePlan], grain: u64) -> Vec<String> {
        let mut notes = Vec::new();
        if grain != GIB {
            notes.push(
                "on 1 GiB boundaries this is not to be had, so ranges start or end between two: leaves of 1 GiB are \
                 fewer there"
                    .to_owned(),
            );
        }
        for (node, plan) in self.nodes.iter().zip(plans) {
            let id = node.id;
            if plan.reserved > 0 && plan.left() < (256 << 20) {
                notes.push(format!(
                    "node {id} keeps {} for the host: what the kernel and QEMU need there comes from another node",
                    mib(plan.left())
                ));
            }
            if let Request::AllBut { each, nodes } = request {
                let Some(keep) = nodes.get(&id).or(each.as_ref()) else {
                    continue;
                };
                let more = plan.left().saturating_sub(keep.0);
                if plan.reserved == 0 {
                    notes.push(format!(
                        "nothing of node {id} is reserved: it has {} in all",
                        mib(plan.memory)
                    ));
                } else if more >= grain {
                    notes.push(format!(
                        "node {id} keeps {} more than asked: below 4G, in pieces that are too small, or in more pieces \
                         than ranges are left",
                        mib(more)
                    ));
                }
            }
            if node.specific_purpose > 0 {
                let size = Size(node.specific_purpose);
                notes.push(match self.circumstances.intel {
                    true => format!(
                        "node {id} has {size} of EFI specific-purpose memory, a region without any reservation: not \
                         for guests, KVM maps it uncached on Intel hosts"
                    ),
                    false => format!(
                        "node {id} has {size} of EFI specific-purpose memory, a region without any reservation"
                    ),
                });
            }
        }
        if let Request::Total(_) = request {
            let unused = plans.iter().filter(|plan| plan.reserved == 0);
            let unused: Vec<String> = unused.map(|plan| plan.node.to_string()).collect();
            if !unused.is_empty() {
                notes.push(format!("nothing is reserved on node {}", unused.join(", ")));
            }
        }
        notes
    }

    /// The host has to live, too.
    fn check_left(&self, plan: &Plan) -> Result<(), PlanError> {
        let memory: u64 = plan.nodes.iter().map(|node| node.memory).sum();
        let reserved: u64 = plan.nodes.iter().map(|node| node.reserved).sum();
        let all_ram: Vec<Range> = self
            .nodes
            .iter()
            .flat_map(|node| node.ram.clone())
            .collect();
        let others: Vec<Range> = self
            .circumstances
            .taken
            .iter()
            .map(|taken| taken.range)
            .collect();
        let taken = memory - total(&topology::without(&all_ram, &others));
        let left = memory - reserved - taken;
        let needed = needed(reserved);
        if left >= needed {
            return Ok(());
        }
        // needed() grows with what is reserved: so much leaves enough.
        let available = memory - taken;
        let most = available.saturating_sub(needed_base()) / 257 * 256 / SECTION * SECTION;
        Err(PlanError::TooLittleLeft {
            left: mib(left),
            needed: mib(needed),
            memory: mib(available),
            most: Size(most),
        })
    }
}

fn needed_base() -> u64 {
    2 * GIB
}

/// What the host needs at least: 2 GiB for kernel, system and QEMU itself, and for page tables, which take 8 bytes for
/// 4 KiB of guest memory at worst, once in KVM and once in QEMU.
pub fn needed(reserved: u64) -> u64 {
    needed_base() + reserved / 256
}
