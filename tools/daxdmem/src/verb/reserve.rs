// SPDX-License-Identifier: GPL-2.0

//! `daxdmem reserve`: plans the reservation, and has the boot loader make it.

use std::fs;
use std::path::Path;

use serde::Serialize;

use super::begin;
use crate::bus::{ranges_text, Range};
use crate::cli::reserve::ReserveArgs;
use crate::edit::Edit;
use crate::error::{Error, Result};
use crate::link::Links;
use crate::report::json::Address;
use crate::report::table::Table;
use crate::reserve::boot::{self, Loader};
use crate::reserve::error::ReserveError;
use crate::reserve::host::Host;
use crate::reserve::parameter::{self, Settings};
use crate::reserve::plan::{mib, plan, Circumstances, NodePlan, Plan, Request};
use crate::reserve::topology::{total, within, Topology};
use crate::size::Size;
use crate::terminal::{answer, done, note};

const ROOT: &str = "/";

/// Runs it.
pub fn run(args: &ReserveArgs, links: &Links) -> Result<()> {
    let request = args.request().map_err(ReserveError::Twice)?;
    if args.remove {
        return remove(links);
    }
    match request {
        _ if args.apply && request.is_none() => Err(ReserveError::NothingAsked.into()),
        Some(request) if args.apply => apply(args, &request, links),
        request => show(args, request.as_ref()),
    }
}

/// The host, or memory from a file in its place.
fn read(args: &ReserveArgs) -> Result<Host> {
    let Some(path) = &args.topology else {
        return Ok(Host::read(Path::new(ROOT))?);
    };
    let bad = |why: String| ReserveError::Topology {
        path: path.clone(),
        why,
    };
    let text = fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    let topology: Topology = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    Ok(Host {
        topology,
        line: String::new(),
        intel: false,
        elsewhere: Vec::new(),
    })
}

fn show(args: &ReserveArgs, request: Option<&Request>) -> Result<()> {
    let host = read(args)?;
    let circumstances = host.circumstances();
    let made = match request {
        Some(request) => {
            Some(plan(&host.topology, &circumstances?, request).map_err(ReserveError::from)?)
        }
        None => None,
    };
    if args.json {
        let document = Document::new(args, &host, made.as_ref());
        let text = serde_json::to_string_pretty(&document)
            .map_err(|error| Error::kernel("cannot write JSON")(error.into()))?;
        return answer(&format!("{text}\n"));
    }
    match made {
        None => answer(&present(&host)),
        Some(made) => {
            answer(&text(&made))?;
            made.notes.iter().for_each(|line| note(line));
            let last = match in_force(&host, &made) {
                true => "the kernel was booted with this reservation",
                false => "nothing has changed: --apply has the boot loader pass these parameters, from the next boot on",
            };
            note(last);
            Ok(())
        }
    }
}

/// Whether the running kernel was given just these ranges.
fn in_force(host: &Host, plan: &Plan) -> bool {
    let mut reserved = host.reserved();
    reserved.sort_by_key(|range| range.start);
    reserved
        == plan
            .ranges
            .iter()
            .map(|planned| planned.range)
            .collect::<Vec<_>>()
}

/// A plan for people.
fn text(plan: &Plan) -> String {
    let mut table = Table::new(&["NODE", "MEMORY", "RESERVED", "LEFT", "RANGES"]);
    for node in &plan.nodes {
        let ranges: Vec<Range> = plan
            .ranges
            .iter()
            .filter(|planned| planned.node == node.node)
            .map(|planned| planned.range)
            .collect();
        table.row(&row(node, &ranges));
    }
    let sum = NodePlan {
        node: 0,
        memory: plan.nodes.iter().map(|node| node.memory).sum(),
        reserved: plan.nodes.iter().map(|node| node.reserved).sum(),
    };
    if plan.nodes.len() > 1 {
        let mut cells = row(&sum, &[]);
        cells[0] = "all".to_owned();
        cells[4] = String::new();
        table.row(&cells);
    }
    format!("{}\n{}\n", table.text(), plan.parameters())
}

fn row(node: &NodePlan, ranges: &[Range]) -> Vec<String> {
    vec![
        node.node.to_string(),
        mib(node.memory).to_string(),
        Size(node.reserved).to_string(),
        mib(node.left()).to_string(),
        ranges_text(ranges),
    ]
}

/// The host's memory as it is.
fn present(host: &Host) -> String {
    let mut table = Table::new(&["NODE", "MEMORY", "RESERVED", "LEFT", "RANGES"]);
    for node in host.topology.nodes() {
        let ram = host.topology.ram(node);
        let reserved: Vec<Range> = host
            .reserved()
            .into_iter()
            .flat_map(|range| within(&ram, range))
            .collect();
        let line = NodePlan {
            node,
            memory: total(&ram),
            reserved: total(&reserved),
        };
        table.row(&row(&line, &reserved));
    }
    table.text()
}

