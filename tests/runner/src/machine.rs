// SPDX-License-Identifier: GPL-2.0
//! The table of machines: what first-level VMs look like.
//!
//! QEMU's `pc` machine has RAM from 0 to 3 GiB and from 4 GiB up, and the kernel image lies low; reservations
//! are therefore made from 4 GiB up. How much of a machine's memory the host has to have is written beside it:
//! untouched guest memory costs nothing.

/// One machine.
#[derive(Debug)]
pub struct Machine {
    /// Name that cases refer to.
    pub name: &'static str,
    /// `-m`, in MiB.
    memory: u64,
    /// Reservations as (GiB, at GiB), made the way hosts are told to (two parameters each).
    reserved: &'static [(u64, u64)],
    /// Further kernel parameters.
    parameters: &'static str,
    /// QEMU arguments besides memory.
    qemu: &'static [&'static str],
    /// CPU model.
    cpu: &'static str,
    /// Virtual CPUs.
    pub cpus: u32,
    /// MiB of host memory the cases of this machine may touch.
    pub cost: u64,
    /// Two more disks: the initramfs, and an empty one that survives whatever becomes of the kernel.
    pub disks: bool,
}

const GIB: u64 = 1024;
const TCG: &[&str] = &["-accel", "tcg,thread=multi"];
/// Everything TCG has, but for what makes Linux use byte-wise string instructions: TCG runs those one byte at a
/// time, which makes clearing and copying pages five times slower than the loops Linux uses without them.
const CPU: &str = "max,erms=off,fsrm=off,fzrm=off,fsrs=off,fsrc=off";
/// The same with four levels of page tables: walks under nested paging are shorter.
const CPU_LA48: &str = "max,erms=off,fsrm=off,fzrm=off,fsrs=off,fsrc=off,la57=off";
/// As [`CPU`], without vectors of 32 bytes.
const CPU_NO_AVX: &str = "max,erms=off,fsrm=off,fzrm=off,fsrs=off,fsrc=off,avx=off,avx2=off";

/// A processor that Linux takes for one of Intel's, old enough to need no registers that TCG does not have. QEMU's machine
/// check banks have the bits for recovery (MCG_SER_P), which Linux acts on for this vendor.
const CPU_INTEL: &str =
    "max,erms=off,fsrm=off,fzrm=off,fsrs=off,fsrc=off,vendor=GenuineIntel,family=6,model=58,stepping=9";

const STD: Machine = Machine {
    name: "std",
    memory: 10 * GIB,
    reserved: &[(6, 4)],
    parameters: "",
    qemu: TCG,
    cpu: CPU,
    cpus: 2,
    cost: 7 * GIB,
    disks: false,
};

const INTEL: Machine = Machine {
    name: "intel",
    memory: 7 * GIB,
    reserved: &[(3, 4)],
    parameters: "mce=60000000 mitigations=off",
    cpu: CPU_INTEL,
    cost: 5 * GIB,
    ..STD
};

const KEXEC: Machine = Machine {
    name: "kexec",
    memory: 7 * GIB,
    reserved: &[(3, 4)],
    cpu: CPU_LA48,
    cost: 3 * GIB,
    disks: true,
    ..STD
};

/// Guest time is a count of instructions: the yardstick for speed.
const ICOUNT: Machine = Machine {
    name: "icount",
    parameters: "nokaslr",
    qemu: &["-accel", "tcg", "-icount", "shift=0,sleep=off"],
    cpus: 1,
    ..STD
};

/// QEMU's arguments for the same with more memory than the machine that runs this has (see big64), of this type, with these
/// devices.
macro_rules! counting_far {
    ($size:literal $(, $machine:literal $(, $device:literal)*)?) => {
        [
            "-accel",
            "tcg",
            "-icount",
            "shift=0,sleep=off",
            "-object",
            concat!("memory-backend-ram,id=ram,size=", $size, ",reserve=off"),
            "-machine",
            concat!($($machine, ",",)? "memory-backend=ram"),
            $($("-device", $device,)*)?
        ]
    };
}

/// A host with a region of 3 GiB whose kernel, when it panics, leaves its memory to another one, in 512 MiB below 4 GiB,
/// which dumps it: in instructions.
const KDUMP: Machine = Machine {
    name: "kdump",
    parameters: "nokaslr crashkernel=512M init_on_alloc=0",
    qemu: ICOUNT.qemu,
    cpus: ICOUNT.cpus,
    ..KEXEC
};

/// What such machines share.
const ICOUNT_FAR: Machine = Machine {
    parameters: "nokaslr init_on_alloc=0",
    cost: 3 * GIB,
    ..ICOUNT
};

