// SPDX-License-Identifier: GPL-2.0

//! Names: of guests, which operators choose, of their devices, which follow from those, and of devices, `daxX.Y`, which
//! the kernel chooses.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest guest name, in bytes.
const LONGEST: usize = 63;

/// Reads a name where it stands: the state has many.
struct Text<T>(PhantomData<T>);

impl<T: FromStr<Err = String>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// Name of a guest: `[a-z0-9][a-z0-9._-]{0,62}`, and not of the form `daxX.Y`.
///
/// It becomes a file name in /dev/daxdmem and stands in commands where a device may stand too: hence the rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestName(String);

impl FromStr for GuestName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let good = text.len() <= LONGEST
            && text.starts_with(plain)
            && text
                .chars()
                .all(|c| plain(c) || matches!(c, '.' | '_' | '-'));
        if !good {
            return Err(format!(
                "'{text}' is no name for a guest: use up to {LONGEST} of a-z, 0-9, '.', '_' and '-', a letter or digit first"
            ));
        }
        if DeviceName::of(text).is_some() {
            return Err(format!("'{text}' is the name of a device, which the kernel gives: choose another name for the guest"));
        }
        Ok(GuestName(text.to_owned()))
    }
}

impl TryFrom<String> for GuestName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<GuestName> for String {
    fn from(name: GuestName) -> String {
        name.0
    }
}

impl fmt::Display for GuestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Name of a guest's device: `NAME`, or `NAME:NODE` where the guest has one on each of several NUMA nodes.
///
/// Where a command takes all of a guest's devices, `NAME` stands for them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartName {
    /// Whose it is.
    pub guest: GuestName,
    /// The node it is on, if the guest has others.
    pub node: Option<u32>,
}

impl PartName {
    /// Whether this names that device, alone or among others.
    pub fn covers(&self, part: &PartName) -> bool {
        self.guest == part.guest && (self.node.is_none() || self.node == part.node)
    }
}

impl From<GuestName> for PartName {
    fn from(guest: GuestName) -> PartName {
        PartName { guest, node: None }
    }
}

impl FromStr for PartName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((guest, node)) = text.split_once(':') else {
            return text.parse().map(|guest: GuestName| guest.into());
        };
        let name = PartName {
            guest: guest.parse()?,
            node: node.parse().ok(),
        };
        // One spelling for each: no sign, no leading zeros.
        match name.to_string() == text {
            true => Ok(name),
            false => Err(format!(
                "'{text}' is no device of a guest: they are called NAME, or NAME:NODE with the number of a NUMA node"
            )),
        }
    }
}

impl<'de> Deserialize<'de> for PartName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text(PhantomData))
    }
}

impl Serialize for PartName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.node {
            None => self.guest.0.serialize(serializer),
            Some(_) => serializer.collect_str(self),
        }
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node {
            Some(node) => f.pad(&format!("{}:{node}", self.guest)),
            None => self.guest.fmt(f),
        }
    }
}

/// Name of a device, `daxX.Y`: X is the region's id, Y the device's in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName {
    region: u32,
    id: u32,
}

impl DeviceName {
    /// The first device of a region: there always is one.
    pub fn first(region: u32) -> DeviceName {
        DeviceName { region, id: 0 }
    }

    /// The device of that name, if it is one.
    pub fn of(text: &str) -> Option<DeviceName> {
        // Only the spelling that the kernel uses: no sign, no leading zeros.
        let number = |text: &str| match text.as_bytes() {
            [b'0'] => Some(0),
            [b'1'..=b'9', ..] => text.parse().ok(),
            _ => None,
        };
        let (region, id) = text.strip_prefix("dax")?.split_once('.')?;
        Some(DeviceName {
            region: number(region)?,
            id: number(id)?,
        })
    }

    /// Number of its region.
    pub fn region(self) -> u32 {
        self.region
    }

    /// Whether this is device 0 of its region, which the kernel never deletes.
    pub fn is_first(self) -> bool {
        self.id == 0
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        DeviceName::of(text).ok_or_else(|| format!("'{text}' is no device: they are called daxX.Y"))
    }
}

impl<'de> Deserialize<'de> for DeviceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text(PhantomData))
    }
}

