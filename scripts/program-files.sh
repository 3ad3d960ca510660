# SPDX-License-Identifier: GPL-2.0-only
# Sourced by scripts/install and scripts/make-debs: the files of clockguest.
# shellcheck shell=bash

# program_files PREFIX PAGE...: prints MODE SOURCE TARGET, one a line, of the program with these man pages.
program_files() {
	local prefix=$1 page
	shift
	echo "755 target/release/clockguest $prefix/bin/clockguest"
	for page; do
		echo "644 $page $prefix/share/man/man1/${page##*/}"
	done
	echo "644 build/completion/clockguest $prefix/share/bash-completion/completions/clockguest"
	echo "644 build/completion/_clockguest $prefix/share/zsh/site-functions/_clockguest"
	echo "644 build/completion/clockguest.fish $prefix/share/fish/vendor_completions.d/clockguest.fish"
}

# install_files: reads such lines, and copies the files.
install_files() {
	local mode source target
	while read -r mode source target; do install -D -m "$mode" "$source" "$target"; done
}
