// SPDX-License-Identifier: GPL-2.0

//! Domain XML of a guest whose memory is a device.
//!
//! libvirt has no element for that: QEMU is told by `qemu:commandline`, and what libvirt says of the guest's memory is
//! brought in line with it. libvirt still makes a memory object of its own, which nobody uses; as a memfd it costs
//! nothing.

use roxmltree::{Document, Node};

use super::splice::{escaped, Splices};
use super::LibvirtError;

/// Namespace of `qemu:commandline`.
const QEMU: &str = "http://libvirt.org/schemas/domain/qemu/1.0";

/// The memory object's name, by which an earlier run's arguments are known again.
const ID: &str = "daxdmem";

/// What the guest gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Path of the device.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// What QEMU's mapping is to be aligned to, in bytes.
    pub align: u64,
}

impl Memory {
    /// QEMU's memory object, in JSON: libvirt and QEMU agree on that form. See `daxdmem qemu-args` for the reasons.
    fn object(&self) -> String {
        format!(
            r#"{{"qom-type":"memory-backend-file","id":"{ID}","mem-path":"{}","size":{},"share":true,"align":{},"prealloc":false,"merge":false,"dump":false}}"#,
            self.path, self.size, self.align
        )
    }

    /// QEMU's arguments.
    fn args(&self) -> [String; 4] {
        [
            "-object".to_owned(),
            self.object(),
            "-machine".to_owned(),
            machine(),
        ]
    }
}

fn machine() -> String {
    format!("memory-backend={ID}")
}

/// A whole domain, as small as can be: no disk, no network.
pub fn fresh(name: &str, memory: &Memory) -> String {
    let args: Vec<String> = memory
        .args()
        .iter()
        .map(|arg| format!("    {}\n", arg_element("qemu:", arg)))
        .collect();
    let args = args.concat();
    format!(
        "<domain type='kvm' xmlns:qemu='{QEMU}'>
  <name>{name}</name>
  <memory unit='KiB'>{}</memory>
  <memoryBacking>
    <source type='memfd'/>
    <access mode='shared'/>
  </memoryBacking>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
  </os>
  <features>
    <acpi/>
  </features>
  <cpu mode='host-passthrough'/>
  <on_reboot>destroy</on_reboot>
  <devices>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
{args}  </qemu:commandline>
</domain>
",
        memory.size >> 10
    )
}

fn arg_element(prefix: &str, value: &str) -> String {
    format!("<{prefix}arg value='{}'/>", escaped(value, "'"))
}

/// A domain that was edited.
#[derive(Debug, PartialEq, Eq)]
pub struct Edited {
    /// Its text.
    pub text: String,
    /// What the operator may want to change as well.
    pub warnings: Vec<String>,
}

/// What becomes of disks that bypass the page cache, which cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disks {
    /// They are named, and left to the operator.
    Name,
    /// They go through the page cache.
    Mend,
}

/// The domain with its memory from a device, and all else as it is, byte for byte. `file` is what messages call it.
pub fn edit(file: &str, text: &str, memory: &Memory, disks: Disks) -> Result<Edited, LibvirtError> {
    let doc = Document::parse(text).map_err(|error| LibvirtError::NotXml {
        file: file.to_owned(),
        why: error.to_string(),
    })?;
    let not = |why: String| LibvirtError::NotDomain {
        file: file.to_owned(),
        why,
    };
    let root = doc.root_element();
    if !root.has_tag_name("domain") {
        let found = root.tag_name().name();
        return Err(not(format!("it begins with <{found}>, not with <domain>")));
    }
    match root.attribute("type") {
        Some("kvm" | "qemu") => {}
        kind => {
            let kind = kind.unwrap_or_default();
            return Err(not(format!(
                "its type is '{kind}': QEMU's are kvm and qemu"
            )));
        }
    }
    let mut editor = Editor {
        doc: &doc,
        root,
        splices: Splices::new(&doc),
        conflicts: Vec::new(),
        warnings: Vec::new(),
    };
    editor.refuse();
    let Some(devices) = child(root, "devices") else {
        return Err(not("it has no <devices>".to_owned()));
    };
    let Some(size) = child(root, "memory") else {
        return Err(not("it has no <memory>".to_owned()));
    };
    editor.size(size, memory.size);
    if let Some(current) = child(root, "currentMemory") {
        editor.size(current, memory.size);
    }
    editor.backing(size);
    editor.reboot(devices);
    editor.balloon(devices);
    editor.command_line(memory);
    editor.look(devices, disks);
    match editor.conflicts.is_empty() {
        true => Ok(Edited {
            warnings: editor.warnings,
            text: editor.splices.done(),
        }),
        false => Err(LibvirtError::Conflicts {
            file: file.to_owned(),
            conflicts: editor.conflicts,
        }),
    }
}

