// SPDX-License-Identifier: GPL-2.0
//! Where the lab keeps what a VM is made of.

use std::fs;
use std::path::{Path, PathBuf};

use crate::initramfs::{Archive, Entry};
use crate::memory_file::MemoryFile;

/// Anything that keeps the runner from doing its work; the text names the object and what to do.
pub type Result<T> = std::result::Result<T, String>;

/// Which kernel the VMs boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kernel {
    /// Debian's own, with the driver built beside it.
    Stock,
    /// The lab's, with KASAN, lockdep and the like, the patches of mm/patches, and the driver in it.
    Debug,
}

impl Kernel {
    /// How many times longer everything takes, at worst, than with the stock kernel.
    pub fn slowness(self) -> u32 {
        match self {
            Kernel::Stock => 1,
            // KASAN, lockdep and the checks of page tables, all of it emulated.
            Kernel::Debug => 5,
        }
    }

    /// What it needs on its command line.
    pub fn parameters(self) -> &'static str {
        match self {
            Kernel::Stock => "",
            // While identify_cpu() fills in the boot CPU's features anew, KASAN takes a kernel with five levels of
            // page tables for one with four, and reports whatever an interrupt touches (arch/x86/kernel/cpu/common.c).
            Kernel::Debug => " no5lvl",
        }
    }

    /// MiB of host memory a VM touches beyond its machine's cost: shadow memory and quarantine of KASAN.
    pub fn cost(self) -> u64 {
        match self {
            Kernel::Stock => 0,
            Kernel::Debug => 1024,
        }
    }
}

/// Paths of everything, found once.
#[derive(Debug)]
pub struct Lab {
    /// Which kernel this is about.
    pub choice: Kernel,
    /// Root file system of the VMs.
    pub image: PathBuf,
    /// A file system to lay over the root: modules that the root does not have.
    pub overlay: Option<PathBuf>,
    /// Kernel of the VMs.
    pub kernel: PathBuf,
    /// The static agent.
    pub agent: PathBuf,
    /// Directory of the logs.
    pub run: PathBuf,
    modules: PathBuf,
    /// Those of the stock kernel, which second-level guests boot.
    guest_modules: PathBuf,
    payload: Vec<PathBuf>,
}

/// Modules the root file system needs before it can be mounted.
const ROOT_MODULES: &[&str] = &["virtio_blk", "squashfs", "overlay"];

/// Modules that second-level guests may load: disks, emulated or passed on, the network, and shared directories.
const GUEST_MODULES: &[&str] = &["virtio_blk", "nvme", "virtio_net", "virtiofs"];

/// Modules of a second-level guest that runs a guest of its own.
const HYPERVISOR_MODULES: &[&str] = &["kvm-amd"];

/// The tool's recorded sessions, which the agent plays.
const SESSIONS: &str = "/src/tools/daxdmem/tests/sessions";

impl Lab {
    /// Finds the lab in `directory`, with build output below `target`; `extra` files go into the VMs, too.
    pub fn find(directory: &Path, target: &Path, choice: Kernel, extra: &[PathBuf]) -> Result<Lab> {
        let built = directory.join("debug/kernel");
        let (home, kernel_made_by) = match choice {
            Kernel::Stock => (directory, "lab"),
            Kernel::Debug => (&*built, "debug-kernel"),
        };
        let below_root = |home: &Path, made_by: &str| {
            let file = home.join("release");
            let release = fs::read_to_string(&file)
                .map_err(|error| format!("{}: {error}; run 'make {made_by}'", file.display()))?;
            Ok::<PathBuf, String>(Path::new("usr/lib/modules").join(release.trim()))
        };
        let guest_modules = Path::new("/").join(below_root(directory, "lab")?);
        let below_root = below_root(home, kernel_made_by)?;
        let (modules, kernel, overlay, driver) = match choice {
            Kernel::Stock => {
                let modules = Path::new("/").join(below_root);
                let kernel = modules.join("vmlinuz");
                (modules, kernel, None, directory.join("module/dax_dmem.ko"))
            }
            Kernel::Debug => (
                home.join("root").join(below_root),
                home.join("vmlinuz"),
                Some(home.join("modules.squashfs")),
                home.join("dax_dmem.ko"),
            ),
        };
        let image = directory.join("image/vmroot.squashfs");
        let agent = target.join("x86_64-unknown-linux-gnu/release/dmem-agent");
        for (path, made_by) in [
            (&kernel, kernel_made_by),
            (&image, "lab"),
            (&agent, "agent"),
        ] {
            if !path.exists() {
                return Err(format!("{}: missing; run 'make {made_by}'", path.display()));
            }
        }
        // Optional: cases that need them say so.
        let payload = [
            driver.with_file_name("dax_dmem_guard.ko"),
            driver.with_file_name("dmem_leaf_probe.ko"),
            driver.with_file_name("dmem_stall_probe.ko"),
            driver,
            target.join("release/daxdmem"),
        ];
        let sessions = Path::new(SESSIONS);
        let sessions = fs::read_dir(sessions).map_err(|error| format!("{SESSIONS}: {error}"))?;
        let payload = payload
            .into_iter()
            .filter(|path| path.exists())
            .chain(sessions.flatten().map(|entry| entry.path()))
            .filter(|path| {
                path.extension()
                    .is_none_or(|end| end != "rs" && end != "md")
            })
            .chain(extra.iter().cloned())
            .collect();
        Ok(Lab {
            choice,
            image,
            overlay,
            kernel,
            agent,
            run: directory.join("run"),
            modules,
            guest_modules,
            payload,
        })
    }