/// All machines.
pub const MACHINES: &[Machine] = &[
    // One region of 6 GiB, 3 GiB for the kernel below it and 1 GiB above.
    STD,
    // No region: for the lab's own checks.
    Machine {
        name: "small",
        memory: 1024,
        reserved: &[],
        cost: 700,
        ..STD
    },
    // Two regions, kernel memory between them.
    Machine {
        name: "two-regions",
        memory: 12 * GIB,
        reserved: &[(3, 4), (4, 8)],
        ..STD
    },
    // Two nodes of 6 GiB, a region on each: node 0 is 0..3 and 4..7 GiB, node 1 is 7..13 GiB.
    Machine {
        name: "numa",
        memory: 12 * GIB,
        reserved: &[(2, 4), (4, 8)],
        qemu: &[
            "-accel",
            "tcg,thread=multi",
            "-object",
            "memory-backend-ram,id=node0,size=6G",
            "-object",
            "memory-backend-ram,id=node1,size=6G",
            "-numa",
            "node,nodeid=0,memdev=node0,cpus=0",
            "-numa",
            "node,nodeid=1,memdev=node1,cpus=1",
        ],
        ..STD
    },
    // A PCI device with a BAR that VFIO maps by 1 GiB leaves, and one with a DMA engine. TCG's IOMMU does not remap interrupts.
    Machine {
        name: "vfio",
        parameters: "intel_iommu=on vfio_iommu_type1.allow_unsafe_interrupts=1",
        qemu: &[
            "-accel",
            "tcg,thread=multi",
            "-machine",
            "q35",
            "-device",
            "intel-iommu,intremap=off",
            "-device",
            "ivshmem-plain,memdev=bar",
            "-device",
            "edu,dma_mask=0xffffffff",
            "-object",
            "memory-backend-ram,id=bar,size=2G,share=on,reserve=off",
        ],
        ..STD
    },
    // Second-level guests, and a disk to pass on to one of them, which is empty at first. TCG's IOMMU does not remap
    // interrupts.
    Machine {
        name: "attach",
        memory: 7 * GIB,
        reserved: &[(3, 4)],
        parameters: "intel_iommu=on vfio_iommu_type1.allow_unsafe_interrupts=1",
        qemu: &[
            "-accel",
            "tcg,thread=multi",
            "-machine",
            "q35",
            "-device",
            "intel-iommu,intremap=off",
            "-drive",
            "driver=raw,file.driver=null-co,file.size=64M,file.read-zeroes=on,if=none,id=passed,snapshot=on",
            "-device",
            "nvme,drive=passed,serial=passed",
        ],
        cpu: CPU_LA48,
        cost: 5 * GIB,
        ..STD
    },
    // Room for two second-level guests of 2 GiB on devices, and for their QEMUs.
    Machine {
        name: "nested",
        cpu: CPU_LA48,
        ..STD
    },
    // As nested, for one guest, with what it takes to go on in another kernel by kexec.
    KEXEC,
    KDUMP,
    // As kdump, with struct pages for all of its memory.
    Machine {
        name: "kdump-pages",
        reserved: &[],
        ..KDUMP
    },
    // A machine check is broadcast, and whoever waits for a CPU that the host does not run gives up after a second:
    // a minute, in microseconds.
    INTEL,
    Machine {
        name: "thp-never",
        parameters: "transparent_hugepage=never",
        ..STD
    },
    // The region ends in the middle of a 128 MiB section, the rest of which is RAM.
    Machine {
        name: "shared-section",
        memory: 8 * GIB,
        reserved: &[],
        parameters: "memmap=1088M$4G memmap=1088M%4G-2+0xefffffff",
        cost: 3 * GIB,
        ..STD
    },
    // For thousands of binds and unbinds in one case: their lines in the kernel log all have to be kept, and looked at.
    Machine {
        name: "fuzz",
        parameters: "log_buf_len=8M",
        cost: 3 * GIB,
        ..STD
    },
    // A persistent-memory namespace for ndctl.
    Machine {
        name: "pmem",
        reserved: &[],
        parameters: "memmap=3G!6G",
        memory: 8 * GIB,
        cost: 5 * GIB,
        ..STD
    },
    // Far more memory than the machine that runs this has: nothing may write to all of it, so init_on_alloc is
    // off, and the host is asked for no reservation.
    Machine {
        name: "big64",
        memory: 72 * GIB,
        reserved: &[(64, 4)],
        parameters: "init_on_alloc=0",
        qemu: &[
            "-accel",
            "tcg,thread=multi",
            "-object",
            "memory-backend-ram,id=ram,size=72G,reserve=off",
            "-machine",
            "memory-backend=ram",
        ],
        cost: 3 * GIB,
        ..STD
    },
    Machine {
        name: "big384",
        memory: 384 * GIB,
        reserved: &[(376, 8)],
        parameters: "init_on_alloc=0",
        qemu: &[
            "-accel",
            "tcg,thread=multi",
            "-object",
            "memory-backend-ram,id=ram,size=384G,reserve=off",
            "-machine",
            "memory-backend=ram",
        ],
        cost: 3 * GIB,
        ..STD
    },
    // One region of 12 GiB, all of which may be written. The kernel touches less than 1 GiB of the rest.
    Machine {
        name: "region12",
        memory: 16 * GIB,
        reserved: &[(12, 4)],
        cost: 13 * GIB + 512,
        ..STD
    },
    // Four machines of different topology on which a case plans the reservation and boots with it.
    // One node, with a piece in the middle of its high memory that another parameter has: a hole for the plan.
    Machine {
        name: "plan-hole",
        memory: 10 * GIB,
        reserved: &[],
        parameters: "memmap=640M$6G",
        cost: 2 * GIB,
        ..STD
    },
    // Two nodes: 0 is 0..3 and 4..5.5 GiB, 1 is 5.5..10 GiB.
    Machine {
        name: "plan-two-nodes",
        memory: 9 * GIB,
        reserved: &[],
        qemu: &[
            "-accel",
            "tcg,thread=multi",
            "-object",
            "memory-backend-ram,id=node0,size=4608M",
            "-object",
            "memory-backend-ram,id=node1,size=4608M",
            "-numa",
            "node,nodeid=0,memdev=node0,cpus=0",
            "-numa",
            "node,nodeid=1,memdev=node1,cpus=1",
        ],
        cost: 2 * GIB,
        ..STD
    },
    // Four nodes of odd sizes, one of them without a CPU: 0 is 0..3 and 4..5 GiB, then 2, 3.375 and 2.625 GiB.
    Machine {
        name: "plan-four-nodes",
        memory: 12 * GIB,
        reserved: &[],
        qemu: &[
            "-accel",
            "tcg,thread=multi",
            "-object",
            "memory-backend-ram,id=node0,size=4G",
            "-object",
            "memory-backend-ram,id=node1,size=2G",
            "-object",
            "memory-backend-ram,id=node2,size=3456M",
            "-object",
            "memory-backend-ram,id=node3,size=2688M",
            "-numa",
            "node,nodeid=0,memdev=node0,cpus=0",
            "-numa",
            "node,nodeid=1,memdev=node1,cpus=1",
            "-numa",
            "node,nodeid=2,memdev=node2",
            "-numa",
            "node,nodeid=3,memdev=node3",
        ],
        cost: 2 * GIB,
        ..STD
    },
    // RAM below 4 GiB ends at 1 GiB; high memory ends between two boundaries.
    Machine {
        name: "plan-low-hole",
        memory: 8 * GIB + 600,
        reserved: &[],
        qemu: &[
            "-accel",
            "tcg,thread=multi",
            "-machine",
            "pc,max-ram-below-4g=1G",
        ],
        cost: 2 * GIB,
        ..STD
    },
    // Nothing wider than SSE2: what a driver does with memory must not depend on it.
    Machine {
        name: "no-avx",
        cpu: CPU_NO_AVX,
        ..STD
    },
    ICOUNT,
    Machine {
        name: "icount200",
        memory: 208 * GIB,
        reserved: &[(200, 4)],
        qemu: &counting_far!("208G"),
        ..ICOUNT_FAR
    },
    // For benchmarks, which `make test` does not run: 8 GiB in a region, or 13 GiB of pages, all of which are written.
    Machine {
        name: "bench",
        memory: 12 * GIB,
        reserved: &[(8, 4)],
        cost: 9 * GIB,
        ..ICOUNT
    },
    Machine {
        name: "bench-pages",
        memory: 13 * GIB,
        reserved: &[],
        cost: 11 * GIB,
        ..ICOUNT
    },
    // The same with an IOMMU and a device for DMA: 16 GiB in a region, which nobody writes, or 13 GiB of pages.
    Machine {
        name: "bench-dma",
        memory: 20 * GIB,
        reserved: &[(16, 4)],
        parameters: "nokaslr init_on_alloc=0 intel_iommu=on vfio_iommu_type1.allow_unsafe_interrupts=1",
        qemu: &counting_far!("20G", "q35", "intel-iommu,intremap=off", "edu"),
        // What device_dax has struct pages for, and what pins them.
        cost: 11 * GIB,
        ..ICOUNT_FAR
    },
    Machine {
        name: "bench-dma-pages",
        memory: 13 * GIB,
        reserved: &[],
        parameters: "nokaslr init_on_alloc=0 intel_iommu=on vfio_iommu_type1.allow_unsafe_interrupts=1",
        qemu: &counting_far!("13G", "q35", "intel-iommu,intremap=off", "edu"),
        cost: 11 * GIB,
        ..ICOUNT
    },
    // Hosts of which only what the kernel itself writes is written: struct pages for all that is not reserved.
    Machine {
        name: "bench-pages72",
        memory: 72 * GIB,
        reserved: &[],
        qemu: &counting_far!("72G"),
        ..ICOUNT_FAR
    },
    Machine {
        name: "bench384",
        memory: 384 * GIB,
        reserved: &[(376, 8)],
        qemu: &counting_far!("384G"),
        ..ICOUNT_FAR
    },
    Machine {
        name: "bench384-pages",
        memory: 384 * GIB,
        reserved: &[],
        qemu: &counting_far!("384G"),
        cost: 7 * GIB,
        ..ICOUNT_FAR
    },
    Machine {
        name: "bench512",
        memory: 512 * GIB,
        reserved: &[(504, 8)],
        qemu: &counting_far!("512G"),
        ..ICOUNT_FAR
    },
    Machine {
        name: "bench768",
        memory: 768 * GIB,
        reserved: &[(760, 8)],
        qemu: &counting_far!("768G"),
        ..ICOUNT_FAR
    },
];

