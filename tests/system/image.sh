# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The disk of a whole Debian 13, as an operator's machine has it before daxdmem:
# systemd, GRUB, libvirt, the last but one kernel of trixie-backports, whatever
# its series. It has no network; an archive on its own disk holds all that apt is
# asked for later: that kernel's headers and source, the newest kernel of
# trixie-backports, and trixie's own, which is too old for the driver. Sourced by
# setup.

SYSTEM_SCRIPTS=$CHECKOUT/tests/system
SYSTEM_HOST=$LAB_HOST/system
DISK_UUID=6b2f1a0c-5d0e-4b57-9a55-0d3c4f0b7e11

system_key() {
	key "$SYSTEM_SCRIPTS"/{packages,image.sh,archive,disk,control,control.service} "$LAB_SCRIPTS/root.sh" "$ROOT/etc/daxdmem-lab.release"
}

system_ready() {
	[ "$(cat "$SYSTEM_HOST/key" 2>/dev/null)" = "$(system_key)" ]
}

# last_two: reads what complete_kernels prints; prints the newest kernel and the
# newest one before it, the older one first, each in the latest version that its
# packages have.
last_two() {
	sort --version-sort --reverse | awk '!seen[$3]++ && ++n <= 2' | tac
}

# two_kernels DIR: writes "VERSION SERIES RELEASE" of the last two kernels to
# DIR/kernels. resolve_kernel has filled DIR.
two_kernels() {
	local dir=$1
	export APT_CONFIG=$dir/apt.conf
	# shellcheck disable=SC2016 # expanded by apt
	apt-get indextargets --format '$(FILENAME)' 'Created-By: Packages' |
		xargs /usr/lib/apt/apt-helper cat-file | complete_kernels | last_two >"$dir/kernels"
	unset APT_CONFIG
	cat "$dir/kernels"
	[ "$(wc -l <"$dir/kernels")" = 2 ] ||
		die "$SUITE-backports has one complete kernel only: there is nothing to upgrade from"
}

# build_tree TREE DIR: the machine's files.
build_tree() {
	local tree=$1 old new proxy
	{
		read -r old
		read -r new
	} <"$2/kernels"
	proxy=$(apt-config shell p Acquire::http::Proxy | sed -n "s/^p='\(.*\)'$/\1/p")
	# shellcheck disable=SC2016 # expanded by mmdebstrap's shell
	sources | OLD_KERNEL=$old NEW_KERNEL=$new \
		mmdebstrap --mode=root --variant=minbase --format=directory \
		--architectures=amd64 --keyring="$KEYRING" \
		--aptopt='APT::Install-Recommends "false"' \
		--aptopt='Acquire::Languages "none"' \
		--aptopt='Acquire::Retries "3"' \
		${proxy:+--aptopt="Acquire::http::Proxy \"$proxy\""} \
		--dpkgopt='force-unsafe-io' \
		--dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-include=/usr/share/doc/*/copyright' \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--include="$(sed 's/#.*//' "$SYSTEM_SCRIPTS/packages" | xargs)" \
		--customize-hook="$SYSTEM_SCRIPTS/archive"' "$1"' \
		"$SUITE" "$tree" -
	rm -f "$tree/etc/dpkg/dpkg.cfg.d/99mmdebstrap" "$tree/etc/apt/apt.conf.d/99mmdebstrap"
}

# furnish TREE: what the installer would have written, and the test's own door.
furnish() {
	local tree=$1 release parameters
	release=$(basename "$tree"/boot/vmlinuz-*)
	release=${release#vmlinuz-}
	echo daxdmem-host >"$tree/etc/hostname"
	printf '127.0.0.1 localhost\n127.0.1.1 daxdmem-host\n' >"$tree/etc/hosts"
	printf 'UUID=%s / ext4 errors=remount-ro 0 1\n' "$DISK_UUID" >"$tree/etc/fstab"
	: >"$tree/etc/machine-id"
	# The console goes to the host, which looks for the kernel's complaints. What a
	# busy host makes the kernel complain of, its timer or a CPU that seems stuck, is
	# not looked at so closely. The TSC is not, either: tests/runner/src/machine.rs says
	# what comes of that.
	parameters='console=ttyS0 no_timer_check tsc=nowatchdog watchdog_thresh=60'
	parameters+=' rcupdate.rcu_cpu_stall_timeout=300 panic=-1 systemd.show_status=error'
	sed -i -e 's/^GRUB_TIMEOUT=.*/GRUB_TIMEOUT=0/' -e 's/^GRUB_CMDLINE_LINUX_DEFAULT=.*/GRUB_CMDLINE_LINUX_DEFAULT=""/' \
		-e 's/^GRUB_CMDLINE_LINUX=.*/GRUB_CMDLINE_LINUX="'"$parameters"'"/' "$tree/etc/default/grub"
	printf 'GRUB_TERMINAL=serial\n' >>"$tree/etc/default/grub"
	# Nor does it give up on a service before this side gives up on the machine.
	install -d "$tree/etc/systemd/system.conf.d"
	printf '[Manager]\nDefaultTimeoutStartSec=15min\nDefaultDeviceTimeoutSec=15min\nServiceWatchdogs=no\n' \
		>"$tree/etc/systemd/system.conf.d/test.conf"
	# Nor is it the size of an initramfs that is tested: a quick one will do.
	printf 'COMPRESSLEVEL=1\n' >"$tree/etc/initramfs-tools/conf.d/test"
	# What grub-install does. core.img has in it all that a small grub.cfg needs.
	mkdir -p "$tree/boot/grub"
	cp -r "$tree/usr/lib/grub/i386-pc" "$tree/boot/grub/"
	chroot "$tree" grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' -o /boot/grub/i386-pc/core.img \
		biosdisk part_msdos ext2 normal linux
	cp "$tree"/boot/grub/i386-pc/{boot,core}.img "$SYSTEM_HOST/"
	# update-grub has to run on the machine itself: the first boot does without.
	printf 'linux /boot/vmlinuz-%s root=UUID=%s %s\ninitrd /boot/initrd.img-%s\nboot\n' \
		"$release" "$DISK_UUID" "$parameters" "$release" >"$tree/boot/grub/grub.cfg"
	install -m 755 "$SYSTEM_SCRIPTS/control" "$tree/usr/local/sbin/daxdmem-test-control"
	install -m 644 "$SYSTEM_SCRIPTS/control.service" "$tree/etc/systemd/system/daxdmem-test-control.service"
	chroot "$tree" systemctl enable daxdmem-test-control.service
	# Nothing that runs at a time of its own between two looks at the files.
	chroot "$tree" systemctl mask apt-daily.timer apt-daily-upgrade.timer man-db.timer dpkg-db-backup.timer \
		e2scrub_all.timer fstrim.timer systemd-tmpfiles-clean.timer
}

# build_system: runs contained.
build_system() {
	local new=$SYSTEM_HOST/tree apt=$SYSTEM_HOST/apt.new
	rm -rf --one-file-system "$new" "$apt"
	mkdir -p "$SYSTEM_HOST"
	resolve_kernel "$apt"
	two_kernels "$apt"
	build_tree "$new" "$apt"
	furnish "$new"
	rm -rf "$apt"
}
