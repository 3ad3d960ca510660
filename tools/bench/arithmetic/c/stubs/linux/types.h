/* SPDX-License-Identifier: GPL-2.0-only */
/* Names that the kernel's headers expect, for user space on x86-64. */
#ifndef BENCH_LINUX_TYPES_H
#define BENCH_LINUX_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int32_t s32;
typedef int64_t s64;
typedef unsigned long ulong;

#define BITS_PER_LONG 64
#define CONFIG_ARCH_SUPPORTS_INT128 1
#define SMP_CACHE_BYTES 64

/* libc's is weaker. */
#undef __always_inline
#define __always_inline inline __attribute__((__always_inline__))
#define unlikely(x) __builtin_expect(!!(x), 0)
#define statically_true(x) (__builtin_constant_p(x) && (x))
#define virt_rmb() __asm__ __volatile__("" ::: "memory")
#define abs(x) __builtin_llabs(x)

#endif
