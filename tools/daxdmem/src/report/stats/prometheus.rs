// SPDX-License-Identifier: GPL-2.0

//! The statistics in Prometheus' text format, as node_exporter's textfile collector reads it.

use std::fmt::{self, Write};

use super::{Area, Device, Stats};

/// All of it. Figures that are not known are left out.
pub fn text(stats: &Stats) -> String {
    let mut out = Exposition::default();
    out.gauge("struct_page_bytes", "Size of a struct page.");
    out.sample(&[], stats.struct_page);
    out.gauge("metadata_bytes", "Kernel memory that struct pages for all page-less memory would take, by way to provide it.");
    for way in &stats.metadata {
        out.sample(&[("way", way.way)], way.bytes);
    }
    if let Some(scrubbed) = stats.scrubbed {
        out.counter(
            "scrubbed_bytes_total",
            "Bytes overwritten with zeros since the driver was loaded.",
        );
        out.sample(&[], scrubbed);
    }
    regions(&mut out, stats);
    devices(&mut out, stats);
    out.gauge(
        "process_mapped_bytes",
        "Bytes of a device that a process maps.",
    );
    for process in &stats.processes {
        let labels = [
            ("pid", &*process.pid.to_string()),
            ("program", &process.program),
            ("device", &process.device),
            ("guest", process.guest.as_deref().unwrap_or_default()),
        ];
        out.sample(&labels, process.mapped);
    }
    out.text
}

fn regions(out: &mut Exposition, stats: &Stats) {
    let each = |out: &mut Exposition, value: fn(&Area) -> Option<u64>| {
        for area in &stats.regions {
            if let Some(value) = value(area) {
                out.sample(&area.labels().each(), value);
            }
        }
    };
    out.gauge("region_size_bytes", "Reserved memory.");
    each(out, |area| Some(area.size));
    out.gauge(
        "region_free_bytes",
        "Memory that new devices can be made of.",
    );
    each(out, |area| Some(area.free));
    out.gauge(
        "region_free_by_leaf_bytes",
        "The same, by the largest page-table entry that can map it.",
    );
    for area in &stats.regions {
        for (leaf, bytes) in area.free_by_leaf.into_iter().flat_map(super::FreeBy::sizes) {
            let labels = area.labels();
            let [region, node] = labels.each();
            out.sample(&[region, node, ("leaf", leaf)], bytes);
        }
    }
    out.gauge(
        "region_clean_bytes",
        "Free memory that is known to be zero.",
    );
    each(out, |area| area.free_clean);
    out.gauge(
        "region_quarantined_bytes",
        "Memory that was unbound while in use, and still is.",
    );
    each(out, |area| area.quarantined);
    out.gauge(
        "region_lost_bytes",
        "Free memory that no device is made of because of failed pages in it.",
    );
    each(out, |area| area.lost);
    out.gauge("region_poisoned_pages", "Pages of 4 KiB that failed.");
    each(out, |area| {
        area.poisoned.and_then(|pages| pages.try_into().ok())
    });
}

fn devices(out: &mut Exposition, stats: &Stats) {
    let each = |out: &mut Exposition, value: fn(&Device) -> Option<u64>| {
        for device in stats.devices() {
            if let Some(value) = value(device) {
                out.sample(&device.labels(), value);
            }
        }
    };
    out.gauge(
        "device_info",
        "Guests' devices, and others that are page-less: 1, with what is known as labels.",
    );
    for device in stats.devices() {
        let [name, guest] = device.labels();
        let labels = [
            name,
            guest,
            (
                "node",
                &*device.node.map_or(String::new(), |node| node.to_string()),
            ),
            ("mode", &device.mode),
            ("state", device.state.as_deref().unwrap_or_default()),
        ];
        out.sample(&labels, 1);
    }
    out.gauge("device_size_bytes", "Memory of the device.");
    each(out, |device| Some(device.size));
    out.gauge(
        "device_saved_bytes",
        "Struct pages that the device does not need.",
    );
    each(out, |device| Some(device.saved));
    out.gauge("device_open_files", "Open files of the device.");
    each(out, |device| device.openers);
    out.gauge(
        "device_mappings",
        "Mappings of the device in all processes.",
    );
    each(out, |device| device.mappings);
    out.gauge(
        "device_poisoned_pages",
        "Pages of 4 KiB of the device that failed.",
    );
    each(out, |device| {
        device.poisoned.and_then(|pages| pages.try_into().ok())
    });
    out.gauge(
        "device_leaves",
        "Page-table entries that map the device in all processes.",
    );
    for device in stats.devices() {
        // A part of them says nothing.
        let known = device.leaves.iter().filter(|leaves| leaves.complete);
        for (leaf, number) in known.flat_map(crate::counters::Leaves::sizes) {
            let [name, guest] = device.labels();
            out.sample(&[name, guest, ("leaf", leaf)], number);
        }
    }
    out.counter(
        "device_faults_total",
        "Page faults of the device since it was bound, by the leaf that was asked for and what became of it.",
    );
    for device in stats.devices() {
        for faults in device.faults.iter().flatten() {
            for (result, number) in faults.results() {
                let [name, guest] = device.labels();
                let labels = [name, guest, ("leaf", &*faults.leaf), ("result", result)];
                out.sample(&labels, number);
            }
        }
    }
}

