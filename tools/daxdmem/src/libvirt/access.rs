// SPDX-License-Identifier: GPL-2.0

//! What lets libvirt's QEMU open the devices: `cgroup_device_acl` in qemu.conf, and a file that AppArmor's profile of
//! QEMU includes.
//!
//! The list in qemu.conf is of exact paths; libvirt follows links in it and passes over what is not there, each time
//! a guest starts. So it names the guests' links, which stay the same from boot to boot, and not the devices.
//!
//! qemu.conf knows a setting once and no comments within it: a list that the operator has made is put aside in
//! comments, and a new one stands between two lines that say whose it is. Taking that out leaves the file as it was,
//! byte for byte.

use std::path::{Path, PathBuf};

use super::LibvirtError;
use crate::edit::Edit;

/// libvirt's configuration of QEMU.
const QEMU_CONF: &str = "etc/libvirt/qemu.conf";
/// AppArmor's profile of QEMU.
const PROFILE: &str = "etc/apparmor.d/abstractions/libvirt-qemu";
/// What it includes, among others.
const DROP_IN: &str = "etc/apparmor.d/abstractions/libvirt-qemu.d/daxdmem";

const KEY: &str = "cgroup_device_acl";
const BEGIN: &str = "# begin of `daxdmem libvirt-setup`, whose --remove takes it out again";
const END: &str = "# end of `daxdmem libvirt-setup`";
/// Before each line that was there.
const ASIDE: &str = "#~ ";
/// Where the links are; what the list has of them is daxdmem's.
const LINKS: &str = "/dev/daxdmem/";

/// What libvirt 11.3 allows where nothing is set and qemu.conf does not say what that is.
const DEFAULT: [&str; 8] = [
    "/dev/null",
    "/dev/full",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
    "/dev/ptmx",
    "/dev/kvm",
    "/dev/userfaultfd",
];

const RULES: &str = "\
# Written by `daxdmem libvirt-setup`, whose --remove deletes it.
#
# QEMU opens the device that is its guest's memory, and reads its size.
  /dev/dax[0-9]*.[0-9]* rw,
  /sys/devices/**/dax[0-9]*.[0-9]*/size r,
";

/// The changes that let QEMU at these links, or no longer at any (`None`); and what there is to say beyond that.
pub fn edits(
    root: &Path,
    links: Option<&[PathBuf]>,
) -> Result<(Vec<Edit>, Vec<String>), LibvirtError> {
    let mut notes = Vec::new();
    let mut edits = Vec::new();
    let path = root.join(QEMU_CONF);
    let failed = |path: &Path| {
        let path = path.to_owned();
        |why: String| LibvirtError::Settings { path, why }
    };
    let mut edit = read(&path)?;
    match (&edit.old, links) {
        (Some(text), Some(links)) => {
            let links: Vec<String> = links
                .iter()
                .map(|link| link.display().to_string())
                .collect();
            edit.new = Some(with(text, &links).map_err(failed(&path))?);
        }
        (Some(text), None) => edit.new = Some(without(text).map_err(failed(&path))?),
        (None, Some(_)) => {
            let why = "it is not there; is libvirt-daemon-system installed?".to_owned();
            return Err(failed(&path)(why));
        }
        (None, None) => {}
    }
    edits.push(edit);

    let mut edit = read(&root.join(DROP_IN))?;
    let profile = read(&root.join(PROFILE))?.old;
    edit.new = match (links, &profile) {
        (Some(_), Some(profile)) if profile.contains("libvirt-qemu.d") => Some(RULES.to_owned()),
        (Some(_), Some(_)) => {
            notes.push(format!(
                "AppArmor's profile {} has no directory for additions: add these lines to \
                 /etc/apparmor.d/local/abstractions/libvirt-qemu\n{RULES}",
                root.join(PROFILE).display()
            ));
            edit.new
        }
        // No AppArmor here, or no libvirt.
        (Some(_), None) => edit.new,
        (None, _) => None,
    };
    edits.push(edit);
    edits.retain(Edit::is_needed);
    Ok((edits, notes))
}

fn read(path: &Path) -> Result<Edit, LibvirtError> {
    Edit::of(path, |text| text.map(str::to_owned)).map_err(|error| LibvirtError::Settings {
        path: path.to_owned(),
        why: error.to_string(),
    })
}

