// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sets whether KVM treats a vCPU's TSC as protected from the host.  SEV-SNP with a
 * secure TSC and TDX do so at the vCPU's creation, on hardware that has them.  For
 * src/bin/kselftest-errno/protected.rs.
 */
#include "vcpu_fd.h"

static bool protected = true;
module_param(protected, bool, 0);
MODULE_PARM_DESC(protected, "whether the TSC is protected");

static int __init protect_guest_tsc_init(void)
{
	struct kvm_vcpu *vcpu = vcpu_of_fd();

	if (IS_ERR(vcpu))
		return PTR_ERR(vcpu);
	vcpu->arch.guest_tsc_protected = protected;
	return -ECANCELED;
}
module_init(protect_guest_tsc_init);

MODULE_DESCRIPTION("Protects a vCPU's TSC, for a selftest of kvm_clock_guest");
MODULE_LICENSE("GPL");
