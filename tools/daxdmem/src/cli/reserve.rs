// SPDX-License-Identifier: GPL-2.0

//! The command line of `daxdmem reserve`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgGroup, Args};

use crate::reserve::plan::Request;
use crate::size::Size;

/// Shown by the long help.
pub const EXAMPLES: &str = "\
Examples:
  daxdmem reserve                          show the host's memory
  daxdmem reserve --all-but 8G             plan: of each node all but 8 GiB
  daxdmem reserve --total 60G --apply      60 GiB spread over the nodes, from the next boot on
  daxdmem reserve --node 0=64G --node 1=32G
  daxdmem reserve --all-but 16G --all-but 0=32G
  daxdmem reserve --remove                 from the next boot on all memory is the host's";

/// See [`super::Command::Reserve`].
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").args(["total", "per_node", "nodes", "all_but", "remove"])))]
pub struct ReserveArgs {
    /// Reserve so much, spread evenly over the NUMA nodes
    #[arg(long, value_name = "SIZE")]
    pub total: Option<Size>,
    /// Reserve so much of each node
    #[arg(long, value_name = "SIZE")]
    pub per_node: Option<Size>,
    /// Reserve so much of this node; may be repeated
    #[arg(long = "node", value_name = "NODE=SIZE", action = clap::ArgAction::Append)]
    pub nodes: Vec<NodeSize>,
    /// Reserve as much as possible, but leave the host at least so much of each node, or of this one; may be repeated
    #[arg(long, value_name = "[NODE=]SIZE", action = clap::ArgAction::Append)]
    pub all_but: Vec<Keep>,
    /// Have the boot loader pass the parameters: shows the difference, writes the files, runs update-grub
    #[arg(long, conflicts_with_all = ["remove", "json", "topology"])]
    pub apply: bool,
    /// Undo --apply
    #[arg(long, conflicts_with = "json")]
    pub remove: bool,
    /// Print JSON, in the form that Documentation/daxdmem-json.md describes
    #[arg(long)]
    pub json: bool,
    /// Plan for the memory that this file describes, in the form of "topology" in --json, instead of the host's
    #[arg(long, value_name = "FILE", hide = true)]
    pub topology: Option<PathBuf>,
}

/// `NODE=SIZE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeSize {
    node: u32,
    size: Size,
}

impl FromStr for NodeSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("'{text}' is no NODE=SIZE, such as 0=64G");
        let (node, size) = text.split_once('=').ok_or_else(malformed)?;
        Ok(NodeSize {
            node: node.parse().map_err(|_| malformed())?,
            size: size.parse().map_err(|error| format!("{error}"))?,
        })
    }
}

/// `SIZE` or `NODE=SIZE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    node: Option<u32>,
    size: Size,
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('=') {
            let NodeSize { node, size } = text.parse()?;
            return Ok(Keep {
                node: Some(node),
                size,
            });
        }
        let size = text.parse().map_err(|error| format!("{error}"))?;
        Ok(Keep { node: None, size })
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node {
            Some(node) => write!(f, "{node}={}", self.size),
            None => self.size.fmt(f),
        }
    }
}

impl ReserveArgs {
    /// What is asked; `None`: nothing. An error names what was given twice.
    pub fn request(&self) -> Result<Option<Request>, String> {
        let twice = |what: &dyn fmt::Display| format!("{what} is given twice");
        if let Some(size) = self.total {
            return Ok(Some(Request::Total(size)));
        }
        if let Some(size) = self.per_node {
            return Ok(Some(Request::PerNode(size)));
        }
        if !self.nodes.is_empty() {
            let mut nodes = BTreeMap::new();
            for NodeSize { node, size } in &self.nodes {
                if nodes.insert(*node, *size).is_some() {
                    return Err(twice(&format_args!("node {node}")));
                }
            }
            return Ok(Some(Request::Nodes(nodes)));
        }
        let (mut each, mut nodes) = (None, BTreeMap::new());
        for Keep { node, size } in &self.all_but {
            let before = match node {
                Some(node) => nodes.insert(*node, *size),
                None => each.replace(*size),
            };
            if before.is_some() {
                return Err(match node {
                    Some(node) => twice(&format_args!("node {node}")),
                    None => twice(&"--all-but for all nodes"),
                });
            }
        }
        match self.all_but.is_empty() {
            true => Ok(None),
            false => Ok(Some(Request::AllBut { each, nodes })),
        }
    }

    /// The same in words of the command line.
    pub fn asked(&self) -> String {
        let mut words = Vec::new();
        if let Some(size) = self.total {
            words.push(format!("--total {size}"));
        }
        if let Some(size) = self.per_node {
            words.push(format!("--per-node {size}"));
        }
        let nodes = self.nodes.iter();
        words.extend(nodes.map(|NodeSize { node, size }| format!("--node {node}={size}")));
        words.extend(self.all_but.iter().map(|keep| format!("--all-but {keep}")));
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn args(line: &str) -> Result<ReserveArgs, String> {
        let words = ["daxdmem", "reserve"].into_iter().chain(line.split(' '));
        match Cli::try_parse_from(words.filter(|word| !word.is_empty())) {
            Ok(Cli {
                command: Command::Reserve(args),
            }) => Ok(args),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    const GIB: Size = Size(1 << 30);

    #[test]
    fn requests() {
        let request = |line| args(line).unwrap().request();
        assert_eq!(request(""), Ok(None));
        assert_eq!(request("--total 1G"), Ok(Some(Request::Total(GIB))));
        assert_eq!(
            request("--per-node 1024M --apply"),
            Ok(Some(Request::PerNode(GIB)))
        );
        let nodes = BTreeMap::from([(0, GIB), (3, GIB)]);
        assert_eq!(
            request("--node 3=1G --node 0=1G"),
            Ok(Some(Request::Nodes(nodes)))
        );
        let all_but = Request::AllBut {
            each: Some(GIB),
            nodes: BTreeMap::from([(0, Size(2 << 30))]),
        };
        assert_eq!(request("--all-but 1G --all-but 0=2G"), Ok(Some(all_but)));
        assert_eq!(
            args("--all-but 1G --all-but 0=2G").unwrap().asked(),
            "--all-but 1G --all-but 0=2G"
        );
        assert_eq!(
            request("--node 0=1G --node 0=2G"),
            Err("node 0 is given twice".to_owned())
        );
        assert_eq!(
            request("--all-but 1G --all-but 2G"),
            Err("--all-but for all nodes is given twice".to_owned())
        );
    }

    #[test]
    fn what_does_not_go_together() {
        for (line, why) in [
            ("--total 1G --per-node 1G", "cannot be used with"),
            ("--total 1G --remove", "cannot be used with"),
            ("--remove --apply", "cannot be used with"),
            ("--total 1G --apply --json", "cannot be used with"),
            ("--node 1G", "'1G' is no NODE=SIZE, such as 0=64G"),
            ("--node a=1G", "'a=1G' is no NODE=SIZE"),
            ("--all-but 0=x", "'x' is no size"),
        ] {
            let error = args(line).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }
}
