// SPDX-License-Identifier: GPL-2.0

//! What an operator chooses for a device beyond its memory: when it is scrubbed, and who may open it.

use serde::{Deserialize, Serialize};

use crate::access::Access;
use crate::cli::SettingsArgs;
use crate::error::Result;
use crate::scrub::Policy;

/// The choices, as they are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// When it is scrubbed.
    pub scrub: Policy,
    /// Who may open it; `None` where daxdmem was never told and leaves the node alone.
    pub access: Option<Access>,
}

impl Settings {
    /// A new guest's: root's alone.
    pub const NEW: Settings = Settings {
        scrub: Policy::Release,
        access: Some(Access::ROOT),
    };

    /// With what the command line says instead. `now` is the node as it is: what is not said of it stays.
    pub fn with(self, args: &SettingsArgs, now: Option<Access>) -> Result<Settings> {
        let mut access = self.access;
        if args.owner.is_some() || args.mode.is_some() {
            let mut changed = access.or(now).unwrap_or(Access::ROOT);
            if let Some(owner) = &args.owner {
                let (uid, gid) = owner.resolve()?;
                changed.uid = uid.unwrap_or(changed.uid);
                changed.gid = gid.unwrap_or(changed.gid);
            }
            changed.mode = args.mode.unwrap_or(changed.mode);
            access = Some(changed);
        }
        Ok(Settings {
            scrub: args.scrub.unwrap_or(self.scrub),
            access,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(owner: Option<&str>, mode: Option<&str>, scrub: Option<Policy>) -> SettingsArgs {
        SettingsArgs {
            scrub,
            owner: owner.map(|text| text.parse().unwrap()),
            mode: mode.map(|text| text.parse().unwrap()),
        }
    }

    #[test]
    fn what_is_not_said_stays() {
        let now = Access {
            uid: 7,
            gid: 8,
            mode: "0660".parse().unwrap(),
        };
        let nothing = args(None, None, None);
        assert_eq!(
            Settings::NEW.with(&nothing, Some(now)).unwrap(),
            Settings::NEW
        );
        let untold = Settings::default();
        assert_eq!(untold.with(&nothing, Some(now)).unwrap(), untold);

        // What is recorded goes before what is found, and what is said before both.
        let owner = args(Some("9"), None, Some(Policy::Never));
        let set = Settings::NEW.with(&owner, Some(now)).unwrap();
        assert_eq!(set.scrub, Policy::Never);
        assert_eq!(
            set.access,
            Some(Access {
                uid: 9,
                ..Access::ROOT
            })
        );
        let set = untold.with(&owner, Some(now)).unwrap();
        assert_eq!(set.access, Some(Access { uid: 9, ..now }));
        let group = args(Some(":5"), Some("0640"), None);
        let mode = "0640".parse().unwrap();
        let set = set.with(&group, None).unwrap();
        assert_eq!(
            set.access,
            Some(Access {
                uid: 9,
                gid: 5,
                mode
            })
        );
        assert_eq!(set.scrub, Policy::Never);
    }

    #[test]
    fn nobody_known_is_nobody_set() {
        let owner = args(Some("no-such-user"), Some("0660"), None);
        assert!(Settings::NEW.with(&owner, None).is_err());
    }
}
