// SPDX-License-Identifier: GPL-2.0
//! The dump of a host whose kernel panics: by kdump, a second kernel that was loaded beforehand.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;

use crate::case::{Case, Failure, Named, Outcome};
use crate::core_file::CoreFile;
use crate::figure::count;
use crate::guest::physical;
use crate::mapping::{Map, Mapping};
use crate::memory::human;
use crate::peer::{memfd, MFD_HUGETLB};
use crate::poison::PAGE;
use crate::region::{Region, GIB, MIB};
use crate::{check, check_eq, cmdline, disk, reset, say, sysfs};

use super::page_less;

pub const CASES: &[Case] = &[
    Case {
        name: "kdump-page-less",
        shows: "the dump of a host that panics has all of the host's own memory and nothing of what is reserved for guests",
        machine: "kdump",
        limit: 180,
        fresh: true,
        hidden: true,
        run: page_less_host,
        ..Case::DEFAULT
    },
    Case {
        name: "kdump-hugetlbfs",
        shows: "beside it, the dump of a host with as much memory in hugetlbfs has that, too",
        machine: "kdump-pages",
        limit: 180,
        fresh: true,
        hidden: true,
        run: hugetlbfs_host,
        ..Case::DEFAULT
    },
];

/// What the host's page and the guest's have in them.
const HOST_MARK: u64 = 0x6461_7864_6d65_6d01;
const GUEST_MARK: u64 = 0x6461_7864_6d65_6d02;

/// What the second kernel is told: where the two marks are.
const NOTE: &str = "dmem.marks";

fn page_less_host() -> Outcome {
    if reset::count() == 0 {
        let region = Region::first()?;
        let device = page_less(2 * MIB, &[(0, 64 * MIB)])?;
        let guest = Map::new(64 * MIB).file(&device.open()?)?;
        check_eq!(region.size, 3 * GIB, "size of the region");
        return panic(guest, device.physical(0)?);
    }
    let (dump, at) = dump()?;
    let region = (at, at + 3 * GIB);
    check!(
        !dump.has(region.0, region.1),
        "the dump has some of {region:x?}: {:x?}",
        dump.segments
    );
    check!(dump.word(at).is_err(), "the dump has the guest's word");
    Ok(())
}

fn hugetlbfs_host() -> Outcome {
    if reset::count() == 0 {
        const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
        sysfs::write(POOL, "1536")?;
        check_eq!(sysfs::read_number(POOL)?, 1536, "huge pages");
        let guest = Map::new(64 * MIB).file(&memfd(c"huge", MFD_HUGETLB, 64 * MIB)?)?;
        guest.write(0, GUEST_MARK);
        let at = physical(guest.address())?;
        return panic(guest, at);
    }
    let (dump, at) = dump()?;
    check_eq!(dump.word(at)?, GUEST_MARK, "the guest's word in the dump");
    Ok(())
}

/// Loads the kernel that dumps, and has this one panic, with a mark in the guest's memory and one in the host's.
fn panic(guest: Mapping, guest_at: u64) -> Outcome {
    guest.write(0, GUEST_MARK);
    let own = Map::new(PAGE).anonymous()?;
    own.write(0, HOST_MARK);
    let own_at = physical(own.address())?;
    let room = sysfs::read_number("/sys/kernel/kexec_crash_size")?;
    check!(room > 0, "crashkernel= has reserved nothing");
    // What the first kernel was told of memory is not for the second one: it is told what it may use.
    let line = sysfs::read("/proc/cmdline")?;
    let kept = line.split_ascii_whitespace().filter(|word| {
        !["memmap=", "crashkernel="]
            .iter()
            .any(|key| word.starts_with(key))
    });
    let kept = kept.collect::<Vec<_>>().join(" ");
    let line = format!("{kept} nr_cpus=1 reset_devices {NOTE}={own_at},{guest_at}");
    load(&line)?;
    check_eq!(
        sysfs::read_number("/sys/kernel/kexec_crash_loaded")?,
        1,
        "kexec_crash_loaded"
    );
    say!("marks: the host's at {own_at:#x}, the guest's at {guest_at:#x}");
    reset::crash()
}

/// Loads this VM's kernel and initramfs for the case of a panic.
fn load(line: &str) -> Outcome {
    // include/uapi/linux/kexec.h
    const ON_CRASH: libc::c_long = 2;
    let kernel = File::open(disk::kernel()?)?;
    let initramfs = File::open(disk::initramfs()?)?;
    let line = CString::new(line)?;
    let line = line.as_bytes_with_nul();
    // SAFETY: both descriptors are open, and the command line is as long as is said; the kernel copies all of it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initramfs.as_raw_fd(),
            line.len(),
            line.as_ptr(),
            ON_CRASH,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()).named("kexec_file_load"),
    }
}

/// In the second kernel: the dump of the first one, in which the host's mark is right, and where the guest's was.
fn dump() -> Outcome<(CoreFile, u64)> {
    let note = cmdline::value(NOTE).unwrap_or_default();
    let marks = note.split_once(',');
    let marks = marks.and_then(|(own, guest)| Some((own.parse().ok()?, guest.parse().ok()?)));
    let Some((own_at, guest_at)) = marks else {
        return Err(Failure::Fail(format!("the note is '{note}'")));
    };
    let dump = CoreFile::open("/proc/vmcore")?;
    check_eq!(dump.word(own_at)?, HOST_MARK, "the host's word in the dump");
    let (size, instructions) = count(|| Ok(dump.read_all()?))?;
    say!(
        "the dump: {} in {} pieces, read in {instructions} instructions",
        human(size),
        dump.segments.len()
    );
    Ok((dump, guest_at))
}