fn child<'d, 'i>(parent: Node<'d, 'i>, name: &str) -> Option<Node<'d, 'i>> {
    parent.children().find(|child| child.has_tag_name(name))
}

/// Bytes in one of libvirt's units.
fn unit(name: &str) -> Option<u64> {
    let name = name.to_ascii_lowercase();
    if matches!(name.as_str(), "b" | "bytes") {
        return Some(1);
    }
    let (letter, rest) = name.split_at_checked(1)?;
    let power = 1 + "kmgtpe".find(letter)? as u32;
    match rest {
        "" | "ib" => Some(1024_u64.pow(power)),
        "b" => Some(1000_u64.pow(power)),
        _ => None,
    }
}

struct Editor<'d, 'i> {
    doc: &'d Document<'i>,
    root: Node<'d, 'i>,
    splices: Splices<'d, 'i>,
    conflicts: Vec<String>,
    warnings: Vec<String>,
}

impl<'d, 'i> Editor<'d, 'i> {
    fn line(&self, node: Node) -> u32 {
        self.doc.text_pos_at(node.range().start).row
    }

    fn conflict(&mut self, node: Node, why: &str) {
        let line = self.line(node);
        self.conflicts.push(format!("line {line}: {why}"));
    }

    fn warn(&mut self, node: Node, why: &str) {
        let line = self.line(node);
        self.warnings.push(format!("line {line}: {why}"));
    }

    /// What cannot be together with such memory.
    fn refuse(&mut self) {
        for node in self.root.descendants().filter(Node::is_element) {
            // That is other programs'.
            if node.ancestors().any(|above| above.has_tag_name("metadata")) {
                continue;
            }
            let parent = node.parent_element();
            let parent = parent.map_or("", |parent| parent.tag_name().name());
            let why = match (parent, node.tag_name().name()) {
                ("cpu", "numa") => {
                    "<numa> cells have memory of their own; take <numa> out, libvirt cannot give a cell a device"
                }
                ("domain", "maxMemory") => {
                    "<maxMemory> is for memory that is plugged later, which there is none of; take it out"
                }
                ("devices", "memory") => {
                    "a <memory> device (DIMM, NVDIMM, virtio-mem) needs <numa> cells; take it out"
                }
                ("memoryBacking", "hugepages") => {
                    "<hugepages> is another source of memory; take it out, devices have leaves of up to 1 GiB anyway"
                }
                ("memoryBacking", "locked") => {
                    "<locked/> would fill and lock the memory object that libvirt makes and nobody uses; take it out, \
                     a device is never swapped"
                }
                ("memoryBacking", "allocation") if node.attribute("mode") == Some("immediate") => {
                    "<allocation mode='immediate'/> would fill the memory object that libvirt makes and nobody uses; \
                     take it out"
                }
                ("domain", "launchSecurity") => {
                    "<launchSecurity> encrypts pages, which this memory has none of; take it out"
                }
                _ => continue,
            };
            self.conflict(node, why);
        }
    }

    /// Has `<memory>` or `<currentMemory>` say the device's size, in the unit it is in if that will do.
    fn size(&mut self, node: Node<'d, 'i>, size: u64) {
        let name = node.tag_name().name();
        let scale = node.attribute("unit").unwrap_or("KiB");
        let value = node.text().and_then(|text| text.trim().parse::<u64>().ok());
        let (Some(scale), Some(value)) = (unit(scale), value) else {
            self.conflict(
                node,
                &format!("<{name}> is not understood: it holds no size"),
            );
            return;
        };
        if value.checked_mul(scale) == Some(size) {
            return;
        }
        let is_text = match size % scale {
            0 => self.splices.set_text(node, &(size / scale).to_string()),
            _ => {
                self.splices.set_attribute(node, "unit", "KiB");
                self.splices.set_text(node, &(size >> 10).to_string())
            }
        };
        if !is_text {
            self.conflict(node, &format!("<{name}> holds more than a number"));
        }
    }

