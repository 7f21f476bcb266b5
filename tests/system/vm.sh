# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The machine: a QEMU that boots a whole Debian from its disk, and a line to its
# root (see control). Sourced by run; everything happens inside the sandbox.

# As tests/runner/src/machine.rs has it, and why: byte-wise string instructions
# and five levels of page tables are slow under emulation.
CPU=max,erms=off,fsrm=off,fzrm=off,fsrs=off,fsrc=off,la57=off,+svm
# From 0 to 3 GiB and from 4 to 9 GiB.
MEMORY=8G
# Fewer help where many share the host's.
CPUS=${DAXDMEM_SYSTEM_CPUS:-2}
PATIENCE=${DAXDMEM_PATIENCE:-1}
# Texts by which the kernel says that something is wrong: those the cases of
# tests/agent heed.
COMPLAINTS=$(sed -n '/^pub const COMPLAINTS/,/^];/s/^ *"\(.*\)",$/\1/p' tests/agent/src/kernel_log.rs)

# Further disks, read only: vdb and so on.
DISKS=()
VM_PID=
BOOT=
OUTPUT=
DEADLINE=
LOOKED=

# fail WHY: ends the test. Tests run in a subshell of their own.
fail() {
	printf '%s\n' "$*" >"$RUN/reason"
	exit 1
}

# note WHAT: a line for whoever reads the report.
note() {
	printf '# %s: %s\n' "$TEST" "$*"
}

# overlay DISK: makes disk.qcow2 over DISK, which stays as it is.
overlay() {
	qemu-img create -q -f qcow2 -F "${1##*.}" -b "$1" "$RUN/disk.qcow2"
}

# vm_start DISK [LIMIT]: switches the machine on; LIMIT for vm_up.
vm_start() {
	local image drives=()
	for image in "${DISKS[@]}"; do
		drives+=(-drive "file=$image,format=raw,if=none,id=${image##*/},readonly=on" -device "virtio-blk-pci,drive=${image##*/}")
	done
	rm -f "$RUN/port".{in,out}
	mkfifo "$RUN/port".{in,out}
	: >>"$RUN/console.log"
	# The machine's own clock; unsafe: a disk that a power cut spoils is made anew.
	setpriv --pdeathsig KILL qemu-system-x86_64 -name "$TEST" -nodefaults -no-user-config -display none -machine pc \
		-accel tcg,thread=multi -cpu "$CPU" -smp "$CPUS" -m "$MEMORY" \
		-drive "file=$1,format=${1##*.},if=none,id=disk,cache=unsafe,discard=unmap" -device virtio-blk-pci,drive=disk \
		"${drives[@]}" \
		-chardev "file,id=console,path=$RUN/console.log,append=on" -serial chardev:console \
		-device virtio-serial-pci -chardev "pipe,id=control,path=$RUN/port" \
		-device virtserialport,name=daxdmem.control,chardev=control \
		>>"$RUN/qemu.log" 2>&1 </dev/null &
	VM_PID=$! WAITED=0
	exec {VM_IN}<>"$RUN/port.in" {VM_OUT}<>"$RUN/port.out"
	BOOT=
	vm_up "${2:-}"
}

# vm_line: one line from the machine in LINE; 1 when a second passes without.
vm_line() {
	local part=
	if IFS= read -r -t 1 -u "$VM_OUT" part; then
		LINE=$PARTIAL$part PARTIAL=
		return
	fi
	PARTIAL+=$part
	kill -0 "$VM_PID" 2>/dev/null || fail "QEMU ended: $(tail -n 1 "$RUN/qemu.log"); $(vm_last)"
	! grep -q 'Kernel panic' "$RUN/console.log" || fail "$(grep -m 1 'Kernel panic' "$RUN/console.log")"
	return 1
}
LINE=
PARTIAL=

# vm_allow SECONDS: the limit for what comes. Time in which the machine was kept
# waiting for a processor of the host does not count: a busy host makes it slow,
# which is no sign of a hang.
vm_allow() {
	vm_waited
	DEADLINE=$(($1 * PATIENCE + SECONDS - WAITED))
	LOOKED=$SECONDS
}

