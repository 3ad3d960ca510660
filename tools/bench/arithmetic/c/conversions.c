// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel's C, one function for each conversion; the argument is in memory.
 *
 * build.rs makes kvm.h, of the parts of arch/x86/kvm that are in no header.
 */
#include <linux/types.h>
#include <linux/math64.h>
#include <asm/pvclock.h>

/* KVM's values on SVM; not static, so that the compiler takes it for no constant. */
struct {
	u64 default_tsc_scaling_ratio;
	u8 tsc_scaling_ratio_frac_bits;
} kvm_caps __attribute__((visibility("hidden"))) = { 1ULL << 32, 32 };

#define NSEC_PER_SEC 1000000000ULL

#include "kvm.h"

/* Shared in src/inputs.rs. */
struct shared {
	struct pvclock_vcpu_time_info record;
	u64 guest_tsc;
	u64 host_tsc;
	u64 offset;
	u64 ratio_identity;
	u64 ratio_scaled;
	u64 hz;
	u64 ns;
};
_Static_assert(sizeof(struct shared) == 88, "as in Rust");

u64 c_kvmclock_ns(const struct shared *in)
{
	return __pvclock_read_cycles(&in->record, in->guest_tsc);
}

u64 c_guest_tsc_identity(const struct shared *in)
{
	return kvm_scale_tsc(in->host_tsc, in->ratio_identity) + in->offset;
}

u64 c_guest_tsc_scaled(const struct shared *in)
{
	return kvm_scale_tsc(in->host_tsc, in->ratio_scaled) + in->offset;
}

u64 c_factor_of_hz(const struct shared *in)
{
	u32 mul;
	s8 shift;

	kvm_get_time_scale(NSEC_PER_SEC, in->hz, &shift, &mul);
	return (u64)(u8)shift << 32 | mul;
}

u64 c_ticks(const struct shared *in)
{
	return mul_u64_u64_div_u64(in->ns, in->hz, NSEC_PER_SEC);
}