impl Device {
    fn labels(&self) -> [(&'static str, &str); 2] {
        [
            ("device", &self.device),
            ("guest", self.guest.as_deref().unwrap_or_default()),
        ]
    }
}

/// Values of the labels of a region.
struct AreaLabels {
    region: String,
    node: String,
}

impl AreaLabels {
    fn each(&self) -> [(&'static str, &str); 2] {
        [("region", &self.region), ("node", &self.node)]
    }
}

impl Area {
    fn labels(&self) -> AreaLabels {
        AreaLabels {
            region: self.id.to_string(),
            node: self.node.map_or(String::new(), |node| node.to_string()),
        }
    }
}

/// Families of samples, one after the other.
#[derive(Default)]
struct Exposition {
    text: String,
    /// Of the family whose samples follow.
    name: &'static str,
}

impl Exposition {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        // Writing to a String does not fail.
        let _ = write!(
            self.text,
            "# HELP daxdmem_{name} {help}\n# TYPE daxdmem_{name} {kind}\n"
        );
    }

    /// Begins the samples of a value that goes up and down.
    fn gauge(&mut self, name: &'static str, help: &str) {
        self.family(name, "gauge", help);
    }

    /// Begins the samples of a value that only grows, until it begins anew.
    fn counter(&mut self, name: &'static str, help: &str) {
        self.family(name, "counter", help);
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: u64) {
        let _ = write!(self.text, "daxdmem_{}", self.name);
        for (index, (name, value)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{before}{name}=\"{}\"", Escaped(value));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{end} {value}");
    }
}

/// The value of a label. Names of programs can hold anything.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            c => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{seen, stats};
    use super::super::Seen;
    use super::*;
    use crate::report::tests::report;

    /// Number of samples in each family, as another program's parser reads the text.
    fn parsed(text: &str) -> Vec<(String, usize)> {
        let families = openmetrics_parser::prometheus::parse_prometheus(text)
            .unwrap_or_else(|error| panic!("{error:?}\n{text}"))
            .families;
        let mut counts: Vec<(String, usize)> = families
            .into_iter()
            .map(|(name, family)| (name, family.into_iter_samples().count()))
            .collect();
        counts.sort();
        counts
    }

    #[test]
    fn what_others_read() {
        let text = text(&stats());
        let families = parsed(&text);
        let number = |name: &str| {
            let found = families.iter().find(|(family, _)| family == name);
            found.map(|(_, samples)| *samples)
        };
        assert_eq!(number("daxdmem_device_faults_total"), Some(12));
        assert_eq!(number("daxdmem_region_free_by_leaf_bytes"), Some(3));
        assert_eq!(number("daxdmem_metadata_bytes"), Some(7));
        for line in [
            "daxdmem_struct_page_bytes 64",
            "daxdmem_scrubbed_bytes_total 3221225472",
            "daxdmem_region_free_by_leaf_bytes{region=\"0\",node=\"0\",leaf=\"1g\"} 4294967296",
            "daxdmem_device_info{device=\"dax0.0\",guest=\"vm1\",node=\"0\",mode=\"page-less\",state=\"mapped\"} 1",
            "daxdmem_device_leaves{device=\"dax0.0\",guest=\"vm1\",leaf=\"2m\"} 3",
            "daxdmem_process_mapped_bytes{pid=\"42\",program=\"qemu-system-x86\",device=\"dax0.0\",guest=\"vm1\"} 2147483648",
        ] {
            assert!(text.lines().any(|there| there == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn little_is_known() {
        let text = text(&Stats::new(&report(), &Seen::default()));
        parsed(&text);
        assert!(!text.contains("daxdmem_scrubbed_bytes_total"), "{text}");
    }

    #[test]
    fn names_of_programs() {
        let mut seen = seen();
        for mapper in &mut seen.mappers {
            mapper.program = "a\"b\\c\nd}é".to_owned();
        }
        let text = text(&Stats::new(&report(), &seen));
        parsed(&text);
        assert!(text.contains(r#"program="a\"b\\c\nd}é","#), "{text}");
    }
}
