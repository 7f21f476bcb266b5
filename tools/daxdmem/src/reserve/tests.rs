// SPDX-License-Identifier: GPL-2.0

//! Plans: for chosen hosts, and for hosts made up anew in each run.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::error::PlanError;
use super::parameter::Settings;
use super::plan::{needed, plan, Circumstances, Plan, Request, Taken, LOW, SECTION};
use super::topology::{total, within, without, Area, Memory, Topology};
use crate::bus::Range;
use crate::size::Size;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn range(start: u64, len: u64) -> Range {
    Range { start, len }
}

fn memory(start: u64, len: u64, kind: &str) -> Memory {
    Memory {
        start,
        end: start + len - 1,
        kind: kind.to_owned(),
    }
}

fn ram(start: u64, len: u64) -> Memory {
    memory(start, len, "System RAM")
}

fn area(node: u32, start: u64, len: u64) -> Area {
    Area {
        node,
        start,
        end: start + len - 1,
    }
}

/// The machine `numa` of the tests: node 0 is 0..3 and 4..7 GiB, node 1 is 7..13 GiB.
fn two_nodes() -> Topology {
    Topology {
        memory: vec![ram(0, 3 * GIB - MIB), ram(4 * GIB, 9 * GIB)],
        nodes: vec![
            area(0, 0, 3 * GIB),
            area(0, 4 * GIB, 3 * GIB),
            area(1, 7 * GIB, 6 * GIB),
        ],
    }
}

/// `nodes` nodes of 16 GiB each from 4 GiB on, and 3 GiB below on node 0.
fn many_nodes(nodes: u32) -> Topology {
    let mut topology = Topology {
        memory: vec![ram(0, 3 * GIB), ram(4 * GIB, u64::from(nodes) * 16 * GIB)],
        nodes: vec![area(0, 0, 4 * GIB)],
    };
    let areas = (0..nodes).map(|node| area(node, 4 * GIB + u64::from(node) * 16 * GIB, 16 * GIB));
    topology.nodes.extend(areas);
    topology
}

fn size(text: &str) -> Size {
    text.parse().unwrap()
}

fn all_but(text: &str) -> Request {
    Request::AllBut {
        each: Some(size(text)),
        nodes: BTreeMap::new(),
    }
}

fn planned(topology: &Topology, request: &Request) -> Result<Vec<(u32, u64, u64)>, String> {
    let plan =
        plan(topology, &Circumstances::default(), request).map_err(|error| error.to_string())?;
    let gib = |bytes: u64| bytes / GIB;
    Ok(plan
        .ranges
        .iter()
        .map(|planned| {
            (
                planned.node,
                gib(planned.range.start),
                gib(planned.range.len),
            )
        })
        .collect())
}

#[test]
fn chosen_hosts() {
    let plans = |request| planned(&two_nodes(), &request);
    assert_eq!(
        plans(Request::Total(size("6G"))),
        Ok(vec![(0, 4, 3), (1, 7, 3)])
    );
    // Node 0 has no more; the rest goes to the other.
    assert_eq!(
        plans(Request::Total(size("8G"))),
        Ok(vec![(0, 4, 3), (1, 7, 5)])
    );
    assert_eq!(
        plans(Request::PerNode(size("2G"))),
        Ok(vec![(0, 4, 2), (1, 7, 2)])
    );
    let node = Request::Nodes(BTreeMap::from([(1, size("6G"))]));
    assert_eq!(plans(node), Ok(vec![(1, 7, 6)]));
    assert_eq!(plans(all_but("2G")), Ok(vec![(0, 4, 3), (1, 7, 4)]));
    let mixed = Request::AllBut {
        each: None,
        nodes: BTreeMap::from([(0, size("4G"))]),
    };
    assert_eq!(plans(mixed), Ok(vec![(0, 4, 1)]));
    let one = Topology {
        nodes: Vec::new(),
        ..two_nodes()
    };
    assert_eq!(
        planned(&one, &Request::Total(size("7G"))),
        Ok(vec![(0, 4, 7)])
    );
}

