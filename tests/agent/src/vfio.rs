// SPDX-License-Identifier: GPL-2.0
//! VFIO: the memory of a PCI device mapped into a process, as special leaves of up to 1 GiB.
//!
//! The device is QEMU's `ivshmem-plain`, whose BAR 2 is RAM (machine `vfio`).

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::case::{Failure, Named, Outcome};
use crate::{module, sysfs};

/// Vendor and device id.
const IVSHMEM: (u64, u64) = (0x1af4, 0x1110);

// include/uapi/linux/vfio.h
const SET_IOMMU: libc::Ioctl = 0x3b66;
const TYPE1V2_IOMMU: libc::c_ulong = 3;
const GROUP_SET_CONTAINER: libc::Ioctl = 0x3b68;
const GROUP_GET_DEVICE_FD: libc::Ioctl = 0x3b6a;
const DEVICE_GET_REGION_INFO: libc::Ioctl = 0x3b6c;
const REGION_MEMORY_BAR: u32 = 2;
const REGION_CONFIG: u32 = 7;
/// Offset of the command register and its bit for answering to memory addresses.
const PCI_COMMAND: (u64, u8) = (4, 2);

#[repr(C)]
#[derive(Default)]
struct RegionInfo {
    argsz: u32,
    flags: u32,
    index: u32,
    cap_offset: u32,
    size: u64,
    offset: u64,
}

/// The memory BAR of the device, open through VFIO.
pub struct Bar {
    /// To be mapped at `offset`.
    pub file: File,
    /// Where the BAR begins in the file, bytes.
    pub offset: u64,
    // The device works as long as its group is in a container.
    _group: File,
    _container: File,
}

impl Bar {
    /// Binds the device to vfio-pci and opens it.
    pub fn open() -> Outcome<Bar> {
        let device = find()?;
        for name in ["vfio-pci", "vfio_iommu_type1"] {
            module::load(name)?;
        }
        if sysfs::link_name(device.join("driver")).as_deref() != Some("vfio-pci") {
            sysfs::write(device.join("driver_override"), "vfio-pci")?;
            let name = device.file_name().unwrap_or_default().to_string_lossy();
            sysfs::write("/sys/bus/pci/drivers_probe", &name)?;
        }
        let group = sysfs::link_name(device.join("iommu_group"))
            .ok_or_else(|| Failure::Fail(format!("{}: no IOMMU group", device.display())))?;
        let container = open("/dev/vfio/vfio")?;
        let group = open(&format!("/dev/vfio/{group}"))?;
        let fd = container.as_raw_fd();
        call(
            &group,
            GROUP_SET_CONTAINER,
            (&raw const fd) as libc::c_ulong,
        )?;
        call(&container, SET_IOMMU, TYPE1V2_IOMMU)?;
        let name = device.file_name().unwrap_or_default().as_encoded_bytes();
        let name = std::ffi::CString::new(name)?;
        let fd = call(&group, GROUP_GET_DEVICE_FD, name.as_ptr() as libc::c_ulong)?;
        // SAFETY: the kernel has just made this descriptor for nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        let config = region(&file, REGION_CONFIG)?;
        let mut command = [0];
        file.read_exact_at(&mut command, config.offset + PCI_COMMAND.0)?;
        file.write_all_at(&[command[0] | PCI_COMMAND.1], config.offset + PCI_COMMAND.0)?;
        let bar = region(&file, REGION_MEMORY_BAR)?;
        Ok(Bar {
            file,
            offset: bar.offset,
            _group: group,
            _container: container,
        })
    }
}

fn find() -> Outcome<PathBuf> {
    for entry in std::fs::read_dir("/sys/bus/pci/devices")? {
        let path = entry?.path();
        let id = (
            sysfs::read_number(path.join("vendor"))?,
            sysfs::read_number(path.join("device"))?,
        );
        if id == IVSHMEM {
            return Ok(path);
        }
    }
    Err(Failure::Fail("the machine has no ivshmem device".into()))
}

fn open(path: &str) -> Outcome<File> {
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .named(path)
}

fn region(device: &File, index: u32) -> Outcome<RegionInfo> {
    let mut info = RegionInfo {
        argsz: size_of::<RegionInfo>() as u32,
        index,
        ..RegionInfo::default()
    };
    call(
        device,
        DEVICE_GET_REGION_INFO,
        (&raw mut info) as libc::c_ulong,
    )?;
    Ok(info)
}

fn call(file: &File, request: libc::Ioctl, argument: libc::c_ulong) -> Outcome<i32> {
    // SAFETY: the argument is what each request above wants: a number, or the address of a live value of its type.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).named(format_args!("VFIO ioctl {request:#x}"));
    }
    Ok(result)
}
