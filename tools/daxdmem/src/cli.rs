// SPDX-License-Identifier: GPL-2.0

//! The command line.

pub mod check;
pub mod kexec;
pub mod layout;
mod libvirt;
pub mod poison;
pub mod reserve;
mod shell;
mod verbs;

use clap::{ArgGroup, Args, Parser, Subcommand};

use crate::access::{Mode, Owner};
use crate::align::Align;
use crate::name::{GuestName, PartName, Target};
use crate::nodes::Share;
use crate::scrub::Policy;
use crate::size::Size;

use layout::{ApplyArgs, SaveArgs, APPLY_EXAMPLES};
pub use libvirt::{LibvirtSetupArgs, LibvirtXmlArgs};
pub use shell::{CompletionArgs, ManArgs};
pub use verbs::{ModeArgs, RenameArgs, ResizeArgs, ShowArgs, StatsArgs, TopArgs};

/// Guest memory without struct page: cuts reserved memory into devices, one for each guest.
///
/// A region is memory that was reserved at boot. A device, daxX.Y, is a part of a region; bound to the driver dax_dmem
/// it is page-less: it costs the host no memory and is mapped with leaves of up to 1 GiB. A guest is the name that a
/// device is made for; /dev/daxdmem/NAME leads to it.
#[derive(Debug, Parser)]
#[command(name = "daxdmem", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused or failed; the host is as it was
  2  the command line was not understood
  3  failed, and something is left behind: the message says what, and who ends it

A command that was interrupted is undone or completed by the next one, which says so.
Waiting for a scrub may be interrupted at any time: the driver goes on with it.";