#[test]
fn sizes_beside_the_gib() {
    let plan = |request| plan(&two_nodes(), &Circumstances::default(), &request).unwrap();
    // One that starts on a GiB may end on 128 MiB.
    let odd = plan(Request::Nodes(BTreeMap::from([(0, size("1.5G"))])));
    assert_eq!(odd.ranges[0].range, range(4 * GIB, GIB + GIB / 2));
    assert!(odd.notes.is_empty(), "{:?}", odd.notes);
    assert_eq!(
        odd.parameters(),
        "memmap=1536M$4G memmap=1536M%4G-2+0xefffffff"
    );
    // No GiB starts on a boundary: then on 128 MiB.
    let topology = Topology {
        memory: vec![ram(0, 4 * GIB), ram(4 * GIB + 3 * SECTION, GIB + MIB)],
        nodes: Vec::new(),
    };
    let plan = super::plan::plan(
        &topology,
        &Circumstances::default(),
        &Request::Total(Size(GIB)),
    )
    .unwrap();
    assert_eq!(plan.ranges[0].range, range(4 * GIB + 3 * SECTION, GIB));
    assert!(
        plan.notes[0].contains("on 1 GiB boundaries this is not to be had"),
        "{:?}",
        plan.notes
    );
}

#[test]
fn refusals_give_the_reason() {
    let says = |topology: &Topology, request: Request, texts: &[&str]| {
        let error = planned(topology, &request).unwrap_err();
        for text in texts {
            assert!(error.contains(text), "'{text}' is not in: {error}");
        }
    };
    let two = two_nodes();
    says(
        &two,
        Request::Total(size("100M")),
        &["multiples of 128M", "Use 128M"],
    );
    says(&two, Request::Total(size("1300M")), &["Use 1.25G or 1408M"]);
    says(
        &two,
        Request::Total(Size(0)),
        &["0 cannot be reserved", "Use 128M"],
    );
    says(
        &two,
        Request::Nodes(BTreeMap::from([(2, Size(GIB))])),
        &["there is no node 2 with memory", "There are 0, 1"],
    );
    says(
        &two,
        Request::Nodes(BTreeMap::from([(0, size("4G"))])),
        &["node 0 cannot give 4G", "at most 3G", "lies below 4G"],
    );
    says(
        &two,
        Request::Total(size("10G")),
        &["10G cannot be reserved: at most 9G can"],
    );
    says(&two, all_but("7G"), &["the host keeps 7G of each node"]);
    says(
        &two,
        Request::AllBut {
            each: None,
            nodes: BTreeMap::from([(1, size("6G"))]),
        },
        &["nothing of node 1 can be reserved when the host keeps 6G"],
    );
    // Enough of it, and too little left.
    let small = Topology {
        memory: vec![ram(0, GIB), ram(4 * GIB, 8 * GIB)],
        nodes: Vec::new(),
    };
    says(
        &small,
        Request::Total(size("8G")),
        &["leaves 1G of 9G", "needs 2080M", "Reserve 7040M at most"],
    );
    assert!(planned(&small, &Request::Total(size("6.875G"))).is_ok());
    says(
        &small,
        Request::Total(size("7G")),
        &["Reserve 7040M at most"],
    );
    says(
        &many_nodes(8),
        all_but("2G"),
        &[
            "takes 8 ranges",
            "1 on node 7",
            "out of 4 more at most",
            "nokaslr",
        ],
    );
}

#[test]
fn more_ranges_when_the_kernel_stays() {
    let fixed = Circumstances {
        fixed_kernel: true,
        ..Circumstances::default()
    };
    let made = plan(&many_nodes(8), &fixed, &all_but("2G")).unwrap();
    assert_eq!(made.ranges.len(), 8);
    // What is spread takes the nodes it can have.
    let spread = plan(
        &many_nodes(8),
        &Circumstances::default(),
        &Request::Total(size("40G")),
    )
    .unwrap();
    assert_eq!(spread.ranges.len(), 4);
    assert_eq!(spread.notes, ["nothing is reserved on node 4, 5, 6, 7"]);
}

