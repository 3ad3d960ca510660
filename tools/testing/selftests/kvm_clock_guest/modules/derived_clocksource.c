// SPDX-License-Identifier: GPL-2.0-only
/*
 * A clocksource that is computed from the TSC, as a guest's kvm-clock is: it names
 * the TSC as its counter, but KVM cannot use it for a master clock.  Select it
 * through sysfs.  For src/bin/kselftest-derived-clocksource, and for the option
 * --clocksource=derived of other tests.
 */
#include <linux/clocksource.h>
#include <linux/math64.h>
#include <linux/module.h>
#include <linux/time64.h>

#include <asm/tsc.h>

static u64 ns_of(u64 tsc)
{
	return mul_u64_u64_div_u64(tsc, NSEC_PER_MSEC, tsc_khz);
}

static u64 derived_read(struct clocksource *cs)
{
	return ns_of(rdtsc_ordered());
}

static u64 derived_read_snapshot(struct clocksource *cs,
				 struct clocksource_hw_snapshot *chs)
{
	chs->hw_cycles = rdtsc_ordered();
	chs->hw_csid = CSID_X86_TSC;
	return ns_of(chs->hw_cycles);
}

static struct clocksource derived = {
	.name		= "derived",
	.read		= derived_read,
	.read_snapshot	= derived_read_snapshot,
	/* The kernel never selects it by itself. */
	.rating		= 1,
	.mask		= CLOCKSOURCE_MASK(64),
	.flags		= CLOCK_SOURCE_IS_CONTINUOUS,
	.id		= CSID_X86_KVM_CLK,
	.owner		= THIS_MODULE,
};

static int __init derived_clocksource_init(void)
{
	return clocksource_register_hz(&derived, NSEC_PER_SEC);
}
module_init(derived_clocksource_init);

static void __exit derived_clocksource_exit(void)
{
	clocksource_unregister(&derived);
}
module_exit(derived_clocksource_exit);

MODULE_DESCRIPTION("A clocksource computed from the TSC, for a selftest of kvm_clock_guest");
MODULE_LICENSE("GPL");
