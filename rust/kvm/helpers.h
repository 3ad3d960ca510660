/* SPDX-License-Identifier: GPL-2.0-only */
/* Inline functions and macros of KVM's headers, as functions that Rust can call. */

#ifndef RUST_KVM_HELPERS_H
#define RUST_KVM_HELPERS_H

#include <linux/types.h>

struct kvm;
struct kvm_vcpu;
struct pvclock_vcpu_time_info;

int rust_helper_kvm_lock_killable(struct kvm *kvm);
void rust_helper_kvm_unlock(struct kvm *kvm);
unsigned int rust_helper_kvm_online_vcpus(struct kvm *kvm);
void rust_helper_kvm_get_vcpus(struct kvm *kvm, unsigned int first,
			       struct kvm_vcpu **vcpus, unsigned int nr);
bool rust_helper_kvm_vcpu_is_locked(struct kvm_vcpu *vcpu);
void rust_helper_kvm_tsc_write_lock(struct kvm *kvm);
void rust_helper_kvm_tsc_write_unlock(struct kvm *kvm);
u64 rust_helper_rdtsc_ordered(void);

/* For tests only. */
u64 rust_helper___pvclock_read_cycles(const struct pvclock_vcpu_time_info *src,
				      u64 tsc);
u64 rust_helper_mul_u64_u64_shr(u64 a, u64 mul, unsigned int shift);

#endif
