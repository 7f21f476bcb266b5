// SPDX-License-Identifier: GPL-2.0

use std::io::Write;
use std::process::Command;

use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;
const RICH: &str = include_str!("../../../tests/libvirt/rich.xml");
const RICH_EDITED: &str = include_str!("../../../tests/libvirt/rich.edited.xml");

fn memory(name: &str, size: u64) -> Memory {
    Memory {
        path: format!("/dev/daxdmem/{name}"),
        size,
        align: GIB,
    }
}

fn edited(text: &str, size: u64) -> Edited {
    match edit("vm1.xml", text, &memory("vm1", size), Disks::Name) {
        Ok(edited) => edited,
        Err(error) => panic!("{error}\n{text}"),
    }
}

/// What libvirt's own schema says.
fn validate(text: &str) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let output = Command::new("virt-xml-validate")
        .arg(file.path())
        .arg("domain")
        .output();
    let output = output.expect("virt-xml-validate of libvirt-clients");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{text}");
}

/// A domain with this before, and this in `<devices>`.
fn domain(rest: &str, devices: &str) -> String {
    format!(
        "<domain type='kvm'>\n  <name>vm1</name>\n  <memory>1048576</memory>\n{rest}  <os><type>hvm</type></os>\n  \
         <devices>\n{devices}  </devices>\n</domain>\n"
    )
}

#[test]
fn the_schema_is_not_pleased_by_everything() {
    let text = fresh("vm1", &memory("vm1", GIB)).replace("memfd", "device");
    assert!(std::panic::catch_unwind(|| validate(&text)).is_err());
}