    /// libvirt's own object is a memfd, which takes no memory as long as nobody uses it, and shared, as vhost-user
    /// wants it.
    fn backing(&mut self, memory: Node<'d, 'i>) {
        let parts = [("source", "type", "memfd"), ("access", "mode", "shared")];
        let element = |(name, attribute, value): &(&str, &str, &str)| {
            format!("<{name} {attribute}='{value}'/>")
        };
        let Some(backing) = child(self.root, "memoryBacking") else {
            let inner: Vec<String> = parts
                .iter()
                .map(|part| format!("\n  {}", element(part)))
                .collect();
            let text = format!("<memoryBacking>{}\n</memoryBacking>", inner.concat());
            self.splices.insert_before(memory, &text);
            return;
        };
        let mut missing = Vec::new();
        for part in &parts {
            match child(backing, part.0) {
                Some(node) => self.splices.set_attribute(node, part.1, part.2),
                None => missing.push(element(part)),
            }
        }
        if !missing.is_empty() {
            self.splices.append(backing, &missing);
        }
    }

    /// QEMU cannot reset a guest after a memory error, and would end: so libvirt ends it in order.
    fn reboot(&mut self, devices: Node<'d, 'i>) {
        match child(self.root, "on_reboot") {
            Some(node) => {
                if node.text().map(str::trim) != Some("destroy") {
                    self.warn(
                        node,
                        "<on_reboot> becomes destroy: a guest that reboots is shut off, and started by `virsh start`",
                    );
                }
                if !self.splices.set_text(node, "destroy") {
                    self.conflict(node, "<on_reboot> holds more than a word");
                }
            }
            None => self
                .splices
                .insert_before(devices, "<on_reboot>destroy</on_reboot>"),
        }
    }

    fn balloon(&mut self, devices: Node<'d, 'i>) {
        const NONE: &str = "<memballoon model='none'/>";
        match child(devices, "memballoon") {
            Some(balloon) if balloon.attribute("model") == Some("none") => {}
            Some(balloon) => self.splices.replace(balloon.range(), NONE.to_owned()),
            None => self.splices.append(devices, &[NONE.to_owned()]),
        }
    }

    fn command_line(&mut self, memory: &Memory) {
        let wanted = memory.args();
        let Some(line) = self
            .root
            .children()
            .find(|child| child.has_tag_name((QEMU, "commandline")))
        else {
            let prefix = self.prefix();
            let args: Vec<String> = wanted
                .iter()
                .map(|arg| format!("\n  {}", arg_element(&prefix, arg)))
                .collect();
            let args = args.concat();
            let text = format!("<{prefix}commandline>{args}\n</{prefix}commandline>");
            self.splices.append(self.root, &[text]);
            return;
        };
        let args: Vec<(Node, &str)> = line
            .children()
            .filter(|child| child.has_tag_name((QEMU, "arg")))
            .map(|node| (node, node.attribute("value").unwrap_or_default()))
            .collect();
        self.refuse_args(&args);
        let pairs = args.iter().zip(args.iter().skip(1));
        let find = |option: &str, is_ours: &dyn Fn(&str) -> bool| {
            pairs
                .clone()
                .filter(|((_, name), (_, value))| *name == option && is_ours(value))
                .map(|(_, (node, _))| *node)
                .collect::<Vec<_>>()
        };
        let ours = [
            find("-object", &is_our_object),
            find("-machine", &|value| value == machine()),
        ];
        let prefix = self.splices.tag(line);
        let prefix = prefix.strip_suffix("commandline").unwrap_or_default();
        let mut missing = Vec::new();
        for (found, pair) in ours.iter().zip(wanted.chunks(2)) {
            match found.as_slice() {
                [] => missing.extend(pair.iter().map(|arg| arg_element(prefix, arg))),
                [value] => self.splices.set_attribute(*value, "value", &pair[1]),
                [_, again, ..] => self.conflict(
                    *again,
                    "this was written by daxdmem and is there twice; take one out, with the argument before it",
                ),
            }
        }
        if !missing.is_empty() {
            self.splices.append(line, &missing);
        }
    }

