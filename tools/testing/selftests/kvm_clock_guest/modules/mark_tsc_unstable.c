// SPDX-License-Identifier: GPL-2.0-only
/*
 * Marks the host's TSC unstable, as the kernel does when it detects that.  Only a
 * reboot ends this.  For src/bin/unstable-tsc and
 * src/bin/host-sleep.
 */
#include <linux/cpuhotplug.h>
#include <linux/module.h>
#include <linux/string.h>
#include <linux/syscore_ops.h>

#include <asm/tsc.h>

static char *at = "load";
module_param(at, charp, 0444);
MODULE_PARM_DESC(at, "load; suspend: before KVM suspends; online: before a CPU boots, also at resume");

static void mark(void)
{
	mark_tsc_unstable("selftest");
}

static int mark_at_suspend(void *data)
{
	mark();
	return 0;
}

static int mark_at_online(unsigned int cpu)
{
	mark();
	return 0;
}

/* The ops registered last are suspended first. */
static const struct syscore_ops suspend_ops = { .suspend = mark_at_suspend };
static struct syscore syscore = { .ops = &suspend_ops };

static int __init mark_tsc_unstable_init(void)
{
	int ret;

	/* Without a module_exit() the module cannot be unloaded. */
	if (!strcmp(at, "load")) {
		mark();
		return 0;
	}
	if (!strcmp(at, "online")) {
		ret = cpuhp_setup_state_nocalls(CPUHP_BP_PREPARE_DYN,
						"mark_tsc_unstable:online",
						mark_at_online, NULL);
		return ret < 0 ? ret : 0;
	}
	if (!strcmp(at, "suspend")) {
		register_syscore(&syscore);
		return 0;
	}
	return -EINVAL;
}
module_init(mark_tsc_unstable_init);

MODULE_DESCRIPTION("Marks the TSC unstable, for a selftest of kvm_clock_guest");
MODULE_LICENSE("GPL");