#[test]
fn a_new_domain() {
    let text = fresh("vm1", &memory("vm1", 2 * GIB));
    validate(&text);
    assert!(text.contains("<memory unit='KiB'>2097152</memory>"));
    assert!(text.contains(r#"<qemu:arg value='{"qom-type":"memory-backend-file","id":"daxdmem","mem-path":"/dev/daxdmem/vm1","size":2147483648,"#));
    let again = edited(&text, 2 * GIB);
    assert_eq!((again.text, again.warnings), (text, vec![]));
}

#[test]
fn the_rest_of_a_domain_stays_byte_for_byte() {
    validate(RICH);
    let done = edit("db1.xml", RICH, &memory("db1", 8 * GIB), Disks::Name).unwrap();
    assert_eq!(done.text, RICH_EDITED);
    assert_eq!(
        done.warnings,
        ["line 31: <on_reboot> becomes destroy: a guest that reboots is shut off, and started by `virsh start`"]
    );
    validate(&done.text);
    let again = edit("db1.xml", &done.text, &memory("db1", 8 * GIB), Disks::Name).unwrap();
    assert_eq!((again.text.as_str(), again.warnings), (RICH_EDITED, vec![]));
}

#[test]
fn another_device_takes_the_place_of_the_last() {
    let first = edit("db1.xml", RICH, &memory("db1", 8 * GIB), Disks::Name)
        .unwrap()
        .text;
    let smaller = Memory {
        path: "/dev/daxdmem/db2".to_owned(),
        size: 514 << 20,
        align: 2 << 20,
    };
    let second = edit("db1.xml", &first, &smaller, Disks::Name).unwrap().text;
    validate(&second);
    let wanted = RICH_EDITED
        .replace(">8192<", ">514<")
        .replace(
            "<currentMemory unit='GiB'>8<",
            "<currentMemory unit='KiB'>526336<",
        )
        .replace("/dev/daxdmem/db1", "/dev/daxdmem/db2")
        .replace("8589934592", "538968064")
        .replace("1073741824", "2097152");
    assert_eq!(second, wanted);
    // As libvirt gives it back.
    let quoted = |text: &str, memory: &Memory| {
        let object = memory.object();
        let other = format!("\"{}\"", object.replace('"', "&quot;"));
        text.replace(&format!("'{object}'"), &other)
    };
    let text = quoted(&first, &memory("db1", 8 * GIB));
    assert_ne!(text, first);
    let again = edit("db1.xml", &text, &memory("db1", 8 * GIB), Disks::Name).unwrap();
    assert_eq!(again.text, text);
    let other = edit("db1.xml", &text, &smaller, Disks::Name).unwrap();
    assert_eq!(other.text, quoted(&second, &smaller));
}

#[test]
fn arguments_of_others_stay() {
    let line = |args: &str| {
        domain("", "")
            .replace("</devices>\n", &format!("</devices>\n{args}"))
            .replace(
                "type='kvm'",
                "type='kvm' xmlns:q=\"http://libvirt.org/schemas/domain/qemu/1.0\"",
            )
    };
    let text = line("  <q:commandline>\n    <q:arg value='-s'/>\n    <q:env name='X' value='1'/>\n  </q:commandline>\n");
    let done = edited(&text, GIB).text;
    validate(&done);
    assert!(done.contains(
        "    <q:arg value='-s'/>\n    <q:env name='X' value='1'/>\n    <q:arg value='-object'/>\n"
    ));
    assert!(!done.contains("qemu:"));
    assert_eq!(edited(&done, GIB).text, done);
    // Half of what an earlier run wrote.
    let half = done.replace(
        "    <q:arg value='-machine'/>\n    <q:arg value='memory-backend=daxdmem'/>\n",
        "",
    );
    assert_ne!(half, done);
    assert_eq!(edited(&half, GIB).text, done);
    // Declared where it is used.
    let own = domain("", "").replace(
        "</devices>\n",
        "</devices>\n  <commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'/>\n",
    );
    let done = edited(&own, GIB).text;
    validate(&done);
    assert!(
        done.contains("qemu/1.0'>\n    <arg value='-object'/>\n"),
        "{done}"
    );
}

#[test]
fn what_contradicts_is_refused() {
    let conflicts = |text: &str| match edit("vm1.xml", text, &memory("vm1", GIB), Disks::Name) {
        Err(LibvirtError::Conflicts { conflicts, .. }) => conflicts.join("\n"),
        other => panic!("{other:?}"),
    };
    for (rest, devices, why) in [
        (
            "  <cpu><numa><cell id='0' cpus='0' memory='1' unit='GiB'/></numa></cpu>\n",
            "",
            "line 4: <numa> cells",
        ),
        (
            "  <maxMemory slots='4'>9</maxMemory>\n",
            "",
            "line 4: <maxMemory>",
        ),
        (
            "",
            "<memory model='virtio-mem'/>",
            "line 6: a <memory> device",
        ),
        (
            "  <memoryBacking><hugepages/></memoryBacking>\n",
            "",
            "line 4: <hugepages>",
        ),
        (
            "  <memoryBacking>\n<locked/></memoryBacking>\n",
            "",
            "line 5: <locked/>",
        ),
        (
            "  <memoryBacking><allocation mode='immediate'/></memoryBacking>\n",
            "",
            "line 4: <allocation",
        ),
        (
            "  <launchSecurity type='sev'/>\n",
            "",
            "line 4: <launchSecurity>",
        ),
        (
            "  <currentMemory unit='pages'>1</currentMemory>\n",
            "",
            "line 4: <currentMemory> is not understood",
        ),
        (
            "  <on_reboot/>\n",
            "",
            "line 4: <on_reboot> holds more than a word",
        ),
    ] {
        let found = conflicts(&domain(rest, devices));
        assert!(found.starts_with(why) && !found.contains('\n'), "{found}");
    }
    let mut all = fresh("vm1", &memory("vm1", GIB));
    let more = "<qemu:arg value='-m'/>\n<qemu:arg value='4G'/>\n<qemu:arg value='-machine'/>\n\
                <qemu:arg value='memory-backend=ram'/>\n<qemu:arg value='-machine'/>\n\
                <qemu:arg value='memory-backend=daxdmem'/>\n  </qemu:commandline>";
    all = all.replace("  </qemu:commandline>", more);
    let found = conflicts(&all);
    assert_eq!(found.lines().count(), 3, "{found}");
    assert!(found.contains("argument -m 4G contradicts"), "{found}");
    assert!(
        found.contains("argument -machine memory-backend=ram contradicts"),
        "{found}"
    );
    assert!(found.contains("is there twice"), "{found}");
    // One of two, taken out without what stood before it; and one that came from elsewhere.
    let all = fresh("vm1", &memory("vm1", GIB));
    let first = "    <qemu:arg value='-object'/>\n";
    let last = "  </qemu:commandline>";
    for (text, why) in [
        (
            all.replacen(first, &first.repeat(2), 1),
            "-object has nothing behind it",
        ),
        (
            all.replace(last, &format!("{first}{last}")),
            "-object has nothing behind it",
        ),
        (
            all.replace(last, &format!("<qemu:arg value='-machine'/>{last}")),
            "-machine has nothing behind it",
        ),
        (
            all.replace(
                last,
                &format!("{first}<qemu:arg value='memory-backend-ram,id=daxdmem,size=1G'/>{last}"),
            ),
            "-object memory-backend-ram,id=daxdmem,size=1G contradicts the device",
        ),
    ] {
        let found = conflicts(&text);
        assert_eq!(found.lines().count(), 1, "{found}");
        assert!(found.contains(why), "{found}");
    }
    // What only looks like it.
    let rest = "  <metadata><cpu xmlns='urn:x'><numa/></cpu></metadata>\n  <memoryBacking><allocation mode='ondemand'/></memoryBacking>\n";
    let text = domain(rest, "");
    validate(&edited(&text, GIB).text);
}

#[test]
fn what_is_no_domain_is_refused() {
    for (text, why) in [
        ("<domain type='kvm'>", "vm1.xml is no well-formed XML: "),
        (
            "<network/>",
            "vm1.xml is no domain of libvirt's: it begins with <network>",
        ),
        ("<domain type='xen'/>", "its type is 'xen'"),
        (
            "<domain type='kvm'><memory>1</memory></domain>",
            "it has no <devices>",
        ),
        (
            "<domain type='kvm'><devices/></domain>",
            "it has no <memory>",
        ),
        (
            "<!DOCTYPE a [<!ENTITY b 'c'>]><domain/>",
            "vm1.xml is no well-formed XML: ",
        ),
    ] {
        let error = edit("vm1.xml", text, &memory("vm1", GIB), Disks::Name)
            .unwrap_err()
            .to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn what_works_badly_is_named() {
    let disk = |driver: &str| {
        let devices = format!(
            "    <disk type='file' device='disk'>\n      {driver}\n      <source file='/x'/>\n      <target dev='vda' \
             bus='virtio'/>\n    </disk>\n"
        );
        let done = edited(&domain("", &devices), GIB);
        validate(&done.text);
        done.warnings.join("\n")
    };
    assert_eq!(
        disk("<driver name='qemu' type='raw' cache='writeback' io='threads'/>"),
        ""
    );
    assert_eq!(disk("<driver name='qemu' type='raw'/>"), "");
    for cache in ["none", "directsync"] {
        let said = disk(&format!(
            "<driver name='qemu' cache='{cache}' io='native'/>"
        ));
        assert!(
            said.starts_with(&format!("line 7: disk vda: cache='{cache}' bypasses")),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1);
    }
    assert!(disk("<driver name='qemu' io='native'/>").contains("io='native' is for disks"));
}

#[test]
fn sizes_in_all_units() {
    for (name, bytes) in [
        ("b", 1),
        ("bytes", 1),
        ("KB", 1000),
        ("k", 1024),
        ("KiB", 1024),
        ("mb", 1_000_000),
        ("M", 1 << 20),
        ("GiB", GIB),
        ("TB", 1_000_000_000_000),
        ("T", 1 << 40),
    ] {
        assert_eq!(unit(name), Some(bytes), "{name}");
    }
    for name in ["", "x", "KiBi", "pages"] {
        assert_eq!(unit(name), None, "{name}");
    }
}

/// Elements of a domain that are not daxdmem's business.
fn foreign() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("<vcpu>2</vcpu>".to_owned()),
        Just("<title>a &lt; b</title>".to_owned()),
        Just("<!-- <memory>1</memory> </devices> -->".to_owned()),
        Just("<description><![CDATA[</domain>]]></description>".to_owned()),
        Just("<features><acpi/>\r\n\t</features>".to_owned()),
        Just("<on_crash >restart</on_crash >".to_owned()),
        Just("<numatune><memory mode=\"strict\" nodeset='0'/></numatune>".to_owned()),
    ]
}

fn device() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("<emulator>/usr/bin/qemu-system-x86_64</emulator>".to_owned()),
        Just("<!-- <memballoon model='virtio'/> -->".to_owned()),
        Just("<interface type=\"user\"><model type='virtio'/></interface>".to_owned()),
        Just("<disk type='file'><source file='/a'/><target dev=\"vda\"/></disk>".to_owned()),
        Just("<hostdev mode='subsystem' type='pci'>\n<source><address domain='0' bus='6' slot='2' function='0'/></source></hostdev>".to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn whatever_stands_around_stays(
        before in proptest::collection::vec((foreign(), 0..4_usize), 0..4),
        after in proptest::collection::vec((foreign(), 0..4_usize), 0..4),
        devices in proptest::collection::vec((device(), 0..4_usize), 0..5),
        own in (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        size in 1..4096_u64,
    ) {
        let gaps = ["", "\n  ", "\n\t", " "];
        let join = |parts: &[(String, usize)]| -> String {
            parts.iter().flat_map(|(part, gap)| [gaps[*gap], part]).collect()
        };
        let (backing, balloon, reboot, line) = own;
        let maybe = |there: bool, text: &str| if there { text.to_owned() } else { String::new() };
        let text = format!(
            "<domain type='kvm'{}>{}\n  <memory unit='MiB'>1</memory>{}<os><type>hvm</type></os>{}<devices>{}{}</devices>{}{}</domain>",
            maybe(line, " xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"),
            join(&before),
            maybe(backing, "<memoryBacking><source type='file'/></memoryBacking>"),
            maybe(reboot, "<on_reboot>restart</on_reboot>"),
            join(&devices),
            maybe(balloon, "<memballoon model='virtio'/>"),
            join(&after),
            maybe(line, "<qemu:commandline><qemu:arg value='-s'/></qemu:commandline>"),
        );
        let size = size << 21;
        let done = edited(&text, size).text;
        // What is not ours is there, in order and unchanged, comments and blanks between elements included.
        let mut rest = done.as_str();
        for (part, gap) in before.iter().chain(&devices).chain(&after) {
            let part = format!("{}{part}", gaps[*gap]);
            let at = rest.find(&part);
            prop_assert!(at.is_some(), "{part} is gone from\n{done}");
            rest = &rest[at.unwrap() + part.len()..];
        }
        prop_assert_eq!(&edited(&done, size).text, &done);
        let doc = Document::parse(&done).unwrap();
        let root = doc.root_element();
        let one = |parent: Node, name: &str| {
            let found: Vec<_> = parent.children().filter(|node| node.has_tag_name(name)).map(|node| node.range()).collect();
            assert_eq!(found.len(), 1, "{name} in\n{done}");
            done[found[0].clone()].to_owned()
        };
        let backing = one(root, "memoryBacking");
        prop_assert!(backing.contains("<source type='memfd'/>") && backing.contains("<access mode='shared'/>"));
        prop_assert_eq!(one(root, "on_reboot"), "<on_reboot>destroy</on_reboot>");
        prop_assert_eq!(one(root, "memory"), format!("<memory unit='MiB'>{}</memory>", size >> 20));
        let devices = child(root, "devices").unwrap();
        prop_assert_eq!(one(devices, "memballoon"), "<memballoon model='none'/>");
        let line = root.children().find(|node| node.has_tag_name((QEMU, "commandline"))).unwrap();
        let args: Vec<_> = line.children().filter_map(|node| node.attribute("value")).collect();
        let wanted = memory("vm1", size).args();
        prop_assert!(args.ends_with(&wanted.each_ref().map(String::as_str)));
    }
}

#[test]
fn disks_past_the_page_cache_are_mended_on_request() {
    let disk = |driver: &str| {
        let disk = format!(
            "    <disk type='file' device='disk'>\n      <driver name='qemu'{driver}/>\n      \
             <source file='/a.img'/>\n      <target dev='vda' bus='virtio'/>\n    </disk>\n"
        );
        domain("", &disk)
    };
    for (before, after) in [
        (
            " cache='none' io='native'",
            " cache='writeback' io='threads'",
        ),
        (" cache='directsync'", " cache='writethrough'"),
        (" io='native'", " io='threads'"),
        ("", ""),
        (
            " cache='unsafe' io='io_uring'",
            " cache='unsafe' io='io_uring'",
        ),
    ] {
        let memory = memory("vm1", GIB);
        let mended = edit("vm1.xml", &disk(before), &memory, Disks::Mend).unwrap();
        assert_eq!(mended.warnings, [""; 0], "{before}");
        assert_eq!(mended.text, edited(&disk(after), GIB).text);
        validate(&mended.text);
    }
}
