// SPDX-License-Identifier: GPL-2.0

//! The file: TOML, with a table for each guest. Documentation/layout.md describes it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::marker::PhantomData;
use std::path::Path;
use std::str::FromStr;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::{LayoutError, Wanted};
use crate::access::{Mode, Owner};
use crate::align::Align;
use crate::cli::SettingsArgs;
use crate::error::{Error, Result};
use crate::name::GuestName;
use crate::nodes::{spread, NodesError, Part, Share};
use crate::scrub::Policy;
use crate::settings::Settings;
use crate::size::Size;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Layout {
    #[serde(default)]
    guest: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Spanned<Text<GuestName>>,
    size: Option<Text<Size>>,
    align: Option<Text<Align>>,
    #[serde(default)]
    node: Nodes,
    region: Option<u32>,
    owner: Option<Text<Owner>>,
    mode: Option<Text<Mode>>,
    scrub: Option<Policy>,
}

/// What is written as a text, in the form that the command line takes.
struct Text<T>(T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit<T>(PhantomData<T>);
        impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Visit<T> {
            type Value = Text<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text in quotes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<T>, E> {
                text.parse().map(Text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visit(PhantomData))
    }
}

/// `0`, `[0, 1]` or `{ 0 = "4G", 1 = "8G" }`.
#[derive(Default)]
struct Nodes(Vec<Share>);

impl<'de> Deserialize<'de> for Nodes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Nodes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "the number of a NUMA node, a list of them, or a table like { 0 = \"4G\", 1 = \"8G\" }",
                )
            }

            fn visit_i64<E: de::Error>(self, node: i64) -> Result<Nodes, E> {
                let node = u32::try_from(node)
                    .map_err(|_| E::custom(format!("{node} is no NUMA node")))?;
                Ok(Nodes(vec![Share { node, size: None }]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Nodes, A::Error> {
                let mut shares = Vec::new();
                while let Some(node) = list.next_element()? {
                    shares.push(Share { node, size: None });
                }
                match shares.is_empty() {
                    true => Err(de::Error::custom("the list of nodes is empty")),
                    false => Ok(Nodes(shares)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Nodes, A::Error> {
                let mut shares = Vec::new();
                while let Some((node, Text(size))) = map.next_entry::<String, Text<Size>>()? {
                    let node = node
                        .parse()
                        .map_err(|_| de::Error::custom(format!("'{node}' is no NUMA node")))?;
                    shares.push(Share {
                        node,
                        size: Some(size),
                    });
                }
                match shares.is_empty() {
                    true => Err(de::Error::custom("the table of nodes is empty")),
                    false => Ok(Nodes(shares)),
                }
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

/// Reads a layout.
pub fn read(path: &Path) -> Result<Vec<Wanted>> {
    match fs::read_to_string(path) {
        Ok(text) => parse(path, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(LayoutError::Missing {
            path: path.to_owned(),
        }
        .into()),
        Err(error) => Err(Error::kernel(format!("cannot read {}", path.display()))(
            error,
        )),
    }
}

/// The guests that a layout's text declares, in its order.
pub fn parse(path: &Path, text: &str) -> Result<Vec<Wanted>> {
    let layout: Layout = toml::from_str(text).map_err(|error| LayoutError::Syntax {
        path: path.to_owned(),
        why: error.to_string().trim_end().to_owned(),
    })?;
    let line = |entry: &Entry| {
        let before = text.get(..entry.name.span().start).unwrap_or_default();
        before.matches('\n').count() + 1
    };
    let mut lines: BTreeMap<GuestName, usize> = BTreeMap::new();
    let mut guests = Vec::new();
    for entry in layout.guest {
        let line = line(&entry);
        let Text(name) = entry.name.get_ref();
        if let Some(first) = lines.insert(name.clone(), line) {
            let twice = LayoutError::Twice {
                path: path.to_owned(),
                line,
                first,
                name: name.clone(),
            };
            return Err(twice.into());
        }
        let name = name.clone();
        let wanted = wanted(line, entry).map_err(|why| LayoutError::Guest {
            path: path.to_owned(),
            line,
            name,
            why: Box::new(why),
        })?;
        guests.push(wanted);
    }
    Ok(guests)
}

fn wanted(line: usize, entry: Entry) -> Result<Wanted> {
    let Text(name) = entry.name.into_inner();
    let size = entry.size.map(|Text(size)| size);
    let align = entry.align.map(|Text(align)| align);
    let parts = spread(&name, size, align, &entry.node.0)?;
    if entry.region.is_some() && parts.len() > 1 {
        return Err(NodesError::Region.into());
    }
    for part in &parts {
        part.align.check(part.size)?;
    }
    let chosen = SettingsArgs {
        scrub: entry.scrub,
        owner: entry.owner.map(|Text(owner)| owner),
        mode: entry.mode.map(|Text(mode)| mode),
    };
    Ok(Wanted {
        name,
        line,
        parts,
        region: entry.region,
        settings: Settings::NEW.with(&chosen, None)?,
    })
}

const HEAD: &str = "\
# The guests of this host, and the page-less devices that `daxdmem apply` makes for them.
# Written by `daxdmem save`; Documentation/layout.md describes the form.
";

/// The layout of these guests as text.
pub fn text(guests: &[Wanted]) -> String {
    let mut text = HEAD.to_owned();
    for guest in guests {
        text.push_str("\n[[guest]]\n");
        for (key, value) in members(guest) {
            text.push_str(&format!("{key} = {value}\n"));
        }
    }
    text
}

/// The members of a guest's table. What is as by default is left out, but for who may open the devices.
fn members(guest: &Wanted) -> Vec<(&'static str, String)> {
    let quoted = |text: &dyn fmt::Display| toml::Value::String(text.to_string()).to_string();
    let parts = guest.parts.as_slice();
    let size = Size(parts.iter().map(|part| part.size.0).sum());
    let nodes: Vec<(u32, Size)> = parts
        .iter()
        .filter_map(|part| Some((part.node?, part.size)))
        .collect();
    let even = parts
        .iter()
        .all(|part| Some(part.size) == parts.first().map(|first| first.size));
    let mut members = vec![("name", quoted(&guest.name))];
    if nodes.len() < 2 || even {
        members.push(("size", quoted(&size)));
    }
    let usual = |part: &Part| part.align == Align::default_for(part.size);
    if let Some(align) = parts
        .iter()
        .find(|part| !usual(part))
        .map(|part| part.align)
    {
        members.push(("align", quoted(&align)));
    }
    match nodes.as_slice() {
        [] => {}
        [(node, _)] => members.push(("node", node.to_string())),
        _ if even => {
            let list: Vec<String> = nodes.iter().map(|(node, _)| node.to_string()).collect();
            members.push(("node", format!("[{}]", list.join(", "))));
        }
        _ => {
            let entry = |(node, size): &(u32, Size)| format!("{node} = {}", quoted(size));
            let list: Vec<String> = nodes.iter().map(entry).collect();
            members.push(("node", format!("{{ {} }}", list.join(", "))));
        }
    }
    if let Some(region) = guest.region {
        members.push(("region", region.to_string()));
    }
    if let Some(access) = guest.settings.access {
        let owner = format!("{}:{}", access.user(), access.group());
        members.push(("owner", quoted(&owner)));
        members.push(("mode", quoted(&access.mode)));
    }
    if guest.settings.scrub != Policy::default() {
        members.push(("scrub", quoted(&guest.settings.scrub)));
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Access;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Result<Vec<Wanted>, String> {
        parse(Path::new("layout.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_layout() {
        let guests = parsed(
            r#"
            [[guest]]
            name = "vm1"
            size = "16G"

            [[guest]]
            name = "vm2"
            size = "4610M"
            align = "4K"
            node = 1
            region = 3
            owner = "7:8"
            mode = "0660"
            scrub = "hand-out"

            [[guest]]
            name = "db1"
            size = "8G"
            node = [0, 1]

            [[guest]]
            name = "db2"
            node = { 0 = "4G", 3 = "1.5G" }
            "#,
        )
        .unwrap();
        let shown = |guest: &Wanted| {
            let part = |part: &Part| {
                let node = part.node.map_or("-".to_owned(), |node| node.to_string());
                format!("{} {} {} {node}", part.name, part.size, part.align)
            };
            guest.parts.iter().map(part).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(
            guests.iter().map(shown).collect::<Vec<_>>(),
            [
                "vm1 16G 1G -",
                "vm2 4610M 4K 1",
                "db1:0 4G 1G 0, db1:1 4G 1G 1",
                "db2:0 4G 1G 0, db2:3 1.5G 2M 3",
            ]
        );
        assert_eq!(guests[0].settings, Settings::NEW);
        let access = Access {
            uid: 7,
            gid: 8,
            mode: "0660".parse().unwrap(),
        };
        let settings = Settings {
            scrub: Policy::HandOut,
            access: Some(access),
        };
        assert_eq!((guests[1].settings, guests[1].region), (settings, Some(3)));
        assert_eq!(
            guests.iter().map(|guest| guest.line).collect::<Vec<_>>(),
            [3, 7, 17, 22]
        );
        assert_eq!(parsed("").unwrap(), []);
    }

    #[test]
    fn what_is_no_layout() {
        let guest = |rest: &str| format!("[[guest]]\nname = \"vm1\"\n{rest}");
        for (text, why) in [
            ("guests = 1".to_owned(), "line 1, column 1"),
            (
                "[[guest]]\nsize = \"4G\"".to_owned(),
                "missing field `name`",
            ),
            (guest("size = 4"), "line 3, column 8"),
            (guest("size = 4"), "expected a text in quotes"),
            (guest("size = \"4Q\""), "'4Q' is no size"),
            (guest("size = \"4Q\""), "line 3, column 8"),
            (
                guest("sise = \"4G\""),
                "unknown field `sise`, expected one of `name`, `size`",
            ),
            (
                guest("size = \"4G\"\nnode = \"0\""),
                "expected the number of a NUMA node, a list",
            ),
            (guest("size = \"4G\"\nnode = -1"), "-1 is no NUMA node"),
            (
                guest("size = \"4G\"\nnode = []"),
                "the list of nodes is empty",
            ),
            (guest("node = { x = \"4G\" }"), "'x' is no NUMA node"),
            (
                guest("size = \"4G\"\nscrub = \"daily\""),
                "unknown variant `daily`",
            ),
            (guest("size = \"4G\"\nmode = \"0777\""), "'0777' is no mode"),
            (
                guest("size = \"4G\"\nalign = \"8K\""),
                "'8K' is no alignment",
            ),
            (guest(""), "layout.toml, line 2: vm1: the size is missing"),
            (
                guest("size = \"3M\""),
                "layout.toml, line 2: vm1: size 3M is no multiple of 2M",
            ),
            (
                guest("size = \"4G\"\nowner = \"no-such-user\""),
                "vm1: there is no user called no-such-user",
            ),
            (
                guest("size = \"4G\"\nnode = [0, 1]\nregion = 0"),
                "vm1: a region lies on one node",
            ),
            (
                guest("size = \"4G\"\n[[guest]]\nname = \"vm1\"\nsize = \"2G\""),
                "line 5: vm1 is declared in line 2 already",
            ),
            (guest("size = \"4G").to_owned(), "line 3"),
            (
                "[[guest]]\nname = \"VM1\"\nsize = \"1G\"".to_owned(),
                "'VM1' is no name for a guest",
            ),
        ] {
            let error = parsed(&text).unwrap_err();
            assert!(error.contains(why), "{text}\n{error}");
            assert!(error.starts_with("layout.toml"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            name in "[a-z0-9][a-z0-9._-]{0,9}",
            sizes in proptest::collection::vec(1u64..4096, 1..4),
            even in any::<bool>(),
            align in proptest::option::of("4K|2M"),
            node in any::<bool>(),
            ids in (0u32..9, 0u32..9),
            scrub in proptest::option::of(Just(Policy::Never)),
        ) {
            let Ok(name) = name.parse::<GuestName>() else {
                return Ok(());
            };
            let count = sizes.len();
            let shares: Vec<Share> = sizes.iter().zip(0..).map(|(size, node)| Share {
                node,
                size: (count > 1 || node == 0).then(|| Size(sizes[if even { 0 } else { node as usize }].max(*size * u64::from(!even)) << 21)),
            }).collect();
            let (size, shares) = match (count, node) {
                (1, false) => (shares[0].size, vec![]),
                _ => (None, shares),
            };
            let parts = spread(&name, size, align.map(|text| text.parse().unwrap()), &shares).unwrap();
            let access = Access { uid: 900_000 + ids.0, gid: 900_000 + ids.1, mode: "0660".parse().unwrap() };
            let guest = Wanted {
                name,
                line: 5,
                parts,
                region: None,
                settings: Settings { scrub: scrub.unwrap_or_default(), access: Some(access) },
            };
            let text = text(std::slice::from_ref(&guest));
            prop_assert_eq!(parsed(&text).unwrap(), vec![guest], "{}", text);
        }
    }
}
