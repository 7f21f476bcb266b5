// SPDX-License-Identifier: GPL-2.0
//! Who may open a guest's device.

use crate::case::{Case, Outcome};
use crate::command::Command;
use crate::region::MIB;
use crate::{check, check_eq};

use super::tool_host::{access, check_guest, done, link, need, refused, refused_by, tool, Host};

pub const CASES: &[Case] = &[
    Case {
        name: "tool-owner",
        shows: "a device is root's alone unless it is given to a user, whose it then is until it goes; nobody else opens it",
        limit: 60,
        run: owner,
        ..Case::DEFAULT
    },
];

/// Whether a program of that user and group can open the guest's device.
fn opens(id: u32, group: u32) -> Outcome<bool> {
    let ran = Command::line(&format!(
        "setpriv --reuid {id} --regid {group} --clear-groups sh -c"
    ))
    .arg(format!("exec 3<>{}", link("vm1").display()))
    .try_run()?;
    let denied = ran.stderr.contains("Permission denied");
    check_eq!(
        ran.code != Some(0),
        denied,
        "open by {id}:{group} says {}",
        ran.stderr
    );
    Ok(!denied)
}

fn owner() -> Outcome {
    need()?;
    const USER: u32 = 54321;
    const GROUP: u32 = 12345;
    let before = Host::look()?.without_history();
    done("create vm1 --size 64M")?;
    let device = check_guest("vm1", 64 * MIB)?;
    let node = device.path();
    check_eq!(access(&node)?, "0:0 600", "a device that nobody was given");
    check!(!opens(USER, GROUP)?, "somebody opens root's device");
    check!(opens(0, 0)?, "root does not");
    done("destroy vm1")?;

    done(&format!(
        "create vm1 --size 64M --owner {USER}:{GROUP} --mode 0660"
    ))?;
    let kept = format!("{USER}:{GROUP} 660");
    check_eq!(access(&node)?, kept, "a device that was given away");
    check!(opens(USER, 1)?, "the owner does not open it");
    check!(opens(1, GROUP)?, "the group does not open it");
    check!(!opens(1, 1)?, "somebody else opens it");
    let json = done("list --json")?;
    for member in ["\"uid\": 54321", "\"gid\": 12345", "\"mode\": \"0660\""] {
        check!(json.contains(member), "list --json shows {json}");
    }
    let list = done("list")?;
    check!(list.contains("54321:12345 0660"), "list shows {list}");
    // It stays so, whatever is done to device and node.
    done("unbind vm1")?;
    done("bind vm1")?;
    check_eq!(access(&node)?, kept, "the node after unbind and bind");
    Command::line(&format!("chmod 666 {}", node.display())).run()?;
    let ran = tool("list")?;
    check!(
        ran.stderr
            .contains("54321:12345 0666: made 54321:12345 0660 again"),
        "list says {}",
        ran.stderr
    );
    check_eq!(access(&node)?, kept, "the node after a change by hand");

    // What is not named stays.
    done("set vm1 --owner root")?;
    check_eq!(
        access(&node)?,
        format!("0:{GROUP} 660"),
        "the node of another owner"
    );
    done("set vm1 --mode 600")?;
    check!(!opens(1, GROUP)?, "the group opens it still");
    done("unbind vm1")?;
    done("bind vm1 --owner nobody:root")?;
    check_eq!(access(&node)?, "65534:0 600", "the node of a named owner");
    check!(opens(65534, 1)?, "nobody does not open it");
    let ran = tool("set vm1 --mode 0606")?;
    check!(
        ran.code == Some(0) && ran.stderr.contains("every user of this host may open"),
        "set says {}",
        ran.stderr
    );
    check!(opens(1, 1)?, "a device for all is not for all");

    for words in [
        "set vm1 --owner no-such-user",
        "create vm2 --size 64M --owner no-such-user:root",
    ] {
        refused(
            words,
            &["there is no user called no-such-user", "getent passwd"],
        )?;
    }
    refused(
        "set vm1 --owner :no-such-group",
        &["there is no group called no-such-group"],
    )?;
    for words in [
        "set vm1 --mode 0777",
        "create vm2 --size 64M --mode rw",
        "set vm1 --owner :",
    ] {
        let command = Command::line(&format!("daxdmem {words}"));
        refused_by(&command, words, 2, &["' is no "])?;
    }
    refused_by(
        &Command::line("daxdmem set vm1"),
        "set vm1",
        2,
        &["--owner"],
    )?;
    let words = "setpriv --reuid 54321 --regid 1 --clear-groups daxdmem set vm1 --mode 0666";
    refused_by(&Command::line(words), "set", 1, &["takes root"])?;

    // Nothing of it is left to the next guest, which has the same node.
    done("destroy vm1")?;
    check_eq!(
        access(&node)?,
        "0:0 600",
        "the node of a device that is nobody's"
    );
    Host::look()?
        .without_history()
        .expect(&before, "in the end")
}
