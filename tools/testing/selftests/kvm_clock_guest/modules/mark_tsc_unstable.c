// SPDX-License-Identifier: GPL-2.0-only
/*
 * Marks the host's TSC unstable, as the kernel itself does when it finds out.
 * There is no way back but a reboot.  For src/bin/unstable-tsc.rs.
 */
#include <linux/module.h>

#include <asm/tsc.h>

static int __init mark_tsc_unstable_init(void)
{
	mark_tsc_unstable("selftest");
	return 0;
}
module_init(mark_tsc_unstable_init);

MODULE_DESCRIPTION("Marks the TSC unstable, for a selftest of kvm_clock_guest");
MODULE_LICENSE("GPL");