# vm_waited: seconds that its busiest thread has waited so far, in WAITED. When
# QEMU ends, the threads that have waited most go first: they count on.
vm_waited() {
	local now
	now=$(cat "/proc/$VM_PID"/task/*/schedstat 2>/dev/null |
		awk '$2 > most { most = $2 } END { printf "%d", most / 1e9 }') || true
	((now <= WAITED)) || WAITED=$now
}

# vm_overdue: whether the limit has passed; looks once in a second at most.
vm_overdue() {
	((SECONDS != LOOKED)) || return
	LOOKED=$SECONDS
	vm_waited
	((SECONDS - WAITED >= DEADLINE))
}

# vm_last: the last line on the console.
vm_last() {
	tail -c 1000 "$RUN/console.log" | tr -d '\r' | sed -n '$p'
}

# vm_up [LIMIT]: waits until the machine has booted once more.
vm_up() {
	vm_allow "${1:-240}"
	while :; do
		if vm_line && [[ $LINE == @* && $LINE != "@$BOOT" ]]; then
			BOOT=${LINE#@}
			return
		fi
		! vm_overdue || fail "no sign of life after boot; console: $(vm_last)"
	done
}

# vm LIMIT SCRIPT: root's shell runs SCRIPT; its output in OUTPUT, its status
# returned. LIMIT in seconds is for a hang, not for speed.
vm() {
	local began=$SECONDS
	vm_allow "$1"
	printf '[%s] %s\n' "$TEST" "$2" >>"$RUN/commands.log"
	base64 -w 0 <<<"$2" >&"$VM_IN"
	printf '\n' >&"$VM_IN"
	OUTPUT=
	while :; do
		if vm_line; then
			case $LINE in
			'|'*)
				printf '%s\n' "$LINE" >>"$RUN/commands.log"
				OUTPUT+=${OUTPUT:+$'\n'}${LINE#|}
				;;
			=*)
				printf '[status %s, %d s]\n' "${LINE#=}" $((SECONDS - began)) >>"$RUN/commands.log"
				return "${LINE#=}"
				;;
			@*) fail "the machine booted again during: $2" ;;
			esac
		fi
		! vm_overdue || fail "no end after $1 s: $2; last line: ${OUTPUT##*$'\n'}"
	done
}

# must LIMIT SCRIPT: vm, and a failure ends the test.
must() {
	vm "$@" || fail "status $?: $2: $(tail -n 5 <<<"$OUTPUT" | tr '\n' ';')"
}

# vm_reboot [LIMIT]: the way an operator reboots.
vm_reboot() {
	vm 60 'systemctl --no-block reboot' || fail "reboot refused: $OUTPUT"
	vm_up
}

# vm_settled [LIMIT]: the boot is over and everything that should run does.
vm_settled() {
	local state
	# udev's work is none of systemd's jobs, and /dev/kvm is part of it.
	vm "${1:-300}" 'systemctl is-system-running --wait && udevadm settle --timeout=250' && return
	state=$OUTPUT
	vm 60 'systemctl --failed --no-legend --plain; journalctl --no-pager --boot --priority warning --lines 60' || true
	fail "the system is $state: ${OUTPUT%%$'\n'*}"
}

# vm_stop: switches it off the way an operator does, so that its disk is whole.
vm_stop() {
	vm 60 'systemctl --no-block poweroff' || fail "poweroff refused: $OUTPUT"
	vm_allow 120
	while kill -0 "$VM_PID" 2>/dev/null; do
		! vm_overdue || fail "no end after poweroff; console: $(vm_last)"
		sleep 0.2
	done
	wait "$VM_PID" 2>/dev/null || true
	exec {VM_IN}>&- {VM_OUT}>&-
	VM_PID=
}

# vm_kill: whatever it is doing.
vm_kill() {
	[ -z "$VM_PID" ] || kill -KILL "$VM_PID" 2>/dev/null || true
	VM_PID=
}

# complaints: what the kernel complained of, but for the texts in EXPECTED.
complaints() {
	tr -d '\r' <"$RUN/console.log" | grep -E '^\[ *[0-9]+\.[0-9]+\]' | grep -F -e "$COMPLAINTS" |
		grep -v -F -e "${EXPECTED:-a text that no kernel ever prints}" || true
}
