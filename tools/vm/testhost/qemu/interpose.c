// SPDX-License-Identifier: GPL-2.0-only
/*
 * For LD_PRELOAD: a QEMU that does all as it does, on a kernel that differs.
 *
 * CLOCK_GUEST_PRELOAD is "no-pause": KVM_SET_VM_CLOCK_GUEST gets no pause;
 * "other-rate": the clocks to set are of a host whose TSC is 1 % faster;
 * or a path: once that file is there, KVM has none of the ioctls.
 */

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KVM_CHECK_EXTENSION	0xae03
#define KVM_CAP_VM_CLOCK_GUEST	0xd6d9
/* Type and number; the size is another one with each version of the structure. */
#define KVM_GET_VM_CLOCK_GUEST	0xaed8
#define KVM_SET_VM_CLOCK_GUEST	0xaed9

/* struct kvm_vm_clock_guest */
#define HOST_TSC_KHZ	76
#define PAUSED_NS	136

int ioctl(int fd, unsigned long request, ...)
{
	const char *what = getenv("CLOCK_GUEST_PRELOAD");
	unsigned int number = request & 0xffff;
	char *argument;
	va_list list;

	va_start(list, request);
	argument = va_arg(list, char *);
	va_end(list);
	if (!what)
		what = "";
	if (what[0] == '/' && access(what, F_OK) == 0) {
		if (number == KVM_CHECK_EXTENSION && (uintptr_t)argument == KVM_CAP_VM_CLOCK_GUEST)
			return 0;
		if (number == KVM_GET_VM_CLOCK_GUEST || number == KVM_SET_VM_CLOCK_GUEST) {
			errno = ENOTTY;
			return -1;
		}
	}
	if (number == KVM_SET_VM_CLOCK_GUEST && strcmp(what, "no-pause") == 0)
		*(uint64_t *)(argument + PAUSED_NS) = 0;
	if (number == KVM_SET_VM_CLOCK_GUEST && strcmp(what, "other-rate") == 0)
		*(uint32_t *)(argument + HOST_TSC_KHZ) += *(uint32_t *)(argument + HOST_TSC_KHZ) / 100;
	return syscall(SYS_ioctl, fd, request, argument);
}