    /// Arguments that say where the memory comes from, too.
    fn refuse_args(&mut self, args: &[(Node, &str)]) {
        for (index, (node, arg)) in args.iter().enumerate() {
            let next = args.get(index + 1).map_or("", |(_, value)| *value);
            // As where one of two was taken out, and what stood before it was not.
            if matches!(*arg, "-object" | "-machine" | "-M")
                && (next.is_empty() || next.starts_with('-'))
            {
                let why = format!("QEMU's argument {arg} has nothing behind it; take it out");
                self.conflict(*node, &why);
                continue;
            }
            let other = match *arg {
                "-object" => is_our_name(next) && !is_our_object(next),
                "-machine" | "-M" => next.contains("memory-backend=") && next != machine(),
                "-m" | "-numa" | "-mem-path" | "-mem-prealloc" => true,
                "-overcommit" => next.contains("mem-lock=on"),
                _ => false,
            };
            if other {
                let why =
                    format!("QEMU's argument {arg} {next} contradicts the device; take it out");
                self.conflict(*node, &why);
            }
        }
    }

    /// Prefix of QEMU's namespace on the root element, declared there if it is not yet.
    fn prefix(&mut self) -> String {
        let declared = self.root.namespaces().find(|ns| ns.uri() == QEMU);
        if let Some(prefix) = declared.and_then(|ns| ns.name()) {
            return format!("{prefix}:");
        }
        if self.root.lookup_namespace_uri(Some("qemu")).is_some() {
            self.conflict(
                self.root,
                "the prefix qemu stands for another namespace than QEMU's; rename it",
            );
        }
        self.splices.set_attribute(self.root, "xmlns:qemu", QEMU);
        "qemu:".to_owned()
    }

    /// What works badly or not at all, and is the operator's to change.
    fn look(&mut self, devices: Node<'d, 'i>, disks: Disks) {
        for disk in devices.children().filter(|node| node.has_tag_name("disk")) {
            let driver = child(disk, "driver").filter(|_| disks == Disks::Mend);
            if let Some(driver) = driver {
                self.mend(driver);
            }
            self.look_at_disk(disk, disks);
        }
    }

    /// What the guest is told has been written is on the disk as before: by its own flushes, or with directsync by a
    /// flush behind each write.
    fn mend(&mut self, driver: Node<'d, 'i>) {
        let cache = match driver.attribute("cache") {
            Some("none") => Some("writeback"),
            Some("directsync") => Some("writethrough"),
            _ => None,
        };
        if let Some(cache) = cache {
            self.splices.set_attribute(driver, "cache", cache);
        }
        // For disks past the page cache alone.
        if driver.attribute("io") == Some("native") {
            self.splices.set_attribute(driver, "io", "threads");
        }
    }

    fn look_at_disk(&mut self, disk: Node<'d, 'i>, disks: Disks) {
        let target = child(disk, "target").and_then(|target| target.attribute("dev"));
        let target = target.unwrap_or("without a target");
        if let Some(driver) = child(disk, "driver").filter(|_| disks == Disks::Name) {
            let cache = driver.attribute("cache");
            let io = driver.attribute("io");
            if let Some(cache @ ("none" | "directsync")) = cache {
                self.warn(
                    driver,
                    &format!(
                        "disk {target}: cache='{cache}' bypasses the page cache, which takes pages of guest memory: the \
                         guest cannot read it; use cache='writeback' (--fix-disks)"
                    ),
                );
            } else if io == Some("native") {
                self.warn(
                    driver,
                    &format!("disk {target}: io='native' is for disks with cache='none', which cannot be read; leave it out"),
                );
            }
        }
        if disk.attribute("device") == Some("lun") {
            self.warn(
                disk,
                &format!("disk {target}: device='lun' hands SCSI commands to the host, which takes pages of guest memory; use device='disk'"),
            );
        }
        if disk.attribute("type") == Some("vhostuser") {
            self.warn(
                disk,
                &format!("disk {target}: its vhost-user backend must use buffered I/O, without O_DIRECT and registered buffers"),
            );
        }
    }
}

/// Whether this is the memory object of an earlier run.
fn is_our_object(value: &str) -> bool {
    let object = serde_json::from_str::<serde_json::Value>(value);
    object.is_ok_and(|object| object["id"] == ID)
}

/// Whether this is a memory object that has the name of ours, in QEMU's short form: a second one is refused by QEMU.
fn is_our_name(value: &str) -> bool {
    value
        .split(',')
        .any(|part| part.strip_prefix("id=") == Some(ID))
}

#[cfg(test)]
mod tests;