fn apply(args: &ReserveArgs, request: &Request, links: &Links) -> Result<()> {
    // Held to the end: two calls do not mix.
    let _store = begin("reserve --apply", links)?;
    let root = Path::new(ROOT);
    if Loader::all(root).is_empty() {
        return Err(ReserveError::NoLoader {
            hint: boot::hint(root),
        }
        .into());
    }
    let host = Host::read(root)?;
    if let Some((path, settings)) = host
        .elsewhere
        .iter()
        .find(|(_, settings)| !settings.pairs.is_empty())
    {
        let pairs = settings.pairs.iter().copied().map(parameter::pair);
        return Err(ReserveError::Foreign {
            path: path.clone(),
            what: pairs.collect::<Vec<_>>().join(" "),
        }
        .into());
    }
    let circumstances: Circumstances = host.circumstances()?;
    let made = plan(&host.topology, &circumstances, request).map_err(ReserveError::from)?;
    let parameters = made.parameters();
    let len = parameter::without_pairs(&host.line).len() + 1 + parameters.len();
    if len > parameter::LONGEST {
        return Err(ReserveError::TooLong { len }.into());
    }
    answer(&text(&made))?;
    made.notes.iter().for_each(|line| note(line));
    let changed = change(root, Some(&parameters), &args.asked())?;
    match (changed, in_force(&host, &made)) {
        (false, true) => done("nothing to do: this reservation is configured and in force"),
        (false, false) => done(
            "nothing to do: this reservation is configured, and takes effect with the next reboot",
        ),
        (true, true) => done("done: the next boots are as this one"),
        (true, false) => done("done: takes effect with the next reboot; then see `daxdmem check`"),
    }
    Ok(())
}

fn remove(links: &Links) -> Result<()> {
    let _store = begin("reserve --remove", links)?;
    let root = Path::new(ROOT);
    let line = fs::read_to_string(root.join("proc/cmdline")).unwrap_or_default();
    let in_force = !Settings::of(&line).pairs.is_empty();
    match (change(root, None, "")?, in_force) {
        (false, false) => done("nothing to do: no memory is reserved"),
        (false, true) => done("nothing to do: no reservation of daxdmem's is configured; that of the running kernel ends with the next reboot, unless others keep it"),
        (true, false) => done("done: no memory was reserved by the running kernel"),
        (true, true) => done("done: with the next reboot all memory is the host's again"),
    }
    Ok(())
}

/// Changes the boot loaders' files, having shown the difference; whether there was anything to do.
fn change(root: &Path, parameters: Option<&str>, asked: &str) -> Result<bool> {
    let mut edits: Vec<(Loader, Edit)> = Vec::new();
    for loader in Loader::all(root) {
        let edit = loader.edit(root, parameters, asked)?;
        // An earlier run may have been stopped between the file and the boot loader.
        if edit.is_needed() || loader.has(root, parameters) == Some(false) {
            edits.push((loader, edit));
        }
    }
    for (loader, edit) in &edits {
        match edit.is_needed() {
            true => answer(&format!("\n{}", edit.diff()))?,
            false => note(&format!(
                "{} has not taken up {} yet",
                loader.name(),
                edit.path.display()
            )),
        }
    }
    if edits.is_empty() {
        return Ok(false);
    }
    boot::apply(&edits, |loader| loader.update(root))?;
    Ok(true)
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    daxdmem: Header,
    asked: Option<String>,
    in_force: Option<bool>,
    nodes: Vec<NodeEntry>,
    ranges: Vec<RangeEntry>,
    parameters: Option<String>,
    notes: &'a [String],
    topology: &'a Topology,
}

#[derive(Serialize)]
struct Header {
    version: u32,
}

#[derive(Serialize)]
struct NodeEntry {
    node: u32,
    memory: u64,
    reserved: u64,
    left: u64,
}

#[derive(Serialize)]
struct RangeEntry {
    node: u32,
    start: Address,
    end: Address,
    size: u64,
}

impl<'a> Document<'a> {
    fn new(args: &ReserveArgs, host: &'a Host, plan: Option<&'a Plan>) -> Self {
        let node = |node: &NodePlan| NodeEntry {
            node: node.node,
            memory: node.memory,
            reserved: node.reserved,
            left: node.left(),
        };
        let range = |node: u32, range: Range| RangeEntry {
            node,
            start: Address(range.start),
            end: Address(range.last()),
            size: range.len,
        };
        let topology = &host.topology;
        let present = |node: u32| {
            let ram = topology.ram(node);
            let reserved = host
                .reserved()
                .into_iter()
                .flat_map(move |range| within(&ram, range));
            reserved.map(move |range| (node, range))
        };
        let (nodes, ranges): (Vec<NodePlan>, Vec<(u32, Range)>) = match plan {
            Some(plan) => (
                plan.nodes.clone(),
                plan.ranges
                    .iter()
                    .map(|planned| (planned.node, planned.range))
                    .collect(),
            ),
            None => (
                topology
                    .nodes()
                    .into_iter()
                    .map(|node| NodePlan {
                        node,
                        memory: total(&topology.ram(node)),
                        reserved: present(node).map(|(_, range)| range.len).sum(),
                    })
                    .collect(),
                topology.nodes().into_iter().flat_map(present).collect(),
            ),
        };
        Document {
            daxdmem: Header { version: 1 },
            asked: plan.map(|_| args.asked()),
            in_force: plan.map(|plan| in_force(host, plan)),
            nodes: nodes.iter().map(node).collect(),
            ranges: ranges
                .into_iter()
                .map(|(node, piece)| range(node, piece))
                .collect(),
            parameters: plan.map(Plan::parameters),
            notes: plan.map(|plan| plan.notes.as_slice()).unwrap_or_default(),
            topology,
        }
    }
}