/// The machine of that name.
pub fn find(name: &str) -> Option<&'static Machine> {
    MACHINES.iter().find(|machine| machine.name == name)
}

impl Machine {
    /// The kernel command line, without what tells the agent its part.
    pub fn command_line(&self) -> String {
        // no_timer_check: a busy host makes the check of the emulated timer fail, and that panics (KVM guests skip
        // it for the same reason).
        // tsc=nowatchdog: or else a CPU that compares the TSC with another one's may wait for that with interrupts off,
        // while it waits, as well, to stop the machine and change the clock source. What would end the first wait is a
        // clock that counts jiffies so early (watchdog_wait_seq(), Linux 7.2 and 7.3), and so it never ends.
        // panic=-1 reboots at once, which ends QEMU under -no-reboot. An Oops does not panic: the log gate sees
        // it, and its text is worth more than an early end.
        let mut line = String::from(
            "console=ttyS0 no_timer_check tsc=nowatchdog panic=-1 dax_hmem.region_idle=1 modprobe.blacklist=kmem",
        );
        for (size, at) in self.reserved {
            // The first keeps KASLR out, the second makes it a region: neither is enough alone.
            line.push_str(&format!(
                " memmap={size}G${at}G memmap={size}G%{at}G-2+0xefffffff"
            ));
        }
        if !self.parameters.is_empty() {
            line.push(' ');
            line.push_str(self.parameters);
        }
        line
    }