/// The file with these links, and no others, in the list.
fn with(text: &str, links: &[String]) -> Result<String, String> {
    let present = Block::find(text)?;
    let original = without(text)?;
    let set = List::active(&original)?;
    // What was added within daxdmem's own lines stays as well.
    let base = match &present {
        Some(block) => List::active(block.body)?.map(|list| list.paths),
        None => set.as_ref().map(|list| list.paths.clone()),
    };
    let mut paths = base.unwrap_or_else(|| default(&original));
    paths.retain(|path| !path.starts_with(LINKS));
    paths.extend(links.iter().cloned());
    if links.is_empty() {
        return Ok(original);
    }
    let rows: Vec<String> = paths.iter().map(|path| format!("    \"{path}\"")).collect();
    let list = format!("{KEY} = [\n{}\n]\n", rows.join(",\n"));
    Ok(match set {
        Some(set) => {
            let (before, rest) = original.split_at(set.lines.start);
            let (old, after) = rest.split_at(set.lines.len());
            let aside: String = old
                .split_inclusive('\n')
                .flat_map(|line| [ASIDE, line])
                .collect();
            let newline = if aside.ends_with('\n') { "" } else { "\n" };
            // A last line without its end stays one.
            let end = if newline.is_empty() { "\n" } else { "" };
            format!("{before}{BEGIN}\n{aside}{newline}{list}{END}{end}{after}")
        }
        None if original.is_empty() || original.ends_with('\n') => {
            format!("{original}{BEGIN}\n{list}{END}\n")
        }
        None => format!("{BEGIN}\n{list}{END}\n{original}"),
    })
}

/// The file as it was.
fn without(text: &str) -> Result<String, String> {
    let Some(block) = Block::find(text)? else {
        return Ok(text.to_owned());
    };
    let aside: String = block
        .body
        .split_inclusive('\n')
        .filter_map(|line| line.strip_prefix(ASIDE))
        .collect();
    let aside = match block.after {
        // See `with`: there, too, it was the file's last line, and had no end.
        "" if !block.is_ended => aside.strip_suffix('\n').unwrap_or(&aside),
        _ => &aside,
    };
    Ok(format!("{}{aside}{}", block.before, block.after))
}

/// What an earlier run has put into the file.
struct Block<'t> {
    before: &'t str,
    body: &'t str,
    after: &'t str,
    /// Whether its last line has an end.
    is_ended: bool,
}

impl<'t> Block<'t> {
    fn find(text: &'t str) -> Result<Option<Block<'t>>, String> {
        let (mut begin, mut end, mut at) = (None, None, 0);
        for line in text.split_inclusive('\n') {
            let next = at + line.len();
            match line.trim_end() {
                BEGIN if begin.is_none() => begin = Some(at..next),
                END if begin.is_some() && end.is_none() => end = Some(at..next),
                BEGIN | END => {
                    return Err(format!("the line \"{}\" is out of place", line.trim_end()))
                }
                _ => {}
            }
            at = next;
        }
        match (begin, end) {
            (Some(begin), Some(end)) => Ok(Some(Block {
                before: &text[..begin.start],
                body: &text[begin.end..end.start],
                after: &text[end.end..],
                is_ended: text[end].ends_with('\n'),
            })),
            (Some(_), None) => Err(format!("the line \"{BEGIN}\" has no \"{END}\" behind it")),
            _ => Ok(None),
        }
    }
}

/// The setting, as it stands in the file.
struct List {
    paths: Vec<String>,
    /// Its whole lines.
    lines: std::ops::Range<usize>,
}

impl List {
    /// The one that holds.
    fn active(text: &str) -> Result<Option<List>, String> {
        let mut found: Option<List> = None;
        let mut at = 0;
        while at < text.len() {
            let line = text[at..].split_inclusive('\n').next().unwrap_or_default();
            let end = match List::parse(&text[at..]) {
                None => at + line.len(),
                Some(Err(why)) => {
                    let row = text[..at].matches('\n').count() + 1;
                    return Err(format!("line {row}: {KEY} is not understood: {why}"));
                }
                Some(Ok(_)) if found.is_some() => return Err(format!("{KEY} is set twice")),
                Some(Ok(mut list)) => {
                    list.lines = at..at + list.lines.end;
                    let end = list.lines.end;
                    found = Some(list);
                    end
                }
            };
            at = end;
        }
        Ok(found)
    }

    /// Reads the setting if the text begins with it.
    fn parse(text: &str) -> Option<Result<List, String>> {
        let rest = text.trim_start_matches([' ', '\t']).strip_prefix(KEY)?;
        let rest = rest.trim_start_matches([' ', '\t']).strip_prefix('=')?;
        Some(List::parse_value(text, rest))
    }