#[test]
fn others_are_left_alone() {
    let taken = Taken {
        range: range(5 * GIB, GIB),
        by: "memmap=1G!5G".to_owned(),
    };
    let circumstances = Circumstances {
        taken: vec![taken],
        avoided: 3,
        ..Circumstances::default()
    };
    let made = plan(
        &two_nodes(),
        &circumstances,
        &Request::Nodes(BTreeMap::from([(0, Size(GIB))])),
    )
    .unwrap();
    assert_eq!(made.ranges[0].range, range(4 * GIB, GIB));
    let error = plan(&two_nodes(), &circumstances, &Request::PerNode(Size(GIB))).unwrap_err();
    assert!(
        matches!(
            error,
            PlanError::TooManyRanges {
                needed: 2,
                most: 1,
                others: 3,
                ..
            }
        ),
        "{error}"
    );
    let error = plan(
        &two_nodes(),
        &circumstances,
        &Request::Nodes(BTreeMap::from([(0, size("3G"))])),
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("memmap=1G!5G has 0x140000000-0x17fffffff"),
        "{error}"
    );
}

#[test]
fn specific_purpose_memory() {
    let mut topology = two_nodes();
    topology.memory[1] = ram(4 * GIB, 3 * GIB);
    topology.memory.push(ram(7 * GIB, GIB));
    topology
        .memory
        .push(memory(8 * GIB, 5 * GIB, "Soft Reserved"));
    let wanted = Request::Nodes(BTreeMap::from([(1, size("4G"))]));
    for (intel, text) in [(true, "efi=nosoftreserve"), (false, "a region by itself")] {
        let circumstances = Circumstances {
            intel,
            ..Circumstances::default()
        };
        let error = plan(&topology, &circumstances, &wanted)
            .unwrap_err()
            .to_string();
        assert!(error.contains(text), "{error}");
        let made = plan(&topology, &circumstances, &Request::Total(Size(GIB))).unwrap();
        assert!(made
            .notes
            .iter()
            .any(|note| note.contains("5G of EFI specific-purpose memory")));
    }
}

/// A stretch of addresses above 4 GiB.
#[derive(Debug, Clone)]
struct Stretch {
    node: u32,
    len: u64,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Ram,
    Reserved,
    Hole,
}

/// Hosts of 1 to 8 nodes, with holes and reserved pieces, odd sizes, nodes that take turns.
fn topologies() -> impl Strategy<Value = Topology> {
    let kind = prop_oneof![5 => Just(Kind::Ram), 1 => Just(Kind::Reserved), 1 => Just(Kind::Hole)];
    let len = prop_oneof![
        3 => (1..64u64).prop_map(|gib| gib * GIB),
        2 => (1..256u64).prop_map(|sections| sections * SECTION),
        2 => (1..(16 * GIB / 4096)).prop_map(|pages| pages * 4096),
    ];
    (1..=8u32).prop_flat_map(move |nodes| {
        let stretch = (0..nodes, len.clone(), kind.clone()).prop_map(|(node, len, kind)| Stretch {
            node,
            len,
            kind,
        });
        let stretches = prop::collection::vec(stretch, 1..24);
        (GIB / MIB / 2..7 * GIB / MIB / 2, stretches, any::<bool>())
            .prop_map(|(low, stretches, srat)| build(low * MIB, &stretches, srat))
    })
}

fn build(low: u64, stretches: &[Stretch], srat: bool) -> Topology {
    let mut topology = Topology {
        memory: vec![
            ram(0, 0x9fc00),
            memory(0xf0000, 0x10000, "Reserved"),
            ram(MIB, low - MIB),
        ],
        nodes: vec![area(0, 0, LOW)],
    };
    let mut at = LOW;
    for stretch in stretches {
        match stretch.kind {
            Kind::Ram => topology.memory.push(ram(at, stretch.len)),
            Kind::Reserved => topology.memory.push(memory(at, stretch.len, "Reserved")),
            Kind::Hole => {}
        }
        if stretch.kind != Kind::Hole {
            topology.nodes.push(area(stretch.node, at, stretch.len));
        }
        at += stretch.len;
    }
    if !srat {
        topology.nodes.clear();
    }
    topology
}

