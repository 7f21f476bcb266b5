// SPDX-License-Identifier: GPL-2.0
//! Programs of vhost-user besides those for disks: they map the guest's memory by the descriptor that QEMU passes them.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};

use crate::case::{Case, Outcome};
use crate::command::Command;
use crate::daemon::Daemon;
use crate::guest_io::{self, SHARED_FILE};
use crate::pattern::Pattern;
use crate::region::GIB;
use crate::storage::{verify, RamDisk};
use crate::{module, mount, vmm};

use super::attach::{
    boot, finish, maps, refused_action, refused_file, transfer, try_file, words, ATTACHED, LENGTH,
};
use super::page_less;

pub const CASES: &[Case] = &[
    Case {
        name: "virtiofs",
        shows: "virtiofsd shares a directory with a guest, contents right; with --allow-direct-io what the guest opens by O_DIRECT fails, and no more",
        machine: "attach",
        limit: 240,
        hidden: true,
        run: virtiofs,
        ..Case::DEFAULT
    },
    Case {
        name: "vhost-user-net",
        shows: "1 GiB goes through passt's vhost-user with its contents right, half of it each way",
        machine: "attach",
        limit: 600,
        hidden: true,
        run: vhost_user_net,
        ..Case::DEFAULT
    },
];

fn virtiofs() -> Outcome {
    const SHARED: &str = "/run/shared";
    let device = page_less(GIB, &[(0, GIB)])?;
    RamDisk::load()?;
    module::load("ext4")?;
    let disk = RamDisk(0).path();
    Command::line(&format!("mke2fs -q -t ext4 {disk}"))
        .limit(60)
        .run()?;
    mount::mount(&disk, SHARED, "ext4", 0, "")?;
    let sockets = ["/run/buffered", "/run/direct"];
    let options = [(sockets[0], ""), (sockets[1], "--allow-direct-io")];
    let daemons = options.into_iter().map(|(socket, more)| {
        Daemon::start(
            "/usr/libexec/virtiofsd",
            &format!("--socket-path={socket} --shared-dir={SHARED} {more}"),
            &[socket],
        )
    });
    let daemons = daemons.collect::<Outcome<Vec<Daemon>>>()?;
    let mut arguments = vmm::device(&device, "1G")?;
    for (tag, socket) in ["buffered", "direct"].into_iter().zip(sockets) {
        arguments.extend(words(&format!(
            "-chardev socket,id={tag},path={socket} -device vhost-user-fs-pci,chardev={tag},tag={tag}"
        )));
    }
    let mut guest = boot("share", GIB, &arguments, ATTACHED)?;
    try_file(&mut guest, "share buffered", "virtiofs", 40)?;
    // It leaves O_DIRECT out where a file is opened, not where it is made.
    let what = "virtiofs, a file made with O_DIRECT";
    refused_action(&mut guest, "share buffered create", what, libc::EFAULT)?;
    let what = "virtiofs with --allow-direct-io";
    refused_file(&mut guest, "share direct", what, libc::EFAULT)?;
    for daemon in &daemons {
        maps(&device, daemon.pid())?;
    }
    finish(guest)?;
    drop(daemons);
    // The page cache of the host still has some of it.
    let file = format!("{SHARED}/{SHARED_FILE}");
    File::open(&file)?.sync_all()?;
    verify(&file, Pattern::new(40), LENGTH)?;
    Ok(mount::unmount(SHARED)?)
}

fn vhost_user_net() -> Outcome {
    const SOCKET: &str = "/run/passt";
    let device = page_less(GIB, &[(0, GIB)])?;
    let (gateway, port) = guest_io::HOST;
    module::load("tun")?;
    // passt has the guest take the host's own address, and what is sent to its gateway for its own.
    for line in [
        "ip link set lo up",
        "ip tuntap add dmem0 mode tap",
        &format!("ip addr add {}/24 dev dmem0", guest_io::ADDRESS),
        "ip link set dmem0 up",
        &format!("ip route add default via {gateway} dev dmem0"),
    ] {
        Command::line(line).run()?;
    }
    let daemon = Daemon::start(
        "passt",
        &format!("--foreground --ipv4-only --vhost-user --interface dmem0 --socket {SOCKET}"),
        &[SOCKET],
    )?;
    let mut arguments = vmm::device(&device, "1G")?;
    arguments.extend(words(&format!(
        "-chardev socket,id=passt,path={SOCKET} -netdev vhost-user,id=net,chardev=passt \
         -device virtio-net-pci,netdev=net,romfile="
    )));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let mut guest = boot("net", GIB, &arguments, ATTACHED)?;
    transfer(&mut guest, listener)?;
    maps(&device, daemon.pid())?;
    finish(guest)?;
    Command::line("ip link del dmem0").run().map(drop)
}