    fn parse_value(text: &str, rest: &str) -> Result<List, String> {
        let rest = rest.trim_start_matches([' ', '\t']);
        let mut rest = rest.strip_prefix('[').ok_or("it is no list")?;
        let mut paths = Vec::new();
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == ',');
            match rest.chars().next() {
                Some(']') => break,
                Some(quote @ ('"' | '\'')) => {
                    let (path, after) = rest[1..].split_once(quote).ok_or("a string has no end")?;
                    paths.push(path.to_owned());
                    rest = after;
                }
                Some(other) => return Err(format!("'{other}' in the list")),
                None => return Err("the list has no end".to_owned()),
            }
        }
        let rest = &rest[1..];
        let line = rest.split_inclusive('\n').next().unwrap_or_default();
        match line.trim().chars().next() {
            None | Some('#') => Ok(List {
                paths,
                lines: 0..text.len() - rest.len() + line.len(),
            }),
            Some(_) => Err("there is something behind the list".to_owned()),
        }
    }
}

/// What holds where nothing is set: what the file says in its comments, which fits the libvirt that is installed.
fn default(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let commented = lines.iter().enumerate().find_map(|(index, line)| {
        line.strip_prefix('#')?.strip_prefix(KEY)?;
        let bare: Vec<&str> = lines[index..]
            .iter()
            .map_while(|line| line.strip_prefix('#'))
            .collect();
        List::parse(&bare.join("\n"))?.ok()
    });
    match commented {
        Some(list) if !list.paths.is_empty() => list.paths,
        _ => DEFAULT.map(str::to_owned).to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    /// As Debian ships it, in short.
    const SHIPPED: &str = "\
# Master configuration file for the QEMU driver.
#user = \"libvirt-qemu\"

#cgroup_device_acl = [
#    \"/dev/null\", \"/dev/full\", \"/dev/zero\",
#    \"/dev/kvm\"
#]
#
# RDMA migration requires the following extra files to be added to the list:
#   \"/dev/infiniband/rdma_cm\",
";

    fn links(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| format!("{LINKS}{name}")).collect()
    }

    fn paths(text: &str) -> Vec<String> {
        List::active(text).unwrap().unwrap().paths
    }

    #[test]
    fn the_default_is_kept() {
        let text = with(SHIPPED, &links(&["vm1", "vm2"])).unwrap();
        assert_eq!(
            text,
            format!(
                "{SHIPPED}{BEGIN}\ncgroup_device_acl = [\n    \"/dev/null\",\n    \"/dev/full\",\n    \"/dev/zero\",\n    \
                 \"/dev/kvm\",\n    \"/dev/daxdmem/vm1\",\n    \"/dev/daxdmem/vm2\"\n]\n{END}\n"
            )
        );
        let fewer = with(&text, &links(&["vm2"])).unwrap();
        assert_eq!(paths(&fewer).last().unwrap(), "/dev/daxdmem/vm2");
        assert_eq!(paths(&fewer).len(), 5);
        assert_eq!(without(&fewer).unwrap(), SHIPPED);
        assert_eq!(with(&text, &[]).unwrap(), SHIPPED);
        assert_eq!(paths(&with("", &links(&["a"])).unwrap())[..8], DEFAULT);
    }

    #[test]
    fn the_operators_list_is_kept() {
        let text = "a = 1\n cgroup_device_acl = [ '/dev/null', # no\n]\n";
        assert!(with(text, &links(&["vm1"]))
            .unwrap_err()
            .starts_with("line 2: "));
        let text = "a = 1\n cgroup_device_acl = [ '/dev/null',\n\"/dev/x\", ] # mine\nb = 2\n";
        let set = with(text, &links(&["vm1"])).unwrap();
        assert_eq!(paths(&set), ["/dev/null", "/dev/x", "/dev/daxdmem/vm1"]);
        assert!(set.starts_with("a = 1\n") && set.ends_with("\nb = 2\n"));
        // An addition between daxdmem's lines stays, too, as long as they are there.
        let more = set.replace("\"/dev/x\",\n", "\"/dev/x\", \"/dev/y\",\n");
        assert_ne!(more, set);
        let more = with(&more, &links(&["vm2"])).unwrap();
        assert_eq!(
            paths(&more),
            ["/dev/null", "/dev/x", "/dev/y", "/dev/daxdmem/vm2"]
        );
        assert_eq!(without(&more).unwrap(), text);
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        for (text, why) in [
            (
                "cgroup_device_acl = 1\n",
                "line 1: cgroup_device_acl is not understood: it is no list",
            ),
            (
                "\ncgroup_device_acl = [\"/dev\n",
                "line 2: cgroup_device_acl is not understood: a string has no end",
            ),
            (
                "cgroup_device_acl = [\n",
                "line 1: cgroup_device_acl is not understood: the list has no end",
            ),
            (
                "cgroup_device_acl = [] x\n",
                "line 1: cgroup_device_acl is not understood: there is something behind the list",
            ),
            (
                "cgroup_device_acl = []\ncgroup_device_acl = []\n",
                "cgroup_device_acl is set twice",
            ),
        ] {
            assert_eq!(with(text, &links(&["vm1"])).unwrap_err(), why);
        }
        let half = format!("{BEGIN}\n");
        assert!(without(&half).unwrap_err().contains("has no"));
        let twice = format!("{BEGIN}\n{END}\n{BEGIN}\n{END}\n");
        assert!(without(&twice).unwrap_err().contains("out of place"));
    }

    #[test]
    fn files_are_changed_and_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let vm1 = [PathBuf::from("/dev/daxdmem/vm1")];
        let error = edits(root, Some(&vm1)).unwrap_err().to_string();
        assert!(
            error.contains("is libvirt-daemon-system installed?"),
            "{error}"
        );
        assert_eq!(edits(root, None).unwrap().0, []);

        for file in [QEMU_CONF, PROFILE] {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
        }
        fs::write(root.join(QEMU_CONF), SHIPPED).unwrap();
        // Without AppArmor there is nothing to do for it.
        assert_eq!(edits(root, Some(&vm1)).unwrap().0.len(), 1);
        fs::write(
            root.join(PROFILE),
            "  include if exists <local/abstractions/libvirt-qemu>\n",
        )
        .unwrap();
        let (changes, notes) = edits(root, Some(&vm1)).unwrap();
        assert_eq!((changes.len(), notes.len()), (1, 1));
        fs::write(
            root.join(PROFILE),
            "  include if exists <abstractions/libvirt-qemu.d>\n",
        )
        .unwrap();
        let (changes, notes) = edits(root, Some(&vm1)).unwrap();
        assert_eq!((changes.len(), notes.len()), (2, 0));
        for change in &changes {
            change.apply().unwrap();
        }
        assert_eq!(fs::read_to_string(root.join(DROP_IN)).unwrap(), RULES);
        assert_eq!(edits(root, Some(&vm1)).unwrap().0, []);
        for change in edits(root, None).unwrap().0 {
            change.apply().unwrap();
        }
        assert_eq!(fs::read_to_string(root.join(QEMU_CONF)).unwrap(), SHIPPED);
        assert!(!root.join(DROP_IN).exists());
    }

    fn list() -> impl Strategy<Value = String> {
        let path = "/dev/[a-z]{1,5}".prop_map(|path| format!("\"{path}\""));
        let separator = prop_oneof![Just(", "), Just(",\n"), Just(" ,\n\t")];
        let item = (path, separator).prop_map(|(path, separator)| path + separator);
        proptest::collection::vec(item, 0..4)
            .prop_map(|items| format!("{KEY} = [{}]\n", items.concat()))
    }

    proptest! {
        #[test]
        fn removing_restores_every_byte(
            head in "(#?[a-z_]{1,9} = [0-9]\n|\n|# [a-z ]{0,9}\r\n){0,5}",
            list in proptest::option::of(list()),
            tail in "(#?[a-z_]{1,9} = [0-9]\n|\n){0,5}",
            cut in any::<bool>(),
            first in proptest::collection::vec("[a-z]{1,4}", 1..3),
            second in proptest::collection::vec("[a-z]{1,4}", 1..3),
        ) {
            let mut text = format!("{head}{}{tail}", list.unwrap_or_default());
            if cut {
                text.pop();
            }
            let name = |names: &[String]| names.iter().map(|name| format!("{LINKS}{name}")).collect::<Vec<_>>();
            let once = with(&text, &name(&first)).unwrap();
            prop_assert!(paths(&once).ends_with(&name(&first)));
            prop_assert_eq!(&with(&once, &name(&first)).unwrap(), &once);
            let twice = with(&once, &name(&second)).unwrap();
            prop_assert!(paths(&twice).ends_with(&name(&second)));
            prop_assert_eq!(&without(&once).unwrap(), &text);
            prop_assert_eq!(&without(&twice).unwrap(), &text);
        }
    }
}
