// SPDX-License-Identifier: GPL-2.0
//! VFIO: PCI devices in the hands of a process. Their memory is mapped as special leaves of up to 1 GiB, and they read
//! and write what the process has given them.
//!
//! Machine `vfio` has QEMU's `ivshmem-plain`, whose BAR 2 is RAM, and its `edu`, which has a DMA engine.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::case::{Failure, Named, Outcome};
use crate::cmdline::patient;
use crate::{check, ioctl, module, pci, sysfs};

/// Vendor and device id.
const IVSHMEM: (u64, u64) = (0x1af4, 0x1110);
const EDU: (u64, u64) = (0x1234, 0x11e8);

// include/uapi/linux/vfio.h
const SET_IOMMU: libc::Ioctl = 0x3b66;
const TYPE1V2_IOMMU: libc::c_ulong = 3;
const GROUP_SET_CONTAINER: libc::Ioctl = 0x3b68;
const GROUP_GET_DEVICE_FD: libc::Ioctl = 0x3b6a;
const DEVICE_GET_REGION_INFO: libc::Ioctl = 0x3b6c;
const MAP_DMA: libc::Ioctl = 0x3b71;
const UNMAP_DMA: libc::Ioctl = 0x3b72;
const MAP_READ_WRITE: u32 = 3;
const REGION_REGISTERS: u32 = 0;
const REGION_MEMORY_BAR: u32 = 2;
const REGION_CONFIG: u32 = 7;
/// Offset of the command register and its bits for answering to memory addresses and for DMA.
const PCI_COMMAND: (u64, u8) = (4, 2 | 4);

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

#[repr(C)]
struct DmaMap {
    argsz: u32,
    flags: u32,
    vaddr: u64,
    iova: u64,
    size: u64,
}

#[repr(C)]
struct DmaUnmap {
    argsz: u32,
    flags: u32,
    iova: u64,
    size: u64,
}

/// A PCI device in a container of its own.
struct Function {
    file: File,
    // The device works as long as its group is in a container.
    _group: File,
    container: File,
}

impl Function {
    /// Binds the device to vfio-pci and opens it.
    fn open(id: (u64, u64)) -> Outcome<Function> {
        let device = pci::find(id)?;
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
        Ok(Function {
            file,
            _group: group,
            container,
        })
    }
}

/// The memory BAR of the ivshmem device.
pub struct Bar {
    function: Function,
    /// Where the BAR begins in the file, bytes.
    pub offset: u64,
}

impl Bar {
    /// Opens it.
    pub fn open() -> Outcome<Bar> {
        let function = Function::open(IVSHMEM)?;
        let bar = region(&function.file, REGION_MEMORY_BAR)?;
        Ok(Bar {
            function,
            offset: bar.offset,
        })
    }

    /// To be mapped at `offset`.
    pub fn file(&self) -> &File {
        &self.function.file
    }
}

/// The device with a DMA engine, which copies up to a page at a time through a buffer of its own.
pub struct Edu {
    function: Function,
    /// Where its registers begin in the file.
    registers: u64,
}

impl Edu {
    /// Opens it.
    pub fn open() -> Outcome<Edu> {
        let function = Function::open(EDU)?;
        let registers = region(&function.file, REGION_REGISTERS)?.offset;
        Ok(Edu {
            function,
            registers,
        })
    }

    /// Lets the device read and write memory of this process. It finds it at `iova`.
    pub fn map(&self, iova: u64, address: usize, size: u64) -> Outcome {
        let map = DmaMap {
            argsz: size_of::<DmaMap>() as u32,
            flags: MAP_READ_WRITE,
            vaddr: address as u64,
            iova,
            size,
        };
        call(
            &self.function.container,
            MAP_DMA,
            (&raw const map) as libc::c_ulong,
        )
        .map(drop)
    }

    /// Takes it back.
    pub fn unmap(&self, iova: u64, size: u64) -> Outcome {
        let mut unmap = DmaUnmap {
            argsz: size_of::<DmaUnmap>() as u32,
            flags: 0,
            iova,
            size,
        };
        call(
            &self.function.container,
            UNMAP_DMA,
            (&raw mut unmap) as libc::c_ulong,
        )?;
        check!(unmap.size == size, "{} bytes were unmapped", unmap.size);
        Ok(())
    }

    /// Has the device copy this many bytes, at most a page.
    pub fn copy(&self, from: u64, to: u64, size: u64) -> Outcome {
        // hw/misc/edu.c: registers for DMA, its buffer, and what the command's bits mean.
        const SOURCE: u64 = 0x80;
        const TARGET: u64 = 0x88;
        const COUNT: u64 = 0x90;
        const COMMAND: u64 = 0x98;
        const BUFFER: u64 = 0x40000;
        const RUN: u64 = 1;
        const TO_MEMORY: u64 = 2;
        for (from, to, command) in [(from, BUFFER, RUN), (BUFFER, to, RUN | TO_MEMORY)] {
            for (register, value) in [
                (SOURCE, from),
                (TARGET, to),
                (COUNT, size),
                (COMMAND, command),
            ] {
                let value = u32::try_from(value).map_err(|_| {
                    Failure::Fail(format!("{value:#x} is too large for a register"))
                })?;
                self.function
                    .file
                    .write_all_at(&value.to_le_bytes(), self.registers + register)?;
            }
            let deadline = Instant::now() + patient(Duration::from_secs(10));
            let mut value = [0; 4];
            loop {
                self.function
                    .file
                    .read_exact_at(&mut value, self.registers + COMMAND)?;
                if u64::from(value[0]) & RUN == 0 {
                    break;
                }
                check!(Instant::now() < deadline, "the device does not copy");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }
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
    ioctl::call(file, request, argument as usize).named(format_args!("VFIO ioctl {request:#x}"))
}