const CREATE_EXAMPLES: &str = "\
Examples:
  daxdmem create vm1 --size 16G
  daxdmem create vm2 --size 4610M --node 1
  daxdmem create vm3 --size 512M --align 4K --region 0
  daxdmem create db1 --size 64G --node 0,1
  daxdmem create vm4 --size 64G --owner libvirt-qemu:kvm --mode 0660 --no-wait";

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Reserve memory for guests at boot
    ///
    /// Plans which ranges to take and prints the parameters that the kernel needs for it. Changes nothing without
    /// --apply or --remove. Without a size it shows the host's memory and what is reserved. See Documentation/reserve.md.
    #[command(after_long_help = reserve::EXAMPLES)]
    Reserve(reserve::ReserveArgs),
    /// See whether this host is ready for page-less guests, and what is wrong if it is not
    ///
    /// Looks at processor, kernel, driver, reservation, regions, devices, QEMU and libvirt. Each finding is ok, info,
    /// warning or error, and says what it means and what to do. Changes nothing.
    #[command(after_help = check::EXIT_CODES)]
    Check(check::CheckArgs),
    /// Show everything about one guest's device, and who uses it
    ///
    /// Everybody may look. Physical addresses, and programs of other users, are shown to root only.
    Show(ShowArgs),
    /// Show how much memory guests have, who maps it, and what it saves
    ///
    /// What is saved is the kernel's own memory for the same bytes in the other ways to give a guest its memory. Leaves,
    /// failed pages and the processes of others are shown to root only.
    Stats(StatsArgs),
    /// Watch guests' memory: state, mappings, page faults, and who maps it
    ///
    /// Looks again every two seconds, until q or Ctrl-C.
    Top(TopArgs),
    /// Show regions and devices
    ///
    /// Everybody may look. Physical addresses, and what follows from them, are shown to root only.
    List(ListArgs),
    /// Make a page-less device for a guest, or one on each of several NUMA nodes
    ///
    /// The memory comes from one region, in as few pieces as possible, and so that as many 1 GiB leaves as possible
    /// are to be had. Loads the driver if need be. Memory that is not known to be zero is scrubbed before anybody can
    /// open the device; the command waits for that.
    #[command(after_long_help = CREATE_EXAMPLES)]
    Create(CreateArgs),
    /// Unmake a guest's devices and give their memory back
    ///
    /// With scrub policy release the driver scrubs the memory in the background.
    Destroy(DestroyArgs),
    /// Make an existing device page-less
    ///
    /// Policy, owner and mode are those it had, where nothing else is said.
    Bind(BindArgs),
    /// Take a device away from its driver; it stays the guest's, without its contents
    ///
    /// The contents are scrubbed now (scrub policy release) or by the next bind (hand-out).
    Unbind(UnbindArgs),
    /// Change scrub policy, owner or mode of a device
    ///
    /// Holds at once, and for later binds. What has been scrubbed or left unscrubbed stays so: a policy says what is
    /// done when the device is taken back, and at its next bind.
    Set(SetArgs),
    /// Give a guest another name
    ///
    /// The device stays as it is, also while it is in use; the link in /dev/daxdmem changes.
    Rename(RenameArgs),
    /// Make a guest's device larger or smaller
    ///
    /// Only while nobody uses it. What it held is lost, as with unbind. The memory that it keeps stays where it is: it
    /// grows at its end, and is cut at its end.
    Resize(ResizeArgs),
    /// Show or change what a device is used as: by a guest, by programs, or by the host
    ///
    /// Only while nobody uses it. What it held is lost. With system-ram the host gets the memory for everything that can
    /// be moved elsewhere when it is taken back; what stands in the way then is named, and the memory stays lent.
    /// From system-ram or devdax to page-less it is scrubbed, as its policy says.
    Mode(ModeArgs),
    /// Bring the host to a layout: the guests that a file declares
    ///
    /// Shows what is to be done, then does it. Changes only what differs; a device in use is never touched. Everything
    /// is planned first: a layout that does not fit changes nothing. A guest gets the memory that it had before, also
    /// after a reboot.
    #[command(after_long_help = APPLY_EXAMPLES)]
    Apply(ApplyArgs),
    /// Write the present guests as a layout, for apply to bring back
    ///
    /// A layout that declares just these guests is left as it is; another one is kept as FILE.old.
    Save(SaveArgs),
    /// Prepare a kexec of the host after which guests go on with the memory they had
    ///
    /// Checks that the guests would come back in the same place, writes down what they have there, and loads the next
    /// kernel with the same reservation. The first apply after the kexec gives the memory back as it is, and uses up
    /// what was written down; whatever is not as it was is scrubbed. Anything else that changes devices before the kexec
    /// gives it up.
    #[command(after_long_help = kexec::EXAMPLES)]
    KexecPrepare(kexec::KexecArgs),
    /// Show and edit which pages are kept out of use because they failed
    ///
    /// A page of 4K that reports an uncorrectable error is out of use at once and for good: whoever maps it is told, and
    /// no device is made of it, nor of the 2M around it, after the one that has it is destroyed. This is recorded, and
    /// holds after a reboot.
    #[command(after_long_help = poison::EXAMPLES)]
    Poison(poison::PoisonArgs),
    /// Print the arguments with which QEMU takes its guest's memory from a device
    ///
    /// As in: qemu-system-x86_64 $(daxdmem qemu-args vm1) -accel kvm ...
    ///
    /// The guest's memory size is the device's: leave -m out. A guest of several devices gets as many NUMA nodes, in the
    /// order of the host's.
    QemuArgs(QemuArgs),
    /// Write the XML of a libvirt domain that takes its memory from a device, or change the one there is
    ///
    /// Of a domain that is changed everything else stays as it is, byte for byte; the difference is shown. Settings
    /// that such memory cannot go with are refused or named. The same again changes nothing, and another device takes
    /// the place of the last.
    #[command(after_long_help = libvirt::XML_EXAMPLES)]
    LibvirtXml(LibvirtXmlArgs),
    /// Let libvirt's QEMU open the guests' devices
    ///
    /// Shows what would change in libvirt's files, and changes it with --apply.
    #[command(after_long_help = libvirt::SETUP_DETAILS)]
    LibvirtSetup(LibvirtSetupArgs),
    /// Print what a shell needs to complete daxdmem's command line
    #[command(after_long_help = shell::COMPLETION_EXAMPLES)]
    Completion(CompletionArgs),
    /// Write the man pages
    #[command(hide = true)]
    Man(ManArgs),
}

