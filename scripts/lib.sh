# SPDX-License-Identifier: GPL-2.0-only
# Sourced by the setup scripts: where things are in the cache, keys, locks, messages.
#
# Every folder of the cache is named by a hash of what shapes it, is built in place under
# a lock, and counts only when it holds the stamp `.complete`. So an interrupted build
# is done again, two builds at once wait for each other, and nothing is built twice.
# shellcheck shell=bash disable=SC2034

set -euo pipefail
export LC_ALL=C.UTF-8

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scripts=$repo/scripts
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kvm-clock-guest
logs=$repo/build/log

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# key FILE...: 12 hex digits for the content of the files.
key() { cat -- "$@" | sha256sum | cut -c1-12; }

# The recipe is the key: versions are chosen when a folder is made and stay until
# `make distclean`, so a warm cache needs no network.
rust_dir=$cache/rust-$(key "$scripts/get-rust")
bindgen_dir=$cache/bindgen-$(key "$scripts/get-bindgen" "$scripts/get-rust")
vng_dir=$cache/virtme-ng-$(key "$scripts/get-virtme-ng")
z3_dir=$cache/z3-$(key "$scripts/get-z3")
mapfile -t qemu_patches < <(find "$repo/patches/qemu/7.2" -name '*.patch' 2>/dev/null | sort)
qemu_dir=$cache/qemu-$(key "$scripts/get-qemu" "${qemu_patches[@]}")
linux_dir=$cache/linux-7.3-$(key "$scripts/get-linux")
linux_src=$linux_dir/src
linux_lock=$linux_dir/lock

# The newest libclang of Debian's packages, for bindgen.
libclang_dir() {
	local dir newest=
	while read -r dir; do
		[[ -e $dir/libclang.so.1 ]] && newest=$dir
	done < <(printf '%s\n' /usr/lib/llvm-*/lib | sort -V)
	[[ -n $newest ]] && echo "$newest"
}

# Put our toolchain first in PATH.
use_toolchain() {
	export PATH=$rust_dir/bin:$bindgen_dir/bin:$vng_dir/bin:$PATH
	LIBCLANG_PATH=$(libclang_dir) && export LIBCLANG_PATH
	# Neither rustup's choice nor the caller's flags may change what is built.
	unset RUSTC RUSTUP_TOOLCHAIN RUSTFLAGS CARGO_ENCODED_RUSTFLAGS LD_LIBRARY_PATH
	true
}

# The kernel's build folder: one for each configuration and toolchain.
linux_build_dir() {
	local compilers
	compilers=$(cat "$rust_dir/version" "$bindgen_dir/version" 2>/dev/null; gcc --version 2>/dev/null | head -n1)
	echo "$linux_dir/build-$(key "$scripts/build-kernel" "$repo/tools/vm/kernel.config" - <<<"$compilers")"
}

# The series that the source in the cache must carry.
series_key() {
	local patches
	mapfile -t patches < <(find "$repo/patches/linux/7.3" -name '*.patch' 2>/dev/null | sort)
	if ((${#patches[@]})); then key "${patches[@]}"; else echo none; fi
}

# once DIR FUNCTION: make DIR with FUNCTION unless it is complete.
once() {
	local dir=$1 make=$2 lock
	[[ -e $dir/.complete ]] && return
	mkdir -p "$cache"
	exec {lock}>"$dir.lock"
	flock --nonblock "$lock" || { say "waiting for another setup that makes $dir"; flock "$lock"; }
	if [[ ! -e $dir/.complete ]]; then
		rm -rf "$dir"
		mkdir -p "$dir"
		"$make" "$dir"
		touch "$dir/.complete"
	fi
	exec {lock}>&-
}

# as_root CMD...: run it as root, without questions.
as_root() {
	if [[ $(id -u) == 0 ]]; then
		env DEBIAN_FRONTEND=noninteractive "$@"
	else
		command -v sudo >/dev/null || die "not root and no sudo: install by hand what '$*' would"
		sudo env DEBIAN_FRONTEND=noninteractive "$@"
	fi
}

# The mirror that this system uses for Debian's main archive.
debian_mirror() {
	apt-get indextargets --format '$(CREATED_BY) $(SUITE) $(CODENAME) $(LABEL) $(REPO_URI)' |
		sed -n 's/^Packages .* Debian \(.*\)$/\1/p' | head -n1
}

# private_apt DIR TYPE SUITE: from now on, apt of this process knows TYPE (deb, deb-src) of
# SUITE of Debian's main archive and nothing else, and keeps all it writes in DIR.
private_apt() {
	local dir=$1 uri keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	uri=$(debian_mirror)
	if [[ -z $uri ]]; then
		as_root apt-get update -q
		uri=$(debian_mirror)
	fi
	[[ -n $uri ]] || die "no Debian archive among this system's apt sources"
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	echo "$2 [signed-by=$keyring] $uri $3 main" >"$dir/sources.list"
	cat >"$dir/apt.conf" <<-CONF
		Dir::State::Lists "$dir/lists";
		Dir::Cache "$dir/cache";
		Dir::Etc::SourceList "$dir/sources.list";
		Dir::Etc::SourceParts "/dev/null";
		Acquire::Languages "none";
	CONF
	export APT_CONFIG=$dir/apt.conf
	apt-get update -q
}

# lock_kernel: hold the kernel of the cache until this process ends, so that no other
# clone's setup changes it meanwhile.
lock_kernel() {
	local lock
	exec {lock}<"$linux_lock"
	flock --shared "$lock"
}
