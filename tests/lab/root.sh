# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The lab's root: Debian trixie with the tools in the file packages, and the
# newest kernel of trixie-backports that is complete. Sourced by setup.

SUITE=trixie
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
# First kernel series with what the driver needs (huge PFNMAP leaves, Rust).
OLDEST_SERIES=7.2

root_key() {
	key "$LAB_SCRIPTS/packages" "$LAB_SCRIPTS/root.sh"
}

root_ready() {
	[ "$(cat "$ROOT/etc/daxdmem-lab.key" 2>/dev/null)" = "$(root_key)" ]
}

# host_mirror RELEASE DEFAULT: where a Debian host gets its own packages of
# RELEASE from, which may be a mirror nearer than the default.
host_mirror() {
	local codename uri=
	codename=$(. /etc/os-release && [ "${ID:-}" = debian ] && printf '%s' "${VERSION_CODENAME:-}") || codename=
	if [ -n "$codename" ]; then
		# shellcheck disable=SC2016 # expanded by apt
		uri=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
			awk -v r="${1/CODENAME/$codename}" '$1 == r && $2 == "main" && $3 ~ /^https?:/ { print $3; exit }') || uri=
	fi
	printf '%s' "${uri:-$2}"
}

# sources: the root's sources.list.
sources() {
	local main security
	main=${DAXDMEM_MIRROR:-$(host_mirror CODENAME http://deb.debian.org/debian)}
	security=${DAXDMEM_SECURITY_MIRROR:-$(host_mirror CODENAME-security http://deb.debian.org/debian-security)}
	printf 'deb %s %s main\n' "${main%/}" "$SUITE" "${main%/}" "$SUITE-updates" \
		"${security%/}" "$SUITE-security" "${main%/}" "$SUITE-backports"
}

# install_host_tools: the only packages the host itself gets.
install_host_tools() {
	local missing=()
	command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
	[ -f "$KEYRING" ] || missing+=(debian-archive-keyring)
	[ "${#missing[@]}" -gt 0 ] || return 0
	command -v apt-get >/dev/null ||
		die "no apt-get here to install ${missing[*]}: use a Debian or Ubuntu machine"
	apt-get update
	apt-get install --yes --no-install-recommends "${missing[@]}"
}

# complete_kernels: reads Packages files, prints "VERSION SERIES RELEASE" for
# each kernel whose image, modules, headers and source are all there in the very
# same version. The signed image often trails the rest by days.
complete_kernels() {
	awk -v oldest="$OLDEST_SERIES" '
		$1 == "Package:" { name = $2 }
		$1 == "Version:" { have[name, $2]; versions[name] = versions[name] " " $2 }
		END {
			split(oldest, old, ".")
			for (name in versions) {
				# Plain amd64 only: no cloud, rt or dbg flavour.
				if (name !~ /^linux-binary-[0-9][^-]*-amd64$/)
					continue
				release = substr(name, length("linux-binary-") + 1)
				split(release, part, ".")
				if (part[1] < old[1] + 0 || (part[1] == old[1] + 0 && part[2] < old[2] + 0))
					continue
				series = part[1] "." part[2] + 0
				n = split(versions[name], list, " ")
				for (i = 1; i <= n; i++)
					if ((("linux-modules-" release), list[i]) in have &&
					    (("linux-headers-" release), list[i]) in have &&
					    (("linux-source-" series), list[i]) in have)
						print list[i], series, release
			}
		}'
}

# resolve_kernel DIR: writes "VERSION SERIES RELEASE" of the newest complete
# kernel to DIR/kernel, from an apt state of its own.
resolve_kernel() {
	local dir=$1 proxy
	mkdir -p "$dir"/{etc/preferences.d,state/lists/partial,cache/archives/partial}
	: >"$dir/status"
	sources | sed -n "s|^deb \(.* $SUITE-backports\)|deb [arch=amd64 signed-by=$KEYRING] \1|p" >"$dir/etc/sources.list"
	proxy=$(apt-config shell p Acquire::http::Proxy | sed -n "s/^p='\(.*\)'$/\1/p")
	cat >"$dir/apt.conf" <<-CONF
		Dir "$dir";
		Dir::State "$dir/state";
		Dir::State::status "$dir/status";
		Dir::Cache "$dir/cache";
		Dir::Etc "$dir/etc";
		APT::Architecture "amd64";
		APT::Architectures { "amd64"; };
		APT::Sandbox::User "root";
		Acquire::Languages "none";
		Acquire::Retries "3";
		${proxy:+Acquire::http::Proxy "$proxy";}
	CONF
	export APT_CONFIG=$dir/apt.conf
	apt-get update
	# shellcheck disable=SC2016 # expanded by apt
	apt-get indextargets --format '$(FILENAME)' 'Created-By: Packages' |
		xargs /usr/lib/apt/apt-helper cat-file | complete_kernels |
		sort --version-sort | tail -n 1 >"$dir/kernel"
	cat "$dir/kernel"
	[ -s "$dir/kernel" ] ||
		die "$SUITE-backports has no complete kernel of series $OLDEST_SERIES or newer: try again later"
}

# build_root NEW APT: makes the root in the directory NEW; APT is the
# directory resolve_kernel has filled.
build_root() {
	local new=$1 version series release proxy
	read -r version series release <"$2/kernel"
	proxy=$(apt-config shell p Acquire::http::Proxy | sed -n "s/^p='\(.*\)'$/\1/p")
	# Documentation only costs time here, licences stay. A root that a power cut
	# spoils has no stamp yet, so dpkg need not wait for the disk.
	sources | mmdebstrap --mode=root --variant=minbase --format=directory \
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
		--dpkgopt='path-exclude=/usr/src/rustc-*/src/tools/*' \
		--dpkgopt='path-exclude=/usr/src/rustc-*/compiler/rustc_*' \
		--include="$(sed 's/#.*//' "$LAB_SCRIPTS/packages" | xargs)" \
		--include="linux-binary-$release=$version linux-modules-$release=$version" \
		--include="linux-headers-$release=$version linux-source-$series=$version" \
		"$SUITE" "$new" -
	echo daxdmem-lab >"$new/etc/hostname"
	printf '127.0.0.1 localhost\n127.0.1.1 daxdmem-lab\n' >"$new/etc/hosts"
	rm -f "$new/etc/resolv.conf"
	: >"$new/etc/resolv.conf"
	mkdir -p "$new/src" "$new$LAB"
	chroot "$new" depmod "$release"
	printf '%s\n' "$release" >"$new/etc/daxdmem-lab.release"
	root_key >"$new/etc/daxdmem-lab.key"
}

# replace_root NEW: puts NEW in the old root's place once no sandbox runs.
replace_root() {
	exec 8>"$CACHE/use.lock"
	hold 8 "root: waiting for running sandboxes to end"
	rm -rf --one-file-system "$CACHE/root.old"
	[ ! -e "$ROOT" ] || mv "$ROOT" "$CACHE/root.old"
	mv "$1" "$ROOT"
	exec 8>&-
	rm -rf --one-file-system "$CACHE/root.old"
}
