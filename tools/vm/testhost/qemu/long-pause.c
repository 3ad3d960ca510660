// SPDX-License-Identifier: GPL-2.0-only
/*
 * For LD_PRELOAD: a QEMU whose guest was stopped for long, without the wait.
 *
 * While there is a file /tmp/clock-guest-pause.PID, QEMU finds the host's clocks
 * ahead by as many ns as the file says, as after a suspend of the host, whose
 * TSC does not count meanwhile. So it uses ADVANCE, and decides as it always
 * does. KVM knows the host's real clocks, and gets an anchor that is so much
 * older. If "untold" follows in the file, the guest is not told that it was
 * stopped.
 */

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KVM_KVMCLOCK_CTRL	0xaead
/* Type and number; the size is another one with each version of the structure. */
#define KVM_GET_VM_CLOCK_GUEST	0xaed8
#define KVM_SET_VM_CLOCK_GUEST	0xaed9

/* struct kvm_vm_clock_guest */
#define MODE			8
#define TAI_NS			56
#define MONOTONIC_RAW_NS	64
#define ADVANCE			2

static int64_t pause_ns(int *untold)
{
	char word[8] = "";
	long long ns = 0;
	char path[64];
	FILE *file;

	snprintf(path, sizeof(path), "/tmp/clock-guest-pause.%d", getpid());
	file = fopen(path, "r");
	if (!file)
		return 0;
	*untold = fscanf(file, "%lld %7s", &ns, word) == 2;
	fclose(file);
	return ns;
}

int ioctl(int fd, unsigned long request, ...)
{
	char *argument;
	va_list list;
	int untold = 0;
	int64_t ns;
	long ret;

	va_start(list, request);
	argument = va_arg(list, char *);
	va_end(list);
	if ((request & 0xffff) == KVM_KVMCLOCK_CTRL && pause_ns(&untold) && untold)
		return 0;
	if ((request & 0xffff) == KVM_SET_VM_CLOCK_GUEST && *(uint32_t *)(argument + MODE) == ADVANCE)
		*(int64_t *)(argument + TAI_NS) -= pause_ns(&untold);
	ret = syscall(SYS_ioctl, fd, request, argument);
	if ((request & 0xffff) == KVM_GET_VM_CLOCK_GUEST && ret == 0) {
		ns = pause_ns(&untold);
		*(int64_t *)(argument + TAI_NS) += ns;
		*(int64_t *)(argument + MONOTONIC_RAW_NS) += ns;
	}
	return ret;
}
