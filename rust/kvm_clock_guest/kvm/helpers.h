/* SPDX-License-Identifier: GPL-2.0-only */
/* Macros and inline functions of the kernel's headers, as functions that Rust can call. */

#ifndef RUST_KVM_HELPERS_H
#define RUST_KVM_HELPERS_H

#include <linux/types.h>
#include <asm/pvclock-abi.h>

struct kvm_clock_guest_build rust_helper_kvm_clock_guest_build(void);

/* For tests only. */
u64 rust_helper___pvclock_read_cycles(const struct pvclock_vcpu_time_info *src,
				      u64 tsc);
u64 rust_helper_mul_u64_u64_shr(u64 a, u64 mul, unsigned int shift);
u32 rust_helper_crc32(const u8 *p, size_t len);

#endif
