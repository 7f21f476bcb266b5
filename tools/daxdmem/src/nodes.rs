// SPDX-License-Identifier: GPL-2.0

//! How a guest's memory is spread over NUMA nodes: `--node 1`, `--node 0,1`, `--node 0=4G,1=8G`.

use std::collections::BTreeSet;
use std::str::FromStr;

use crate::align::{near, Align};
use crate::name::{GuestName, PartName};
use crate::size::Size;

/// One node of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The node.
    pub node: u32,
    /// How much of the guest's memory comes from there, where that is said.
    pub size: Option<Size>,
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (node, size) = match text.split_once('=') {
            Some((node, size)) => (node, Some(size)),
            None => (text, None),
        };
        let node = node.parse().map_err(|_| {
            format!("'{text}' is no NUMA node: write its number, or NODE=SIZE for what comes from there")
        })?;
        let size = size.map(str::parse).transpose();
        let size = size.map_err(|error: crate::size::SizeError| error.to_string())?;
        Ok(Share { node, size })
    }
}

/// Why memory cannot be spread as told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodesError {
    /// A node is there twice.
    #[error("node {node} is named twice\nName each node once")]
    Twice { node: u32 },
    /// Some nodes have a size and some have none.
    #[error("node {node} has no size, others have\nGive each node its size, or none, and one for all together")]
    Unsaid { node: u32 },
    /// Nothing says how much.
    #[error("the size is missing\nGive one for all together, like 8G, or one for each node, like 0=4G,1=4G")]
    NoSize,
    /// The nodes' sizes make another sum.
    #[error("the nodes' sizes add up to {sum}, the size for all together is {size}\nLeave that out, or make the two agree")]
    Sum { sum: Size, size: Size },
    /// The size cannot be split.
    #[error(
        "size {size} cannot be split evenly over {nodes} nodes in units of {grain}, as align {align} wants\n\
         Use {near}, or give each node its own size, like 0=4G,1=8G"
    )]
    Uneven {
        size: Size,
        nodes: usize,
        grain: Size,
        align: Align,
        near: String,
    },
    /// A region is on one node.
    #[error("a region lies on one node, and the guest is to have several\nLeave the region out, or name one node")]
    Region,
}

/// A device that is to be made for a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: PartName,
    /// Its size.
    pub size: Size,
    /// Its alignment.
    pub align: Align,
    /// Where its memory has to come from, if that matters.
    pub node: Option<u32>,
}