fn requests() -> impl Strategy<Value = Request> {
    let sections = || (1..512u64).prop_map(|sections| Size(sections * SECTION));
    let gibs = || (1..64u64).prop_map(|gib| Size(gib * GIB));
    let sizes = move || prop_oneof![sections(), gibs()];
    let keep = || (0..(24 * GIB / MIB)).prop_map(|mib| Size(mib * MIB));
    let nodes = prop::collection::btree_map(0..8u32, sizes(), 1..4);
    let kept = prop::collection::btree_map(0..8u32, keep(), 0..3);
    prop_oneof![
        sizes().prop_map(Request::Total),
        sizes().prop_map(Request::PerNode),
        nodes.prop_map(Request::Nodes),
        (prop::option::of(keep()), kept)
            .prop_filter("asks for something", |(each, nodes)| each.is_some()
                || !nodes.is_empty())
            .prop_map(|(each, nodes)| Request::AllBut { each, nodes }),
    ]
}

fn circumstances() -> impl Strategy<Value = Circumstances> {
    let taken = (4..64u64, 1..32u64).prop_map(|(start, sections)| Taken {
        range: range(start * GIB, sections * SECTION),
        by: "memmap=".to_owned(),
    });
    prop::collection::vec(taken, 0..2).prop_map(|taken| Circumstances {
        avoided: taken.len(),
        taken,
        ..Circumstances::default()
    })
}

/// RAM of a node, found another way than the planner does: section by section.
fn is_ram(topology: &Topology, node: u32, section: Range) -> bool {
    let covers = |start: u64, end: u64| start <= section.start && section.last() <= end;
    let mut ram: Vec<(u64, u64)> = Vec::new();
    for memory in topology
        .memory
        .iter()
        .filter(|memory| memory.kind == "System RAM")
    {
        match ram.last_mut() {
            Some((_, end)) if *end + 1 == memory.start => *end = memory.end,
            _ => ram.push((memory.start, memory.end)),
        }
    }
    let mut areas: Vec<(u64, u64)> = Vec::new();
    for area in topology.nodes.iter().filter(|area| area.node == node) {
        match areas.last_mut() {
            Some((_, end)) if *end + 1 == area.start => *end = area.end,
            _ => areas.push((area.start, area.end)),
        }
    }
    ram.iter().any(|(start, end)| covers(*start, *end))
        && (topology.nodes.is_empty() || areas.iter().any(|(start, end)| covers(*start, *end)))
}

fn holds(
    topology: &Topology,
    circumstances: &Circumstances,
    request: &Request,
    plan: &Plan,
) -> Result<(), TestCaseError> {
    prop_assert!(!plan.ranges.is_empty());
    prop_assert!(plan.ranges.len() + circumstances.avoided <= 4);
    let mut end = LOW;
    for planned in &plan.ranges {
        let whole = planned.range;
        prop_assert!(
            whole.start >= end,
            "below 4 GiB, or overlapping: {:?}",
            plan.ranges
        );
        end = whole.start + whole.len;
        prop_assert!(whole.start % SECTION == 0 && whole.len % SECTION == 0 && whole.len > 0);
        for start in (whole.start..end).step_by(usize::try_from(SECTION).unwrap()) {
            prop_assert!(
                is_ram(topology, planned.node, range(start, SECTION)),
                "{start:#x} is no RAM of its node"
            );
        }
        prop_assert!(circumstances
            .taken
            .iter()
            .all(|taken| !taken.range.overlaps(whole)));
    }
    let reserved = |node: u32| -> u64 {
        let mine = plan.ranges.iter().filter(|planned| planned.node == node);
        mine.map(|planned| planned.range.len).sum()
    };
    let sum: u64 = plan.ranges.iter().map(|planned| planned.range.len).sum();
    match request {
        Request::Total(size) => prop_assert_eq!(sum, size.0),
        Request::PerNode(size) => {
            for node in topology.nodes() {
                prop_assert_eq!(reserved(node), size.0);
            }
        }
        Request::Nodes(nodes) => {
            for node in topology.nodes() {
                prop_assert_eq!(reserved(node), nodes.get(&node).map_or(0, |size| size.0));
            }
        }
        Request::AllBut { each, nodes } => {
            for node in topology.nodes() {
                let memory = total(&topology.ram(node));
                match nodes.get(&node).or(each.as_ref()) {
                    Some(keep) if reserved(node) > 0 => {
                        prop_assert!(memory - reserved(node) >= keep.0)
                    }
                    Some(_) => {}
                    None => prop_assert_eq!(reserved(node), 0),
                }
            }
        }
    }
    let memory: u64 = topology
        .nodes()
        .iter()
        .map(|node| total(&topology.ram(*node)))
        .sum();
    prop_assert!(memory - sum >= needed(sum));
    for node in &plan.nodes {
        prop_assert_eq!(node.reserved, reserved(node.node));
        prop_assert_eq!(node.memory, total(&topology.ram(node.node)));
    }
    // What is printed says the same.
    let pairs: Vec<Range> = plan.ranges.iter().map(|planned| planned.range).collect();
    prop_assert_eq!(
        Settings::of(&plan.parameters()),
        Settings {
            pairs,
            others: Vec::new()
        }
    );
    Ok(())
}