/// See [`Command::List`].
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print JSON, in the form that Documentation/daxdmem-json.md describes
    #[arg(long)]
    pub json: bool,
    /// Show physical ranges as well
    #[arg(short, long, conflicts_with = "json")]
    pub verbose: bool,
}

/// See [`Command::Create`].
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The guest's name: up to 63 of a-z, 0-9, '.', '_' and '-'
    pub name: GuestName,
    /// Size: bytes, or with K, M, G or T (powers of 1024) behind it
    #[arg(long, required_unless_present = "node")]
    pub size: Option<Size>,
    /// Unit in which the memory is cut: 4K, 2M or 1G [default: 1G if the size is a multiple of it, else 2M]
    ///
    /// With 1G every byte can be mapped by 1 GiB leaves. With 4K and 2M sizes are multiples of 2 MiB, pieces of whole
    /// GiB are still preferred, and leaves are as large as the pieces allow.
    #[arg(long)]
    pub align: Option<Align>,
    /// Take memory of this NUMA node only
    ///
    /// With several the guest gets a device on each, called NAME:NODE; the size is split evenly, unless each node has
    /// its own: --node 0=4G,1=8G.
    #[arg(long, value_name = "NODE[=SIZE]", value_delimiter = ',')]
    pub node: Vec<Share>,
    /// Take memory of this region only: X in the names daxX.Y of its devices
    #[arg(long)]
    pub region: Option<u32>,
    /// Policy, owner and mode
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Waiting
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// What can be chosen for a device.
#[derive(Debug, Default, Args)]
pub struct SettingsArgs {
    /// When its memory is scrubbed, that is, overwritten with zeros [a new guest's: release]
    #[arg(long, value_enum, value_name = "POLICY")]
    pub scrub: Option<Policy>,
    /// Who may open /dev/daxX.Y: USER, USER:GROUP or :GROUP, names or numbers [a new guest's: root:root]
    #[arg(long, value_name = "USER[:GROUP]")]
    pub owner: Option<Owner>,
    /// Permissions of /dev/daxX.Y in octal, such as 0660 [a new guest's: 0600]
    #[arg(long)]
    pub mode: Option<Mode>,
}

impl SettingsArgs {
    /// Whether anything is chosen.
    pub fn is_any(&self) -> bool {
        self.scrub.is_some() || self.owner.is_some() || self.mode.is_some()
    }
}

/// Whether to wait for a device to be scrubbed.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Do not wait until the device is scrubbed: whoever opens it does
    #[arg(long)]
    pub no_wait: bool,
}

/// See [`Command::Destroy`].
#[derive(Debug, Args)]
pub struct DestroyArgs {
    /// The guest's name; NAME:NODE for one of several devices
    #[arg(value_name = "NAME[:NODE]")]
    pub name: PartName,
    /// Take the memory away from programs that use it: they get SIGBUS
    #[arg(long)]
    pub force: bool,
    /// Wait until the memory is scrubbed
    #[arg(long)]
    pub wait: bool,
}

