# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The tests. Sourced by run.

GUESTS=(vm1 vm2)
# Where the second disk, what is under test, appears in the machine.
PAYLOAD=/media/daxdmem
DRIVER=/sys/bus/dax/drivers/dax_dmem
RECORD=/var/lib/daxdmem/poison.json

# payload: the second disk: the packages, and the disk of a guest that boots into
# the memory test of tests/agent.
payload() {
	local dir=$BASE/payload guest=$BASE/guest
	rm -rf "$dir" "$guest"
	mkdir -p "$dir" "$guest"/{boot/grub,initrd/dev,initrd/proc,initrd/sys}
	cp "$DEBS"/*.deb tests/system/files "$dir"
	install -m 755 "$LAB/target/x86_64-unknown-linux-gnu/release/dmem-agent" "$guest/initrd/init"
	(cd "$guest/initrd" && find . | cpio --quiet --owner root:root -o -H newc) >"$guest/initrd.img"
	rm -r "$guest/initrd"
	cp "/usr/lib/modules/$(cat "$LAB/release")/vmlinuz" "$guest/"
	# Exits through two levels are slow, so nothing that costs some (see tests/agent/src/vmm.rs).
	printf '%s\n' 'linux /vmlinuz console=ttyS0 quiet iommu=noaperture panic=-1 dmem.role=guest dmem.hold=1' \
		'initrd /initrd.img' boot >"$guest/boot/grub/grub.cfg"
	GRUB_IMAGES=$SYSTEM tests/system/disk "$guest" "$BASE/guest.raw" 1 random
	qemu-img convert -O qcow2 "$BASE/guest.raw" "$dir/guest.qcow2"
	mksquashfs "$dir" "$BASE/payload.img" -noappend -quiet -no-progress -comp lz4 -all-root >/dev/null
	rm -rf "$dir" "$guest" "$BASE/guest.raw"
}

# mount_payload: makes it appear.
mount_payload() {
	must 60 "mountpoint -q $PAYLOAD || { mkdir -p $PAYLOAD && mount -o ro /dev/vdb $PAYLOAD; }"
}

# prerequisite TEST: a disk over the one that TEST, which has passed, left behind.
prerequisite() {
	[ -f "$BASE/$1/key" ] || fail "test $1 did not pass: its disk is needed"
	overlay "$BASE/$1/disk.qcow2"
}

# placement: which guest has which physical memory.
placement() {
	# shellcheck disable=SC2016 # expanded in the machine
	must 60 '
	for link in /dev/daxdmem/*; do
		device=$(basename "$(readlink -f "$link")")
		dir=/sys/bus/dax/devices/$device
		printf "%s" "${link##*/}"
		for mapping in "$dir"/mapping[0-9]*; do
			printf " %s-%s" "$(cat "$mapping/start")" "$(cat "$mapping/end")"
		done
		printf " %s\n" "$(basename "$(readlink "$dir/driver")")"
	done'
	printf '%s\n' "$OUTPUT"
}

# guide_blocks: the guide's commands, each block behind a line "%%".
guide_blocks() {
	awk '/^```sh$/ { inside = 1; print "%%"; next } /^```/ { inside = 0 } inside' "$GUIDE"
}

# follow SCRIPT: what stands in one block; a line "reboot" is one.
follow() {
	local part='' line
	while IFS= read -r line; do
		if [ "$line" = reboot ] || [ "$line" = "systemctl reboot" ]; then
			[ -z "$part" ] || must 3000 "set -e; cd /root; $part"
			part=
			note "reboot"
			vm_reboot
			vm_settled
		else
			part+=$line$'\n'
		fi
	done <<<"$1"
	[ -z "$part" ] || must 3000 "set -e; cd /root"$'\n'"$part"
}

