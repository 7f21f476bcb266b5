// SPDX-License-Identifier: GPL-2.0
//! Figures: what was counted, by row, peer and size.

use std::collections::BTreeMap;

use serde_json::Value;

/// One number.
struct Figure {
    row: String,
    peer: String,
    /// Bytes, or a number of devices.
    size: u64,
    value: u64,
}

/// All of a run.
pub struct Figures {
    /// What is known about the run: kernel, date and the like.
    pub facts: BTreeMap<String, String>,
    list: Vec<Figure>,
}

impl Figures {
    /// Reads what the runner has written.
    pub fn parse(text: &str) -> crate::Result<Figures> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let facts = value["facts"].as_object().ok_or("has no facts")?;
        let facts = facts
            .iter()
            .map(|(name, text)| (name.clone(), text.as_str().unwrap_or("unknown").to_owned()));
        let list = value["figures"].as_array().ok_or("has no figures")?;
        let figure = |value: &Value| {
            Some(Figure {
                row: value["row"].as_str()?.to_owned(),
                peer: value["peer"].as_str()?.to_owned(),
                size: value["size"].as_u64()?,
                value: value["value"].as_u64()?,
            })
        };
        let list: Option<Vec<Figure>> = list.iter().map(figure).collect();
        Ok(Figures {
            facts: facts.collect(),
            list: list.ok_or("has a figure without row, peer, size or value")?,
        })
    }

    /// A number, if it was counted.
    pub fn get(&self, row: &str, peer: &str, size: u64) -> Option<u64> {
        let mut of_row = self.list.iter().filter(|figure| figure.row == row);
        let figure = of_row.find(|figure| figure.peer == peer && figure.size == size)?;
        Some(figure.value)
    }

    /// Peers of a row, in the order in which they were counted.
    pub fn peers(&self, row: &str) -> Vec<&str> {
        let mut peers: Vec<&str> = Vec::new();
        for figure in self.list.iter().filter(|figure| figure.row == row) {
            if !peers.contains(&figure.peer.as_str()) {
                peers.push(&figure.peer);
            }
        }
        // Those under test first.
        peers.sort_by_key(|peer| !peer.starts_with("dax"));
        peers
    }

    /// Sizes of a row, in order; that of what has no size is left out.
    pub fn sizes(&self, row: &str) -> Vec<u64> {
        let of_row = self.list.iter().filter(|figure| figure.row == row);
        let mut sizes: Vec<u64> = of_row.map(|figure| figure.size).collect();
        sizes.retain(|size| *size > 0);
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// The greatest number of a row for the peers whose names begin so.
    pub fn most(&self, row: &str, prefix: &str) -> Option<u64> {
        let of_row = self.list.iter().filter(|figure| figure.row == row);
        of_row
            .filter(|figure| figure.peer.starts_with(prefix))
            .map(|figure| figure.value)
            .max()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Figures of these rows, peers, sizes and values.
    pub(crate) fn figures(list: &[(&str, &str, u64, u64)]) -> Figures {
        let list = list.iter().map(|(row, peer, size, value)| Figure {
            row: (*row).to_owned(),
            peer: (*peer).to_owned(),
            size: *size,
            value: *value,
        });
        Figures {
            facts: BTreeMap::new(),
            list: list.collect(),
        }
    }

    #[test]
    fn figures_are_found_by_row_peer_and_size() {
        let text = r#"{ "facts": { "kernel": "7.3" }, "figures": [
            { "row": "touch", "peer": "hugetlbfs 1G", "size": 2, "value": 7, "unit": "faults" },
            { "row": "touch", "peer": "dax_dmem 1G", "size": 1, "value": 5, "unit": "faults" } ] }"#;
        let figures = Figures::parse(text).unwrap();
        assert_eq!(figures.facts["kernel"], "7.3");
        assert_eq!(figures.get("touch", "hugetlbfs 1G", 2), Some(7));
        assert_eq!(figures.get("touch", "hugetlbfs 1G", 1), None);
        assert_eq!(figures.peers("touch"), ["dax_dmem 1G", "hugetlbfs 1G"]);
        assert_eq!(figures.sizes("touch"), [1, 2]);
        assert_eq!(figures.most("touch", "dax_dmem"), Some(5));
        assert!(Figures::parse(r#"{ "facts": {}, "figures": [ { "row": "touch" } ] }"#).is_err());
    }
}
