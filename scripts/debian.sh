# SPDX-License-Identifier: GPL-2.0-only
# Sourced by the scripts that build for Debian's own kernel: its paths in the cache, and a function
# that runs a command in the Debian release that it was built in.
# shellcheck shell=bash disable=SC2034

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

debian_dir=$cache/debian-7.3-$(key "$scripts/get-debian-kernel" "$scripts/debian.sh")
debian_root=$debian_dir/root

# The folder that `tools/vm/host run` takes as --kdir, one for each series and way of building it.
debian_kdir() { echo "$debian_dir/kdir-$(key "$scripts/build-debian-kvm" - <<<"$(series_key)")"; }

# The kernel's release, 7.3.4+deb13-amd64, and its folders as they are named in that root.
debian_release() { cat "$debian_dir/release"; }
debian_headers() { echo "/usr/src/linux-headers-$(debian_release)"; }
# The part that Debian's architectures share, without the flavour's name.
debian_common() { local release; release=$(debian_release); echo "/usr/src/linux-headers-${release%-amd64}-common"; }

# in_debian [BWRAP OPTION...] -- COMMAND...: run a command in that root, which has only those files of this
# system that the options add. Its tools need a libc that is newer than ours.
in_debian() {
	local options=()
	while [[ $1 != -- ]]; do options+=("$1") && shift; done
	bwrap --ro-bind "$debian_root" / --dev /dev --proc /proc --tmpfs /tmp --die-with-parent \
		--clearenv --setenv PATH /usr/bin --setenv LC_ALL C.UTF-8 "${options[@]}" "$@"
}

# The variables of Debian's build, as in .kernelvariables of its headers.
debian_make=(make ARCH=x86 CROSS_COMPILE=x86_64-linux-gnu- CC=x86_64-linux-gnu-gcc-14 DEB_BUILD_ARCH=amd64)

# The series' option, which Debian's configuration does not have.
debian_option=(CONFIG_KVM_CLOCK_GUEST=y KCFLAGS=-DCONFIG_KVM_CLOCK_GUEST=1)
