# SPDX-License-Identifier: GPL-2.0-only
# Sourced by the setup scripts: paths in the cache, keys, locks, messages.
#
# The name of every folder in the cache contains a hash of its recipe. A folder is built in
# place under a lock, and is used only if it holds the stamp `.complete`: an interrupted download
# starts again, an interrupted build of a kernel or of the emulator goes on, of two builds at once one
# waits for the other, and nothing is built twice.
# shellcheck shell=bash disable=SC2034

set -euo pipefail
export LC_ALL=C.UTF-8

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scripts=$repo/scripts
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kvm-clock-guest
logs=$repo/build/log

# The first lines of a script are its help, unless it handles --help itself.
case ${1-} in
--help | -h)
	if ! grep -q -e --help "$0"; then
		sed -n '3,/^[^#]/s/^# \{0,1\}//p' "$0"
		exit
	fi
	;;
esac

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# key FILE...: 12 hex digits for the content of the files.
key() { cat -- "$@" | sha256sum | cut -c1-12; }

# series FOLDER: the patches in it, in order.
series() { find "$repo/$1" -name '*.patch' 2>/dev/null | sort; }

# The recipe is the key: versions are chosen when a folder is made, and stay until
# `make distclean`, so that a warm cache needs no network.
rust_dir=$cache/rust-$(key "$scripts/get-rust")
bindgen_dir=$cache/bindgen-$(key "$scripts/get-bindgen")
cargo_fuzz_dir=$cache/cargo-fuzz-$(key "$scripts/get-cargo-fuzz" "$scripts/get-rust")
vng_dir=$cache/virtme-ng-$(key "$scripts/get-virtme-ng")
z3_dir=$cache/z3-$(key "$scripts/get-z3")
mapfile -t qemu_patches < <(series patches/qemu/10.2)
qemu_dir=$cache/qemu-$(key "$scripts/get-qemu" "$scripts/qemu.sh" "${qemu_patches[@]}")
mapfile -t clock_guest_patches < <(series samples/qemu)
qemu_kvm_dir=$cache/qemu-kvm-$(key "$scripts/get-qemu-kvm" "$scripts/qemu.sh")
# Inside the other, as it is the same source with the series.
qemu_clock_guest_dir=$qemu_kvm_dir/clock-guest-$(key /dev/null "${clock_guest_patches[@]}")
guest_kernels_dir=$cache/guest-kernels-$(key "$scripts/get-guest-kernels")
linux_dir=$cache/linux-7.3-$(key "$scripts/get-linux")
linux_src=$linux_dir/src
linux_lock=$linux_dir/lock

# The newest libclang of Debian's packages that fits bindgen, see get-packages: libclang.so.1, or libclang-19.so.1.
libclang_dir() {
	local dir newest=
	while read -r dir; do
		if compgen -G "$dir/libclang.so.*" >/dev/null || compgen -G "$dir/libclang-[0-9]*.so.*" >/dev/null; then newest=$dir; fi
	done < <(printf '%s\n' /usr/lib/llvm-1[7-9]/lib | sort -V)
	[[ -n $newest ]] && echo "$newest"
}

# Put our toolchain first in PATH.
use_toolchain() {
	export PATH=$rust_dir/bin:$bindgen_dir/bin:$vng_dir/bin:$cargo_fuzz_dir/bin:$PATH
	LIBCLANG_PATH=$(libclang_dir) && export LIBCLANG_PATH
	# A newer clang than that may build the kernel, with options that it does not know.
	export BINDGEN_EXTRA_CLANG_ARGS=-Wno-unknown-warning-option
	# Neither rustup nor the caller's flags may change the build.
	unset RUSTC RUSTUP_TOOLCHAIN RUSTFLAGS CARGO_ENCODED_RUSTFLAGS LD_LIBRARY_PATH
	true
}

