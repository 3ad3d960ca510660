// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sets the host TSC that KVM recorded when a vCPU was last loaded: a value ahead of
 * the CPUs that come online, as if that CPU's TSC were ahead of theirs, or an old
 * value.  For src/host_module.rs and tools/vm/host run.
 */
#include "vcpu_fd.h"

static unsigned long long ticks;
module_param(ticks, ullong, 0);
MODULE_PARM_DESC(ticks, "the host TSC");

static int __init set_last_host_tsc_init(void)
{
	struct kvm_vcpu *vcpu = vcpu_of_fd();

	if (IS_ERR(vcpu))
		return PTR_ERR(vcpu);
	vcpu->arch.last_host_tsc = ticks;
	return -ECANCELED;
}
module_init(set_last_host_tsc_init);

MODULE_DESCRIPTION("Sets a vCPU's last host TSC, for a selftest of kvm_clock_guest");
MODULE_LICENSE("GPL");
