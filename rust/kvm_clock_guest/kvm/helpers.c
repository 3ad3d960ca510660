// SPDX-License-Identifier: GPL-2.0-only
/* Macros and inline functions of the kernel's headers, as functions that Rust can call. */

#include <linux/crc32.h>
#include <linux/kvm_host.h>
#include <linux/math64.h>

#include <asm/kvm_clock_guest.h>
#include <asm/pvclock.h>

#include "helpers.h"

struct kvm_clock_guest_build rust_helper_kvm_clock_guest_build(void)
{
	return KVM_CLOCK_GUEST_BUILD;
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

u32 rust_helper_crc32(const u8 *p, size_t len)
{
	return ~crc32_le(~0, p, len);
}
#endif