/// The devices of a guest whose memory is spread like this.
pub fn spread(
    guest: &GuestName,
    size: Option<Size>,
    align: Option<Align>,
    shares: &[Share],
) -> Result<Vec<Part>, NodesError> {
    let mut seen = BTreeSet::new();
    if let Some(twice) = shares.iter().find(|share| !seen.insert(share.node)) {
        return Err(NodesError::Twice { node: twice.node });
    }
    let several = shares.len() > 1;
    let part = |node: Option<u32>, size: Size| Part {
        name: PartName {
            guest: guest.clone(),
            node: node.filter(|_| several),
        },
        size,
        align: align.unwrap_or_else(|| Align::default_for(size)),
        node,
    };
    if shares.iter().all(|share| share.size.is_none()) {
        let size = size.ok_or(NodesError::NoSize)?;
        let Some(nodes) = u64::try_from(shares.len()).ok().filter(|_| several) else {
            return Ok(vec![part(shares.first().map(|share| share.node), size)]);
        };
        let align = align.unwrap_or_else(|| Align::default_for(Size(size.0 / nodes)));
        let unit = align.grain().0.saturating_mul(nodes);
        if size.0 % unit != 0 {
            return Err(NodesError::Uneven {
                size,
                nodes: shares.len(),
                grain: align.grain(),
                align,
                near: near(size, Size(unit)),
            });
        }
        let part = |share: &Share| part(Some(share.node), Size(size.0 / nodes));
        return Ok(shares.iter().map(part).collect());
    }
    let sized = |share: &Share| match share.size {
        Some(size) => Ok((share.node, size)),
        None => Err(NodesError::Unsaid { node: share.node }),
    };
    let sized: Vec<(u32, Size)> = shares.iter().map(sized).collect::<Result<_, _>>()?;
    let sum = sized
        .iter()
        .fold(0u64, |sum, (_, size)| sum.saturating_add(size.0));
    match size {
        Some(size) if size.0 != sum => Err(NodesError::Sum {
            sum: Size(sum),
            size,
        }),
        _ => Ok(sized
            .into_iter()
            .map(|(node, size)| part(Some(node), size))
            .collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(size: &str, align: &str, shares: &str) -> Result<Vec<String>, String> {
        let shares: Vec<Share> = shares
            .split(',')
            .filter(|text| !text.is_empty())
            .map(|text| text.parse().unwrap())
            .collect();
        let parts = spread(
            &"db1".parse().unwrap(),
            size.parse().ok(),
            align.parse().ok(),
            &shares,
        );
        let parts = parts.map_err(|error| error.to_string())?;
        let text = |part: Part| {
            let node = part.node.map_or("-".to_owned(), |node| node.to_string());
            format!("{} {} {} {node}", part.name, part.size, part.align)
        };
        Ok(parts.into_iter().map(text).collect())
    }

    #[test]
    fn memory_is_spread() {
        assert_eq!(parts("8G", "", "").unwrap(), ["db1 8G 1G -"]);
        assert_eq!(parts("8G", "", "3").unwrap(), ["db1 8G 1G 3"]);
        assert_eq!(parts("", "2M", "3=8G").unwrap(), ["db1 8G 2M 3"]);
        assert_eq!(
            parts("8G", "", "0,1").unwrap(),
            ["db1:0 4G 1G 0", "db1:1 4G 1G 1"]
        );
        assert_eq!(
            parts("3G", "", "1,0").unwrap(),
            ["db1:1 1.5G 2M 1", "db1:0 1.5G 2M 0"]
        );
        assert_eq!(
            parts("", "", "0=1.5G,1=2G").unwrap(),
            ["db1:0 1.5G 2M 0", "db1:1 2G 1G 1"]
        );
        assert_eq!(parts("12G", "", "0=4G,1=8G").unwrap().len(), 2);
    }

    #[test]
    fn memory_that_cannot_be_spread() {
        for (size, align, shares, why) in [
            ("8G", "", "0,1,0", "node 0 is named twice"),
            ("8G", "", "0=4G,1", "node 1 has no size, others have"),
            ("", "", "0,1", "the size is missing"),
            ("", "", "", "the size is missing"),
            (
                "8G",
                "",
                "0=4G,1=8G",
                "the nodes' sizes add up to 12G, the size for all together is 8G",
            ),
            (
                "3G",
                "1G",
                "0,1",
                "in units of 1G, as align 1G wants\nUse 2G or 4G, or give each",
            ),
            (
                "2M",
                "",
                "0,1",
                "over 2 nodes in units of 2M, as align 2M wants\nUse 4M, or give each",
            ),
        ] {
            let error = parts(size, align, shares).unwrap_err();
            assert!(error.contains(why), "{size} {shares}: {error}");
        }
    }

    #[test]
    fn shares_as_written() {
        let share = |text: &str| text.parse::<Share>();
        assert_eq!(
            share("1"),
            Ok(Share {
                node: 1,
                size: None
            })
        );
        let size = Some(Size(4 << 30));
        assert_eq!(share("0=4G"), Ok(Share { node: 0, size }));
        assert!(share("x=4G")
            .unwrap_err()
            .contains("'x=4G' is no NUMA node"));
        assert!(share("0=4Q").unwrap_err().contains("'4Q' is no size"));
        assert!(share("").is_err() && share("0=").is_err());
    }
}