# The major version of the newest installed clang that has its linker and tools with it.
llvm_version() {
	local dir newest=
	while read -r dir; do
		[[ -x $dir/clang && -x $dir/ld.lld && -x $dir/llvm-ar ]] && newest=$dir
	done < <(printf '%s\n' /usr/lib/llvm-*/bin | sort -V)
	[[ $newest =~ llvm-([0-9]+)/ ]] && echo "${BASH_REMATCH[1]}"
}

# The kernels: the one that is tested, those with sanitizers, and those that are measured.
kernel_variants=(standard debug kcsan bench bench-off)

# kernel_fragments VARIANT: the files that make up its configuration; later ones override earlier ones.
kernel_fragments() {
	echo "$repo/tools/vm/kernel.config"
	[[ $1 != *-* ]] || echo "$repo/tools/vm/kernel-${1%%-*}.config"
	[[ $1 == standard ]] || echo "$repo/tools/vm/kernel-$1.config"
}

# linux_build_dir [VARIANT]: the kernel's build folder, one for each configuration and toolchain.
linux_build_dir() {
	local compilers fragments
	set -- "${1:-standard}"
	mapfile -t fragments < <(kernel_fragments "$1")
	compilers=$(
		cat "$rust_dir/version" "$bindgen_dir/version" 2>/dev/null
		libclang_dir
		if [[ $1 == standard ]]; then gcc --version 2>/dev/null | head -n1; else llvm_version; fi
	)
	echo "$linux_dir/build-$(key "$scripts/build-kernel" "${fragments[@]}" - <<<"$compilers")"
}