# guests_run: both guests run, on memory without pages.
guests_run() {
	local guest
	for guest in "${GUESTS[@]}"; do
		must 300 "until [ \"\$(virsh domstate $guest)\" = running ]; do sleep 2; done"
		# shellcheck disable=SC2016 # expanded in the machine
		must 60 'pid=$(cat /run/libvirt/qemu/'"$guest"'.pid)
			device=$(readlink -f /dev/daxdmem/'"$guest"')
			# pf: VM_PFNMAP, no page behind it
			awk -v device="$device" "
				\$1 ~ /^[0-9a-f]+-[0-9a-f]+\$/ { mine = \$6 == device }
				mine && /^Size:/ { size += \$2 }
				mine && /^Rss:/ { rss += \$2 }
				mine && /^VmFlags:/ { if (!/ pf( |\$)/) pages++ }
				END { printf \"%d KiB, Rss %d, mappings with pages %d\n\", size, rss, pages }" "/proc/$pid/smaps"'
		[ "$OUTPUT" = "1048576 KiB, Rss 0, mappings with pages 0" ] || fail "$guest has $OUTPUT"
	done
}

# guests_off: they start with the host, and would take its processors.
guests_off() {
	local guest
	for guest in "${GUESTS[@]}"; do
		must 300 "until virsh destroy $guest; do sleep 1; done"
	done
}

# bring_trees PATTERN: to prepare a kernel's tree for the build takes ten times as
# long under emulation: here they are, as if the packages had been installed
# before. (A build drops the trees of kernels that are not there.)
bring_trees() {
	must 900 "mkdir -p /run/trees /var/cache/daxdmem-dkms && mount -o ro /dev/vdc /run/trees &&
		for tree in /run/trees/$1; do
			[ -e /var/cache/daxdmem-dkms/\${tree##*/} ] || cp -a \$tree /var/cache/daxdmem-dkms/ || exit
		done
		umount /run/trees"
}

# guests_held: both guests have filled their memory, read it back over and over,
# and are switched off. (What they are told they echo: telling them with every line
# would keep them busy for ever.)
guests_held() {
	local guest
	for guest in "${GUESTS[@]}"; do
		# shellcheck disable=SC2016 # expanded in the machine
		must 600 'exec 5<>"$(virsh ttyconsole '"$guest"')"
			next=0
			while :; do
				if ((SECONDS >= next)); then
					echo off >&5
					next=$((SECONDS + 20))
				fi
				if read -r -t 5 -u 5 line && [[ $line =~ guest:\ (held|failed).* ]]; then
					echo "${BASH_REMATCH[0]}"
					break
				fi
			done'
		[[ $OUTPUT == "guest: held for "*" rounds ok"* ]] || fail "$guest says: $OUTPUT"
		note "$guest: ${OUTPUT//$'\r'/}"
		must 120 "until [ \"\$(virsh domstate $guest)\" = 'shut off' ]; do sleep 1; done"
	done
}

# total: MemTotal in KiB.
total() {
	# shellcheck disable=SC2016 # expanded in the machine
	must 30 'awk "/^MemTotal:/ { print \$2 }" /proc/meminfo'
}

# The admin guide's commands, as written, lead from a clean image to two
# libvirt guests on page-less memory.
test_guide() {
	local block blocks
	overlay "$SYSTEM/disk.raw"
	vm_start "$RUN/disk.qcow2"
	vm_settled
	total
	printf '%s\n' "$OUTPUT" >"$RUN/total"
	# There is no power cut that apt would have to fear.
	must 30 'echo force-unsafe-io >/etc/dpkg/dpkg.cfg.d/test'
	mount_payload
	must 60 "cp $PAYLOAD/*.deb /root; for guest in ${GUESTS[*]}; do cp $PAYLOAD/guest.qcow2 /var/lib/libvirt/images/\$guest.qcow2; done"
	mapfile -d '' -t blocks < <(guide_blocks | sed 's/^%%$/\x00/' | sed -z '/^\n*$/d')
	((${#blocks[@]})) || fail "$GUIDE has no commands"
	for block in "${blocks[@]}"; do
		note "guide: $(sed '/^$/d' <<<"$block" | head -n 1)"
		if [[ $block == *' ./daxdmem_'* ]]; then
			# What is there before the packages are, for test_purge.
			mount_payload
			must 300 "bash $PAYLOAD/files >/root/files"
			# shellcheck disable=SC2016 # expanded in the machine
			bring_trees '$(uname -r)'
		fi
		follow "$block"
	done
	guests_run
	guests_held
	placement >"$RUN/placement"
}

# same_again: guests start again where they were.
same_again() {
	placement >"$RUN/placement"
	cmp -s "$BASE/guide/placement" "$RUN/placement" ||
		fail "placement: $(diff "$BASE/guide/placement" "$RUN/placement" | tr '\n' ';')"
	guests_run
	guests_held
}

# After one more reboot they start again by themselves, in the same places.
test_reboot() {
	prerequisite guide
	vm_start "$RUN/disk.qcow2"
	vm_settled
	same_again
}

# After a kernel upgrade by apt, DKMS has built the driver for the new kernel,
# and after the reboot they start again, in the same places.
test_kernel_upgrade() {
	local before headers source
	prerequisite guide
	vm_start "$RUN/disk.qcow2"
	vm_settled
	guests_off
	must 30 'uname -r'
	before=$OUTPUT
	bring_trees '*'
	must 30 'cd /srv/archive/dists && mv trixie-backports past && mv next trixie-backports'
	must 120 'apt-get update'
	must 3000 'apt-get --yes full-upgrade'
	must 60 'dpkg --audit; dkms status'
	note "dkms: ${OUTPUT//$'\n'/; }"
	vm_reboot
	vm_settled
	must 30 'uname -r'
	[ "$OUTPUT" != "$before" ] || fail "still kernel $before"
	note "from kernel $before to $OUTPUT"
	# Which linux-source has brought along.
	must 30 "dpkg-query --show --showformat '\${Version} ' linux-headers-$OUTPUT linux-source-$(cut -d. -f1,2 <<<"$OUTPUT")"
	read -r headers source <<<"$OUTPUT"
	[ "$headers" = "$source" ] || fail "the kernel's headers are $headers, its source is ${source:-not there}"
	same_again
}

# short_boots: from now on the machine boots as far as the target behind which
# udev has asked for the driver of every device, and without AppArmor's profiles.
short_boots() {
	# shellcheck disable=SC2016 # expanded in the machine
	must 300 'echo '\''GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX systemd.unit=sysinit.target apparmor=0"'\'' >/etc/default/grub.d/zz-test.cfg; update-grub'
}

# region_driver: what each device of the dax bus is bound to. test_kmem_without
# shows that this is late enough to see kmem come.
region_driver() {
	# shellcheck disable=SC2016 # expanded in the machine
	must 120 'udevadm settle; sleep 5; udevadm settle
		for device in /sys/bus/dax/devices/dax*; do
			[ -e "$device" ] || continue
			echo "$(basename "$device") $(basename "$(readlink "$device/driver")")"
		done'
}

# Trixie's own kernel is too old: apt installs it and its headers all the same,
# and DKMS says in one line why it has no driver.
test_old_kernel() {
	local lines
	prerequisite guide
	vm_start "$RUN/disk.qcow2"
	vm_settled
	guests_off
	# shellcheck disable=SC2016 # expanded in the machine
	must 3000 'apt-get --yes install $(cd /srv/archive/pool/trixie && ls | sed -n "s/^\(linux-\(image\|headers\)-[0-9][^_]*-amd64\)_.*/\1/p")'
	lines=$(grep -E '^(dax_dmem|daxdmem)[^:]*: ' <<<"$OUTPUT" | grep -F 6.12 || true)
	[[ -n $lines && $lines != *$'\n'* ]] ||
		fail "not one line about it, but: $(tr '\n' ';' <<<"$lines"); see $RUN/commands.log"
	note "$lines"
	must 60 'dpkg --audit'
	[ -z "$OUTPUT" ] || fail "dpkg --audit: $(head -n 1 <<<"$OUTPUT")"
	must 60 'dkms status; ls -d /var/lib/dkms/*/*/6.12* /lib/modules/6.12*/updates/dkms/* 2>/dev/null || true'
	! grep -q 'updates/dkms/dax_dmem' <<<"$OUTPUT" || fail "a half-built module: $OUTPUT"
}

# Without the packaging's module settings, the alias that its udev rule takes away
# among them, the same image loses the region to kmem at boot. (A file of the same
# name in /etc is the administrator's way to take one of /usr/lib out.)
test_kmem_without() {
	prerequisite guide
	vm_start "$RUN/disk.qcow2"
	total
	local reserved=$OUTPUT
	# shellcheck disable=SC2016 # expanded in the machine
	must 60 'for file in modprobe.d/daxdmem.conf udev/rules.d/70-daxdmem.rules; do
			test -f /usr/lib/$file && ln -s /dev/null /etc/$file || exit
		done'
	short_boots
	vm_reboot
	region_driver
	note "driver: ${OUTPUT//$'\n'/; }"
	grep -q ' kmem$' <<<"$OUTPUT" || fail "kmem did not take the region: $OUTPUT"
	total
	((OUTPUT > reserved + 1000000)) || fail "MemTotal is $OUTPUT KiB, it was $reserved with the region set aside"
	note "MemTotal $reserved KiB with the settings, $OUTPUT KiB without"
}

# With the packaging's settings kmem never gets it: 20 boots, as far as the
# target behind which udev has seen every device.
test_kmem_never() {
	local boot
	prerequisite guide
	vm_start "$RUN/disk.qcow2"
	short_boots
	for boot in $(seq 20); do
		vm_reboot
		region_driver
		[ -n "$OUTPUT" ] || fail "boot $boot: no device on the dax bus"
		! grep -q ' kmem$' <<<"$OUTPUT" || fail "boot $boot: $OUTPUT"
		must 30 'grep -c "System RAM (kmem)" /proc/iomem || true; lsmod | grep -c ^kmem || true'
		[ "$OUTPUT" = $'0\n0' ] || fail "boot $boot: System RAM by kmem, kmem loaded: ${OUTPUT//$'\n'/, }"
	done
}

# driver_knows PAGE…: they are in its list of failed pages.
driver_knows() {
	local page
	must 60 "cat $DRIVER/poison"
	for page in "$@"; do
		grep -q -x -i "$page-$(printf '0x%x' $((page + 4095)))" <<<"$OUTPUT" ||
			fail "the driver does not know of $page, but of: ${OUTPUT//$'\n'/ }"
	done
}

# Pages that fail, of which the driver is told or the kernel, are recorded without
# any command, by udev. After a reboot the driver is told by udev when it is
# loaded, and before guests get their memory: none gets such a page again.
test_memory_error() {
	local pages=() page guest ranges range
	prerequisite guide
	vm_start "$RUN/disk.qcow2"
	vm_settled
	guests_off
	placement >"$RUN/before"
	while read -r guest range _; do
		pages+=("$(printf '0x%x' $((${range%-*} + 0x20003000)))")
	done <"$RUN/before"
	must 60 "test ! -e $RECORD"
	must 60 "echo 'add ${pages[0]}' >$DRIVER/poison"
	must 60 "echo ${pages[1]} >/sys/devices/system/memory/hard_offline_page"
	for page in "${pages[@]}"; do
		must 120 "until grep -q -i '\"$page-' $RECORD; do sleep 1; done"
	done
	must 30 "stat -c '%a %U:%G' $RECORD; cat $RECORD"
	[[ $OUTPUT == "600 root:root"* ]] || fail "$RECORD is ${OUTPUT%%$'\n'*}"
	note "recorded: ${pages[*]}"
	short_boots
	vm_reboot
	must 120 'modprobe dax_dmem && udevadm settle'
	driver_knows "${pages[@]}"
	must 300 'rm /etc/default/grub.d/zz-test.cfg; update-grub'
	vm_reboot
	vm_settled
	driver_knows "${pages[@]}"
	placement >"$RUN/placement"
	while read -r guest ranges; do
		note "$guest: $ranges"
		for range in ${ranges% *}; do
			for page in "${pages[@]}"; do
				((page < ${range%-*} || page > ${range#*-})) || fail "$guest has $page: $range"
			done
		done
	done <"$RUN/placement"
	guests_run
	guests_held
}

# After apt purge and a reboot all memory is the host's again, and no file is
# left that was not there before.
test_purge() {
	local before guest
	prerequisite guide
	vm_start "$RUN/disk.qcow2"
	vm_settled
	total
	before=$OUTPUT
	guests_off
	# libvirt keeps the AppArmor profiles of guests that are gone, and a directory.
	for guest in "${GUESTS[@]}"; do
		must 120 "uuid=\$(virsh domuuid $guest) && virsh undefine $guest &&
			rm /var/lib/libvirt/images/$guest.qcow2 /etc/apparmor.d/libvirt/libvirt-\$uuid*"
	done
	must 30 'rmdir /etc/libvirt/qemu/autostart'
	must 1200 'apt-get --yes purge daxdmem daxdmem-dkms'
	vm_reboot
	vm_settled
	total
	note "MemTotal $before KiB with daxdmem, $OUTPUT KiB after, $(cat "$BASE/guide/total") KiB on the clean image"
	((OUTPUT > before && OUTPUT - $(cat "$BASE/guide/total") < 1024 && $(cat "$BASE/guide/total") - OUTPUT < 1024)) ||
		fail "MemTotal is $OUTPUT KiB, $(cat "$BASE/guide/total") KiB before anything was installed"
	must 30 'grep -o "memmap=[^ ]*" /proc/cmdline || true'
	[ -z "$OUTPUT" ] || fail "still on the command line: $OUTPUT"
	mount_payload
	vm 300 "bash $PAYLOAD/files | diff /root/files -" ||
		fail "$(grep -c '^[<>]' <<<"$OUTPUT") differences in the files, like: $(grep -m 1 '^[<>]' <<<"$OUTPUT")"
}
