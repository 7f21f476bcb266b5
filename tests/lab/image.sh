# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The root file system of first-level VMs: the lab's root as a squashfs, less
# what only a build needs. Sourced by setup.

# What stays out, as mksquashfs wildcards. The kernel's modules, vmlinuz, QEMU
# with its firmware, ndctl, daxctl, systemd, udev and the small tools stay in.
IMAGE_EXCLUDES=(
	'dev/*' 'proc/*' 'run/*' 'src/*' 'sys/*' 'tmp/*'
	'boot/*' 'etc/apparmor.d/abstractions' 'var/cache/*' 'var/lib/apt/*' 'var/lib/dpkg/*' 'var/log/*' "${LAB#/}/*"
	'usr/include/*' 'usr/src/*' 'usr/lib/bfd-plugins' 'usr/lib/gcc' 'usr/lib/llvm*'
	'usr/lib/linux-kbuild*' 'usr/lib/python3*' 'usr/lib/rustlib' 'usr/libexec/gcc'
	'usr/lib/x86_64-linux-gnu/*.a' 'usr/lib/x86_64-linux-gnu/libLLVM*'
	'usr/lib/x86_64-linux-gnu/libclang*' 'usr/lib/x86_64-linux-gnu/librustc*'
	'usr/lib/x86_64-linux-gnu/libstd-*' 'usr/lib/x86_64-linux-gnu/perl*'
	'usr/share/doc/*' 'usr/share/locale/*' 'usr/share/man/*' 'usr/share/perl*'
	'usr/bin/*rust*' 'usr/bin/bindgen' 'usr/bin/cargo*' 'usr/bin/clippy*' 'usr/bin/pandoc'
	'usr/bin/python3*' 'usr/bin/shellcheck' 'usr/bin/x86_64-linux-gnu-*'
	'usr/lib/modules/*/build' 'usr/lib/modules/*/source'
	'usr/lib/modules/*/kernel/drivers/gpu' 'usr/lib/modules/*/kernel/drivers/infiniband/hw'
	'usr/lib/modules/*/kernel/drivers/infiniband/ulp' 'usr/lib/modules/*/kernel/drivers/media'
	'usr/lib/modules/*/kernel/drivers/net/ethernet' 'usr/lib/modules/*/kernel/drivers/net/wireless'
	'usr/lib/modules/*/kernel/sound'
)

image_key() {
	key "$ROOT/var/lib/dpkg/status" "$LAB_SCRIPTS/image.sh"
}

image_ready() {
	[ -f "$LAB_HOST/image/vmroot.squashfs" ] &&
		[ "$(cat "$LAB_HOST/image/key" 2>/dev/null)" = "$(image_key)" ]
}

# build_image: makes the image under another name first; a running VM keeps the
# old one open.
build_image() {
	local dir=$LAB_HOST/image
	mkdir -p "$dir" "$ROOT$LAB"
	rm -f "$dir/key" "$dir/vmroot.new"
	mount --bind "$LAB_HOST" "$ROOT$LAB"
	# lz4: the guest unpacks it with an emulated CPU.
	chroot "$ROOT" mksquashfs / "$LAB/image/vmroot.new" -comp lz4 -b 128K \
		-noappend -no-progress -no-xattrs -processors "$(nproc)" \
		-wildcards -e "${IMAGE_EXCLUDES[@]}"
	mv "$dir/vmroot.new" "$dir/vmroot.squashfs"
	image_key >"$dir/key"
}