proptest! {
    // Each case is a topology for which there is a plan: so many are made up that the others do not count.
    #![proptest_config(ProptestConfig { cases: 96, max_global_rejects: 100_000, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_holds(topology in topologies(), request in requests(), circumstances in circumstances()) {
        let made = plan(&topology, &circumstances, &request);
        prop_assume!(made.is_ok());
        holds(&topology, &circumstances, &request, &made.unwrap())?;
    }

    /// Nothing is refused that one range could give.
    #[test]
    fn what_is_easy_is_not_refused(topology in topologies(), sections in 1..256u64) {
        let size = sections * SECTION;
        let high = range(LOW, u64::MAX - LOW);
        let sections = |piece: &Range| {
            let start = piece.start.next_multiple_of(SECTION);
            ((piece.start + piece.len) / SECTION * SECTION).saturating_sub(start)
        };
        let nodes = topology.nodes();
        let best = nodes.iter().flat_map(|node| within(&topology.ram(*node), high)).map(|piece| sections(&piece)).max();
        let memory: u64 = nodes.iter().map(|node| total(&topology.ram(*node))).sum();
        if best.unwrap_or(0) >= size && memory >= size + needed(size) {
            let made = plan(&topology, &Circumstances::default(), &Request::Total(Size(size)));
            prop_assert!(made.is_ok(), "{}", made.unwrap_err());
        }
    }

    /// With one node and few pieces, all but N is all but N, but for what no boundary allows.
    #[test]
    fn all_but_takes_all_but_that(topology in topologies(), keep in 0..(8 * GIB / MIB)) {
        let one = Topology { nodes: Vec::new(), ..topology };
        let keep = (keep * MIB).max(4 * GIB);
        let high = range(LOW, u64::MAX - LOW);
        let pieces = within(&one.ram(0), high);
        prop_assume!(pieces.len() <= 4);
        let whole = |piece: &Range| {
            let end = (piece.start + piece.len) / GIB * GIB;
            end.saturating_sub(piece.start.next_multiple_of(GIB))
        };
        let most: u64 = pieces.iter().map(whole).sum();
        let memory = total(&one.ram(0));
        let wanted = memory.saturating_sub(keep) / GIB * GIB;
        prop_assume!(most.min(wanted) > 0 && keep >= needed(memory));
        let made = plan(&one, &Circumstances::default(), &Request::AllBut { each: Some(Size(keep)), nodes: BTreeMap::new() }).unwrap();
        prop_assert_eq!(made.nodes[0].reserved, most.min(wanted));
    }

    #[test]
    fn pieces_are_subtracted(pieces in prop::collection::vec((0..64u64, 1..8u64), 0..6), others in prop::collection::vec((0..64u64, 1..8u64), 0..6)) {
        let ranges = |list: &[(u64, u64)]| list.iter().map(|(start, len)| range(*start, *len)).collect::<Vec<_>>();
        let (pieces, others) = (ranges(&pieces), ranges(&others));
        let left = without(&pieces, &others);
        let has = |list: &[Range], at: u64| list.iter().any(|piece| piece.overlaps(range(at, 1)));
        for at in 0..80 {
            prop_assert_eq!(has(&left, at), has(&pieces, at) && !has(&others, at));
        }
    }
}