    /// What people are told about it.
    pub fn description(&self) -> String {
        let reserved: u64 = self.reserved.iter().map(|(size, _)| size).sum();
        format!(
            "{} GiB of memory, {reserved} GiB of it reserved",
            self.memory / GIB
        )
    }

    /// QEMU's arguments for CPU and memory.
    pub fn qemu_arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = self.qemu.iter().map(|word| (*word).to_owned()).collect();
        arguments.extend(["-cpu", self.cpu, "-smp", &self.cpus.to_string()].map(str::to_owned));
        arguments.extend(["-m".to_owned(), format!("{}M", self.memory)]);
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_reservations_lie_in_high_memory() {
        for (index, machine) in MACHINES.iter().enumerate() {
            assert!(
                MACHINES[index + 1..]
                    .iter()
                    .all(|other| other.name != machine.name),
                "{}",
                machine.name
            );
            for (size, at) in machine.reserved {
                assert!(
                    *at >= 4 && (at + size) * GIB <= machine.memory + GIB,
                    "{}",
                    machine.name
                );
            }
            // The boot code keeps KASLR out of four ranges at most.
            assert!(machine.reserved.len() <= 4);
        }
    }

    #[test]
    fn each_reservation_has_both_parameters() {
        let line = find("std").unwrap().command_line();
        assert!(
            line.contains(" memmap=6G$4G memmap=6G%4G-2+0xefffffff"),
            "{line}"
        );
    }
}
