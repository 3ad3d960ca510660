// SPDX-License-Identifier: GPL-2.0-only
/*
 * For LD_PRELOAD: a QEMU that does all as it does, but passes no pause to
 * KVM_SET_VM_CLOCK_GUEST.
 */

#include <stdarg.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Type and number; the size is another one with each version of the structure. */
#define KVM_SET_VM_CLOCK_GUEST	0xaed9
/* paused_ns in units of 8 bytes. */
#define PAUSED_NS		(136 / 8)

int ioctl(int fd, unsigned long request, ...)
{
	uint64_t *argument;
	va_list list;

	va_start(list, request);
	argument = va_arg(list, uint64_t *);
	va_end(list);
	if ((request & 0xffff) == KVM_SET_VM_CLOCK_GUEST)
		argument[PAUSED_NS] = 0;
	return syscall(SYS_ioctl, fd, request, argument);
}