    /// Makes the initramfs of first-level VMs.
    pub fn initramfs(&self) -> Result<MemoryFile> {
        let agent = load(&self.agent)?;
        let mut guest = Archive::new();
        guest.add(Entry::program("init", &agent));
        let mut archive = Archive::new();
        archive.add(Entry::program("init", &agent));
        let root_modules = load_modules(&self.modules, ROOT_MODULES)?;
        add_modules(&mut archive, &root_modules);
        archive.add(Entry::directory("payload"));
        archive.add(Entry::file("payload/guest.cpio", &guest.finish()));
        for (name, modules) in [
            ("payload/guest-modules.cpio", GUEST_MODULES),
            ("payload/guest-hypervisor.cpio", HYPERVISOR_MODULES),
        ] {
            let mut more = Archive::new();
            add_modules(&mut more, &load_modules(&self.guest_modules, modules)?);
            archive.add(Entry::file(name, &more.finish()));
        }
        for file in &self.payload {
            let name = file
                .file_name()
                .map(|name| name.to_string_lossy())
                .unwrap_or_default();
            archive.add(Entry::file(&format!("payload/{name}"), &load(file)?));
        }
        MemoryFile::new(&archive.finish()).map_err(|error| format!("initramfs: {error}"))
    }
}

/// Modules in loading order, each with the name of its file.
type Modules = Vec<(String, Vec<u8>)>;

/// These modules of a kernel and what they depend on; `home` has its modules.dep.
fn load_modules(home: &Path, names: &[&str]) -> Result<Modules> {
    let index = read(&home.join("modules.dep"))?;
    let builtin = read(&home.join("modules.builtin"))?;
    let mut order = Vec::new();
    for name in names {
        let file = format!("/{name}.ko");
        if builtin.lines().any(|path| path.ends_with(&file)) {
            continue;
        }
        let line = index.lines().find(|line| {
            let path = line.split(':').next().unwrap_or("");
            path.contains(&file)
        });
        let Some((path, needs)) = line.and_then(|line| line.split_once(':')) else {
            return Err(format!(
                "{}: knows no module {name}",
                home.join("modules.dep").display()
            ));
        };
        // modules.dep lists what a module needs with the deepest need last.
        for module in needs.split_ascii_whitespace().rev().chain([path]) {
            let module = home.join(module);
            if !order.contains(&module) {
                order.push(module);
            }
        }
    }
    let named = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy());
        Ok((name.unwrap_or_default().into_owned(), load(path)?))
    };
    order.iter().map(named).collect()
}

fn add_modules(archive: &mut Archive, modules: &Modules) {
    archive.add(Entry::directory("modules"));
    for (index, (name, bytes)) in modules.iter().enumerate() {
        archive.add(Entry::file(&format!("modules/{index:02}-{name}"), bytes));
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}; run 'make lab'", path.display()))
}

fn load(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}
