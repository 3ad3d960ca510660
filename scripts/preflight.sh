# SPDX-License-Identifier: GPL-2.0-only
# Sourced by scripts/setup: what has to be true of this machine before anything is built. Each check prints
# nothing and returns 0, or ends the process with an error that says what to do.
# shellcheck shell=bash

# check_machine [NAME]: kernel, KVM and emulator are for x86-64 (NAME, default: this machine's).
check_machine() {
	local name=${1:-$(uname -m)}
	[[ $name == x86_64 ]] || die "this machine is $name, not x86-64: KVM's clocks, the module and the emulator are x86-64 code"
	command -v apt-get >/dev/null ||
		die "this setup needs Debian 12 or a derivative of it: no apt-get here. Elsewhere, build a kernel tree of your own, see CONTRIBUTING.rst"
}

# existing DIR: prints DIR, or the folder that it will be made in.
existing() {
	local dir=$1
	while [[ ! -e $dir ]]; do dir=$(dirname "$dir"); done
	echo "$dir"
}

# check_writable DIR WHAT: DIR, or the folder that it will be made in, takes files.
check_writable() {
	local dir
	dir=$(existing "$1")
	# -w is false on a read-only mount, too.
	[[ -d $dir && -w $dir ]] || die "cannot write to $dir, where $2"
}

# check_clone: build/ and target/ can be written.
check_clone() {
	local dir
	for dir in build target; do
		check_writable "$repo/$dir" "$dir/ of this clone has to be: copy the clone to a folder of yours, e.g. git clone $repo ~/kvm-clock-guest"
	done
}

# check_space DIR MB WHAT [FREE_UP]: as many MB are free where DIR is or will be.
check_space() {
	local dir free
	dir=$(existing "$1")
	free=$(df --output=avail -B1M "$dir" | tail -n1)
	((free >= $2)) || die "only ${free// /} MB are free in $dir, but $3 need some $2 MB; ${4:-make room there}"
}

# check_root PACKAGE...: these packages, which are missing, can be installed without a prompt in the middle.
check_root() {
	(($#)) && [[ $(id -u) != 0 ]] || return 0
	local how="as root, run: apt-get install --no-install-recommends $*"
	command -v sudo >/dev/null || die "Debian packages are missing, and installing them needs root or sudo. Either run this as root, or, $how"
	# A step cannot ask for a password: ask once, here.
	if ! sudo -n true 2>/dev/null; then
		[[ -t 0 ]] || die "Debian packages are missing, and sudo needs a password, for which there is no terminal. Run 'sudo -v' first, or, $how"
		sudo -v || die "sudo was refused. Instead, $how"
	fi
}

# check_network: the archive of this system's apt sources answers.
check_network() {
	local uri to
	# This needs no lists; mirrors on a disk need no network.
	uri=$(apt-get update --print-uris 2>/dev/null | sed -n "s/^'\(http[^']*InRelease\)'.*/\1/p" | head -n1)
	[[ -n $uri ]] || return 0
	to=$(mktemp -d)
	# By apt's own means, for its proxies and certificates.
	if ! /usr/lib/apt/apt-helper -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 \
		download-file "$uri" "$to/file" >"$to/log" 2>&1; then
		sed 's/^/  /' "$to/log" >&2
		rm -rf "$to"
		die "no network: apt cannot fetch $uri, and something is missing in $cache. apt uses the proxies in /etc/apt/apt.conf.d and in http_proxy"
	fi
	rm -rf "$to"
}