/// See [`Command::Bind`].
#[derive(Debug, Args)]
pub struct BindArgs {
    /// The guest's name, NAME:NODE for one of several devices, or the device's, daxX.Y
    #[arg(value_name = "NAME[:NODE]|daxX.Y")]
    pub target: Target,
    /// Policy, owner and mode
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Waiting
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// See [`Command::Set`].
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").args(["scrub", "owner", "mode"]).required(true).multiple(true)))]
pub struct SetArgs {
    /// The guest's name, NAME:NODE for one of several devices, or the device's, daxX.Y
    #[arg(value_name = "NAME[:NODE]|daxX.Y")]
    pub target: Target,
    /// Policy, owner and mode
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// See [`Command::Unbind`].
#[derive(Debug, Args)]
pub struct UnbindArgs {
    /// The guest's name, NAME:NODE for one of several devices, or the device's, daxX.Y
    #[arg(value_name = "NAME[:NODE]|daxX.Y")]
    pub target: Target,
    /// Take the memory away from programs that use it: they get SIGBUS
    #[arg(long)]
    pub force: bool,
}

/// See [`Command::QemuArgs`].
#[derive(Debug, Args)]
pub struct QemuArgs {
    /// The guest's name, NAME:NODE for one of several devices, or the device's, daxX.Y
    #[arg(value_name = "NAME[:NODE]|daxX.Y")]
    pub target: Target,
    /// Let the guest's memory begin with this device, which has struct pages, for what needs them
    ///
    /// For disks with O_DIRECT above all. The device is in mode devdax (`daxdmem mode NAME devdax`), 128M to 1G are
    /// enough for most. All of the guest's memory below 4G is in it: a guest that is started with swiotlb=force on its
    /// kernel's command line copies what it reads and writes through there, where its devices have iommu_platform=on.
    #[arg(long, value_name = "NAME|daxX.Y")]
    pub dma_window: Option<Target>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_understood() {
        let cli = Cli::try_parse_from(["daxdmem", "create", "vm1", "--size", "4G", "--node", "1"])
            .unwrap();
        let Command::Create(args) = cli.command else {
            panic!("{cli:?}")
        };
        assert_eq!(
            (args.size, args.align, args.node, args.region),
            (Some(Size(4 << 30)), None, vec!["1".parse().unwrap()], None)
        );
        for line in [
            "create db1 --node 0=1G,1=2G",
            "create db1 --node 0=1G --node 1=2G",
        ] {
            let cli = Cli::try_parse_from(["daxdmem"].into_iter().chain(line.split(' '))).unwrap();
            let Command::Create(args) = cli.command else {
                panic!("{cli:?}")
            };
            let sizes = args.node.iter().map(|share| share.size).collect::<Vec<_>>();
            assert_eq!(sizes, [Some(Size(1 << 30)), Some(Size(2 << 30))]);
        }
        let line =
            "daxdmem create vm1 --size 1G --scrub hand-out --owner qemu:kvm --mode 0660 --no-wait";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Command::Create(args) = cli.command else {
            panic!("{cli:?}")
        };
        assert_eq!(args.settings.scrub, Some(Policy::HandOut));
        assert_eq!(args.settings.owner, Some("qemu:kvm".parse().unwrap()));
        assert_eq!(args.settings.mode, Some("660".parse().unwrap()));
        assert!(args.wait.no_wait);
        let cli = Cli::try_parse_from(["daxdmem", "set", "vm1", "--mode", "600"]).unwrap();
        let Command::Set(args) = cli.command else {
            panic!("{cli:?}")
        };
        assert!(args.settings.is_any() && args.settings.scrub.is_none());
        let cli = Cli::try_parse_from(["daxdmem", "unbind", "dax0.1", "--force"]).unwrap();
        let Command::Unbind(args) = cli.command else {
            panic!("{cli:?}")
        };
        assert!(args.force && matches!(args.target, Target::Device(_)));
    }

    #[test]
    fn what_is_not_understood() {
        for (line, why) in [
            ("daxdmem create vm1", "--size <SIZE>"),
            (
                "daxdmem create VM1 --size 4G",
                "'VM1' is no name for a guest",
            ),
            ("daxdmem create vm1 --size 4Q", "'4Q' is no size"),
            (
                "daxdmem create vm1 --size 4G --align 8K",
                "'8K' is no alignment: use 4K, 2M or 1G",
            ),
            (
                "daxdmem create vm1 --size 4G --node all",
                "'all' is no NUMA node",
            ),
            (
                "daxdmem create vm1:0 --size 4G",
                "'vm1:0' is no name for a guest",
            ),
            ("daxdmem destroy vm1:x", "'vm1:x' is no device of a guest"),
            ("daxdmem destroy dax0.1", "'dax0.1' is the name of a device"),
            ("daxdmem list --json --verbose", "cannot be used with"),
            ("daxdmem set vm1", "required arguments were not provided"),
            (
                "daxdmem set vm1 --scrub sometimes",
                "[possible values: release, hand-out, never]",
            ),
            ("daxdmem bind vm1 --mode rw", "'rw' is no mode for a device"),
            ("daxdmem bind vm1 --owner :", "':' is no owner"),
            ("daxdmem", "Usage: daxdmem <COMMAND>"),
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(why), "{line}: {error}");
        }
    }
}
