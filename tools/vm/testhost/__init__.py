# SPDX-License-Identifier: GPL-2.0-only
"""Test hosts: emulated machines that boot the patched kernel. tools/vm/host is the command line."""