# The key of the series that must be applied to the source in the cache.
series_key() {
	local patches
	mapfile -t patches < <(series patches/linux/7.3)
	if ((${#patches[@]})); then key "${patches[@]}"; else echo none; fi
}

# files_of PATCH...: the files that these patches change.
files_of() { sed -n -E 's#^(---|\+\+\+) [ab]/([^\t]*).*#\2#p' /dev/null "$@" | sort -u; }

# stage_files DIR STAGE FILE...: copy the files of DIR/src to STAGE, without any series.
stage_files() {
	local dir=$1 stage=$2 file
	shift 2
	for file; do
		# Keep Debian's file, before the first change to it.
		if ! grep -qxF -- "$file" "$dir/touched" 2>/dev/null; then
			if [[ -e $dir/src/$file ]]; then
				install -D -p -m 644 "$dir/src/$file" "$dir/pristine/$file" || return
			fi
			echo "$file" >>"$dir/touched"
		fi
		if [[ -e $dir/pristine/$file ]]; then
			install -D -p -m 644 "$dir/pristine/$file" "$stage/$file" || return
		fi
	done
}

# carry_series DIR PATCH...: make the source DIR/src carry exactly these patches, whatever it
# carried before. The result is staged first: status 1, and nothing is changed, if one does
# not apply. Files that stay the same keep their time stamps.
carry_series() (
	dir=$1
	shift
	stage=$(mktemp -d "$dir/stage.XXXXXX") || exit
	trap 'rm -rf "$stage"' EXIT
	mapfile -t files < <({ files_of "$@"; cat "$dir/touched" 2>/dev/null; } | sort -u)
	stage_files "$dir" "$stage" "${files[@]}" || exit
	for patch; do
		say "applying ${patch##*/}"
		patch --directory="$stage" -p1 --fuzz=0 --force --no-backup-if-mismatch <"$patch" || exit 1
	done
	for file in "${files[@]}"; do
		if [[ ! -e $stage/$file ]]; then
			rm -f "$dir/src/$file"
		elif ! cmp -s "$stage/$file" "$dir/src/$file"; then
			install -D -m 644 "$stage/$file" "$dir/src/$file" || exit
		fi
	done
)

# once DIR FUNCTION [--resume]: make DIR with FUNCTION unless it is complete. With --resume, FUNCTION finds what an
# interrupted build left; otherwise it starts with an empty folder.
once() {
	local dir=$1 make=$2 resume=${3-} lock
	[[ -e $dir/.complete ]] && return
	mkdir -p "$cache"
	exec {lock}>"$dir.lock"
	flock --nonblock "$lock" || { say "waiting for another setup that makes $dir"; flock "$lock"; }
	if [[ ! -e $dir/.complete ]]; then
		[[ -n $resume ]] || rm -rf "$dir"
		mkdir -p "$dir"
		"$make" "$dir"
		touch "$dir/.complete"
	fi
	exec {lock}>&-
}

# The locks of apt and dpkg. Unattended upgrades hold them for minutes on a machine that has just booted.
apt_locks=(/var/lib/apt/lists/lock /var/lib/dpkg/lock-frontend /var/lib/dpkg/lock /var/cache/apt/archives/lock)
# How long to wait for them, s.
apt_patience=1800

# lock_holder FILE: the process that holds the POSIX lock on FILE; nothing if none does.
lock_holder() {
	local inode
	inode=$(stat -c %i "$1" 2>/dev/null) || return 0
	awk -v end=":$inode" '$2 == "POSIX" && substr($6, length($6) - length(end) + 1) == end { print $5; exit }' /proc/locks
}

# wait_for_apt: wait until nobody holds a lock of apt. Its DPkg::Lock::Timeout does not cover the lists.
wait_for_apt() {
	local lock pid deadline=$((SECONDS + apt_patience))
	for lock in "${apt_locks[@]}"; do
		pid=$(lock_holder "$lock")
		if [[ -z $pid ]]; then continue; fi
		say "waiting for process $pid ($(cat "/proc/$pid/comm" 2>/dev/null || echo unknown)), which holds $lock"
		while [[ -n $(lock_holder "$lock") ]]; do
			((SECONDS < deadline)) || die "$lock is still held by process $(lock_holder "$lock") after $apt_patience s"
			sleep 1
		done
	done
}

# as_root CMD...: run a command as root; it must not prompt. apt-get waits for locks that others hold.
as_root() {
	if [[ $1 == apt-get ]]; then
		wait_for_apt
		set -- apt-get -o DPkg::Lock::Timeout="$apt_patience" "${@:2}"
	fi
	if [[ $(id -u) == 0 ]]; then
		env DEBIAN_FRONTEND=noninteractive "$@"
	else
		command -v sudo >/dev/null || die "not root and no sudo: run '$*' as root yourself"
		sudo env DEBIAN_FRONTEND=noninteractive "$@"
	fi
}

# The mirror of Debian's main archive that this system uses.
debian_mirror() {
	apt-get indextargets --format '$(CREATED_BY) $(SUITE) $(CODENAME) $(LABEL) $(REPO_URI)' |
		sed -n 's/^Packages .* Debian \(.*\)$/\1/p' | head -n1
}

# private_apt DIR TYPE SUITE...: from now on, apt in this process uses only TYPE (deb, deb-src) of
# these suites of Debian's main archive, and keeps all its files in DIR.
private_apt() {
	local dir=$1 type=$2 uri keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	uri=$(debian_mirror)
	if [[ -z $uri ]]; then
		as_root apt-get update -q
		uri=$(debian_mirror)
	fi
	[[ -n $uri ]] || die "no Debian archive among this system's apt sources"
	shift 2
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	printf "$type [signed-by=$keyring] $uri %s main\n" "$@" >"$dir/sources.list"
	cat >"$dir/apt.conf" <<-CONF
		Dir::State::Lists "$dir/lists";
		Dir::Cache "$dir/cache";
		Dir::Etc::SourceList "$dir/sources.list";
		Dir::Etc::SourceParts "/dev/null";
		Acquire::Languages "none";
		// A mirror may lag behind; its content is signed all the same.
		Acquire::Check-Valid-Until "false";
	CONF
	export APT_CONFIG=$dir/apt.conf
	apt-get update -q
}

# lock_kernel: lock the kernel of the cache until this process ends, so that no other
# clone's setup changes it meanwhile.
lock_kernel() {
	local lock
	exec {lock}<"$linux_lock"
	flock --shared "$lock"
}
