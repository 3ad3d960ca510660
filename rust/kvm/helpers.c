// SPDX-License-Identifier: GPL-2.0-only
/* Inline functions and macros of KVM's headers, as functions that Rust can call. */

#include <linux/kvm_host.h>
#include <linux/math64.h>

#include <asm/pvclock.h>
#include <asm/tsc.h>

#include "helpers.h"

int rust_helper_kvm_lock_killable(struct kvm *kvm)
{
	return mutex_lock_killable(&kvm->lock);
}

void rust_helper_kvm_unlock(struct kvm *kvm)
{
	mutex_unlock(&kvm->lock);
}

unsigned int rust_helper_kvm_online_vcpus(struct kvm *kvm)
{
	return atomic_read(&kvm->online_vcpus);
}

/*
 * kvm_get_vcpu() of @nr vCPUs in a row, all of them online: looking up each by
 * itself would be most of what GET does for a vCPU.
 */
void rust_helper_kvm_get_vcpus(struct kvm *kvm, unsigned int first,
			       struct kvm_vcpu **vcpus, unsigned int nr)
{
	XA_STATE(xas, &kvm->vcpu_array, first);
	unsigned int i;

	rcu_read_lock();
	for (i = 0; i < nr; i++)
		vcpus[i] = xas_next(&xas);
	rcu_read_unlock();
}

bool rust_helper_kvm_vcpu_is_locked(struct kvm_vcpu *vcpu)
{
	return mutex_is_locked(&vcpu->mutex);
}

void rust_helper_kvm_tsc_write_lock(struct kvm *kvm)
{
	raw_spin_lock_irq(&kvm->arch.tsc_write_lock);
}

void rust_helper_kvm_tsc_write_unlock(struct kvm *kvm)
{
	raw_spin_unlock_irq(&kvm->arch.tsc_write_lock);
}

u64 rust_helper_rdtsc_ordered(void)
{
	return rdtsc_ordered();
}

#if IS_ENABLED(CONFIG_KUNIT)
u64 rust_helper___pvclock_read_cycles(const struct pvclock_vcpu_time_info *src,
				      u64 tsc)
{
	return __pvclock_read_cycles(src, tsc);
}

u64 rust_helper_mul_u64_u64_shr(u64 a, u64 mul, unsigned int shift)
{
	return mul_u64_u64_shr(a, mul, shift);
}
#endif
