# SPDX-License-Identifier: GPL-2.0-only
# Sourced by the scripts that build QEMU: how its source is chosen and fetched. It is Debian's, from a private apt
# configuration that leaves the system's sources as they are: the newest available one that takes our patches and builds.
# shellcheck shell=bash disable=SC2034

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# The oldest is what the patches were written for; the suites are those that may have it.
oldest=1:10.2.2
suites=(sid forky trixie-backports)
qemu_needs=(libfdt-dev libglib2.0-dev ninja-build pkg-config zlib1g-dev)

# The system's own Python and tools, whatever the caller's PATH has first.
PATH=/usr/sbin:/usr/bin:/sbin:/bin

# Available versions, newest first. A suite may list one that its pool no longer has.
versions() {
	local version
	apt-cache showsrc --only-source qemu | sed -n 's/^Version: //p' | sort -u -V -r | while read -r version; do
		if dpkg --compare-versions "$version" ge "$oldest"; then echo "$version"; fi
	done
}

# fetch DIR VERSION: unpack it, with Debian's patches, as DIR/src.
fetch() {
	local dir=$1 version=$2
	rm -rf "$dir"/apt/qemu* "$dir"/{src,build,pristine,touched} &&
		(cd "$dir/apt" && apt-get source -q "qemu=$version") &&
		mv "$dir"/apt/qemu-*/ "$dir/src" &&
		# Two thirds of it: the sources of firmware that Debian has packages of.
		rm -rf "$dir/src/roms"
}

# configure DIR OPTION...: prepare DIR/build for one program that emulates a PC and needs few libraries.
configure() {
	local dir=$1
	shift
	mkdir "$dir/build" &&
		cd "$dir/build" &&
		../src/configure --python="$dir/venv/bin/python3" --target-list=x86_64-softmmu --without-default-features \
			--disable-docs --disable-guest-agent --disable-install-blobs --disable-werror --disable-debug-info \
			--firmwarepath=/usr/share/qemu:/usr/share/seabios "$@"
}

# build_newest DIR FITS COMPILE: make DIR/src and DIR/build of the newest source for which both functions succeed, given DIR.
build_newest() {
	local dir=$1 fits=$2 compile=$3 version why
	"$scripts/get-packages" "${qemu_needs[@]}" "${@:4}"
	private_apt "$dir/apt" deb-src "${suites[@]}"
	# Debian's source has none of QEMU's own copies of what its build needs.
	/usr/bin/python3 -m venv "$dir/venv"
	"$dir/venv/bin/pip" install meson==1.10.0 || "$dir/venv/bin/pip" install meson
	for version in $(versions); do
		say "trying qemu $version"
		if ! fetch "$dir" "$version"; then
			why='it cannot be fetched'
		elif ! "$fits" "$dir"; then
			why='the patches do not apply to it'
		elif ! "$compile" "$dir"; then
			why='it does not build'
		else
			echo "$version" >"$dir/version"
			rm -rf "$dir/apt"
			return
		fi
		say "passing over qemu $version: $why"
	done
	die "no qemu ${oldest#*:} or later can be had from ${suites[*]}"
}
