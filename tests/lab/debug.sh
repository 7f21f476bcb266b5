# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The parts of debug-kernel, which see. Sourced by it.

TREE=$LAB/debug-kernel
OUT=$LAB/debug
FRAGMENT=$LAB_SCRIPTS/debug.config
PATCHES=$CHECKOUT/mm/patches
# step() keeps its logs below this.
# shellcheck disable=SC2034
CACHE=$OUT

kbuild() {
	nice make -C "$TREE" LLVM=1 -j"$(nproc)" "$@"
}

stock_release() {
	cat /etc/daxdmem-lab.release
}

# tree_key: what the unpacked tree and all that was built in it depend on, besides
# what kbuild watches itself.
tree_key() {
	{
		stock_release
		awk '$1 == "Package:" { name = $2 }
		     $1 == "Version:" && name ~ /^(bindgen|clang|libclang|linux-source|lld|llvm|rustc|rust-src)/ { print name, $2 }' \
			/var/lib/dpkg/status
	} | sha256sum | cut -c1-16
}

# series: the stock kernel's, which names the source package.
series() {
	stock_release | cut -d. -f1,2
}

# unpacked: the tree as the archive has it.
unpacked() {
	local tarball
	tarball=/usr/src/linux-source-$(series).tar.xz
	[ -f "$tarball" ] || die "no $tarball: install linux-source-$(series)"
	rm -rf "$TREE"
	mkdir -p "$TREE"
	xz --decompress --stdout --threads="$(nproc)" "$tarball" |
		tar --extract --strip-components=1 --directory="$TREE" \
			--exclude='*/drivers/gpu/drm/amd/include/*' --exclude='*/boot/dts/*'
	tree_key >"$TREE/.daxdmem-key"
}

# same_or_copy FROM TO: TO becomes FROM, its times kept when it is so already.
same_or_copy() {
	cmp -s "$1" "$2" && return
	mkdir -p "$(dirname "$2")"
	cp "$1" "$2.daxdmem-new"
	mv "$2.daxdmem-new" "$2"
}

# patches: those for this kernel, in their order: mm/patches, and before them what only
# its series lacks.
patches() {
	local dir
	for dir in "$PATCHES/$(series)" "$PATCHES"; do
		[ ! -d "$dir" ] || find "$dir" -maxdepth 1 -name '*.patch' | sort
	done
}

# patched: the tree with the patches applied, and nothing left of patches that are gone.
# The first time a file is to be touched, the archive's version of it is put aside, an
# absent one as an empty mark; patches are applied to copies of these.
patched() {
	local aside=$TREE/.daxdmem-aside work list patch file touched
	work=$(mktemp -d)
	mkdir -p "$aside/file" "$aside/absent"
	list=$(patches)
	touched=$(patches | xargs --no-run-if-empty -d '\n' cat | sed -n 's/^\(---\|+++\) [ab]\/\([^\t]*\).*/\2/p' | sort -u)
	while IFS= read -r file; do
		if [ -z "$file" ] || [ -e "$aside/file/$file" ] || [ -e "$aside/absent/$file" ]; then
			continue
		fi
		if [ -e "$TREE/$file" ]; then
			mkdir -p "$(dirname "$aside/file/$file")"
			cp "$TREE/$file" "$aside/file/$file.new"
			mv "$aside/file/$file.new" "$aside/file/$file"
		else
			mkdir -p "$(dirname "$aside/absent/$file")"
			: >"$aside/absent/$file"
		fi
	done <<<"$touched"
	cp -r "$aside/file/." "$work"
	while IFS= read -r patch; do
		[ -n "$patch" ] || continue
		echo "applying $patch"
		patch --directory="$work" --strip=1 --batch --forward --no-backup-if-mismatch <"$patch" ||
			die "$patch does not apply to linux $(stock_release): see the lines above"
	done <<<"$list"
	(cd "$work" && find . -type f -printf '%P\n') | while IFS= read -r file; do
		same_or_copy "$work/$file" "$TREE/$file"
	done
	(cd "$aside/absent" && find . -type f -printf '%P\n') | while IFS= read -r file; do
		[ -e "$work/$file" ] || rm -f "$TREE/$file"
	done
	rm -rf "$work"
}

# configured: .config, when what it is made of has changed. Every line of the fragment
# must hold: kconfig drops what it takes for impossible without a word.
configured() {
	local key line wrong=0
	key=$(key "$FRAGMENT" "$TREE/drivers/dax/dmem/Kconfig" "$LAB_SCRIPTS/debug.sh")
	[ "$(cat "$TREE/.daxdmem-configured" 2>/dev/null)" != "$key" ] || return 0
	export KCONFIG_CONFIG=.config.daxdmem
	# Of two lines on one symbol kconfig takes the last. All at once: what the first two
	# select would stay, once it is in a finished configuration.
	cat "$TREE/arch/x86/configs/x86_64_defconfig" "$TREE/kernel/configs/kvm_guest.config" \
		"$FRAGMENT" >"$TREE/$KCONFIG_CONFIG"
	kbuild -s olddefconfig 2>&1 | sed '/warning: override: /d'
	while IFS= read -r line; do
		case $line in
		'# CONFIG_'*' is not set')
			line=${line#\# }
			! grep -q "^${line% is not set}=" "$TREE/$KCONFIG_CONFIG" && continue
			;;
		CONFIG_*) grep -qxF "$line" "$TREE/$KCONFIG_CONFIG" && continue ;;
		*) continue ;;
		esac
		echo "$FRAGMENT: does not hold in the finished configuration: $line"
		wrong=1
	done <"$FRAGMENT"
	((wrong == 0)) || die "the configuration is not what $FRAGMENT asks for: see the lines above"
	same_or_copy "$TREE/$KCONFIG_CONFIG" "$TREE/.config"
	unset KCONFIG_CONFIG
	printf '%s\n' "$key" >"$TREE/.daxdmem-configured"
}

# test_modules: what cases load beside the driver. No part of the tree.
test_modules() {
	mkdir -p "$OUT/modules"
	kbuild M="$CHECKOUT/tests/modules" MO="$OUT/modules" modules
}

# published: what VMs boot, put in place at once. A running VM keeps the old files open.
published() {
	local release new=$OUT/new
	release=$(kbuild -s kernelrelease)
	rm -rf "$new"
	mkdir -p "$new/root/usr/lib/modules/$release"
	kbuild -s modules_install DEPMOD=true \
		INSTALL_MOD_PATH="$new/root" MODLIB="$new/root/usr/lib/modules/$release"
	rm -f "$new/root/usr/lib/modules/$release/build"
	# Second-level guests boot the stock kernel: this one would take minutes there.
	ln -s "../$(stock_release)/vmlinuz" "$new/root/usr/lib/modules/$release/vmlinuz"
	depmod --basedir "$new/root" --moduledir /usr/lib/modules "$release"
	mksquashfs "$new/root" "$new/modules.squashfs" -comp lz4 -noappend -no-progress -no-xattrs -quiet
	cp "$TREE/arch/x86/boot/bzImage" "$new/vmlinuz"
	cp "$TREE/drivers/dax/dmem/dax_dmem.ko" "$OUT"/modules/*.ko "$new/"
	cp "$TREE/.config" "$new/config"
	printf '%s\n' "$release" >"$new/release"
	rm -rf "$OUT/old"
	[ ! -e "$OUT/kernel" ] || mv "$OUT/kernel" "$OUT/old"
	mv "$new" "$OUT/kernel"
	rm -rf "$OUT/old"
}