impl Serialize for DeviceName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("dax{}.{}", self.region, self.id))
    }
}

/// What commands take for devices: one's own name, or the guest's for all that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// By the guest's name, and the node where it is one of several.
    Guest(PartName),
    /// By its own.
    Device(DeviceName),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(device) => Ok(Target::Device(device)),
            Err(_) => text.parse().map(Target::Guest),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Guest(name) => name.fmt(f),
            Target::Device(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn good_names() {
        let longest = "a".repeat(63);
        for text in [
            "vm1",
            "0",
            "web.prod_2-b",
            "dax",
            "dax0",
            "dax0.1.2",
            "dax00.1",
            &longest,
        ] {
            assert_eq!(
                text.parse::<GuestName>().map(|name| name.to_string()),
                Ok(text.to_owned())
            );
        }
    }

    #[test]
    fn bad_names() {
        let too_long = "a".repeat(64);
        for text in [
            "", ".", "..", "-x", "_x", "VM1", "a b", "a/b", "a\n", "é", "a\0", &too_long,
        ] {
            let error = text.parse::<GuestName>().unwrap_err();
            assert!(
                error.contains("is no name for a guest: use up to 63 of"),
                "{error}"
            );
        }
        let error = "dax0.1".parse::<GuestName>().unwrap_err();
        assert_eq!(error, "'dax0.1' is the name of a device, which the kernel gives: choose another name for the guest");
    }

    #[test]
    fn device_names() {
        let first: DeviceName = "dax1.0".parse().unwrap();
        let later: DeviceName = "dax1.12".parse().unwrap();
        assert!(first.is_first() && !later.is_first());
        for text in [
            "dax",
            "dax1",
            "dax1.",
            "dax.1",
            "dax01.1",
            "dax+1.1",
            "dax1.1.1",
            "xdax1.1",
            "dax1.4294967296",
        ] {
            assert!(text.parse::<DeviceName>().is_err(), "{text}");
        }
        let mut names: Vec<DeviceName> = ["dax10.0", "dax2.10", "dax2.9"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        names.sort();
        assert_eq!(
            names.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["dax2.9", "dax2.10", "dax10.0"]
        );
    }

    #[test]
    fn devices_of_guests() {
        let name = |text: &str| text.parse::<PartName>();
        let (all, one) = (name("db1").unwrap(), name("db1:1").unwrap());
        assert_eq!((all.node, one.node), (None, Some(1)));
        assert!(all.covers(&all) && all.covers(&one) && one.covers(&one));
        assert!(!one.covers(&all) && !one.covers(&name("db1:0").unwrap()));
        assert!(!all.covers(&name("db2").unwrap()));
        for text in [
            "db1:",
            "db1:01",
            "db1:+1",
            "db1:-1",
            "db1:x",
            "db1:0:1",
            "db1:4294967296",
        ] {
            let error = name(text).unwrap_err();
            assert!(error.contains("is no device of a guest"), "{error}");
        }
        for text in [":0", "dax0.1:0", "DB1:0"] {
            assert!(name(text).is_err(), "{text}");
        }
        let mut names = ["db1:10", "db1:2", "db1"].map(|text| name(text).unwrap());
        names.sort();
        assert_eq!(
            names.map(|name| name.to_string()),
            ["db1", "db1:2", "db1:10"]
        );
    }

    proptest! {
        #[test]
        fn a_guest_name_is_a_plain_file_name(text in ".{0,70}|[a-z]{0,9}:[0-9:]{0,3}") {
            if let Ok(name) = text.parse::<PartName>() {
                let path = std::path::Path::new("/dev/daxdmem").join(name.to_string());
                prop_assert_eq!(path.parent(), Some(std::path::Path::new("/dev/daxdmem")));
                prop_assert_eq!(path.file_name().and_then(|name| name.to_str()), Some(text.as_str()));
            }
        }

        #[test]
        fn device_names_survive_being_shown(region in any::<u32>(), id in any::<u32>()) {
            let name = DeviceName { region, id };
            prop_assert_eq!(name.to_string().parse(), Ok(name));
            prop_assert_eq!(name.to_string().parse(), Ok(Target::Device(name)));
        }
    }
}
