// SPDX-License-Identifier: GPL-2.0-only
/*
 * For LD_PRELOAD: a QEMU that does all as it does, on a kernel that differs.
 *
 * CLOCK_GUEST_PRELOAD is "no-pause": KVM_SET_VM_CLOCK_GUEST gets no pause;
 * "other-rate": the clocks to set are of a host whose TSC is 1 % faster;
 * "long-pause": see pause_ns();
 * or a path: once that file is there, KVM has none of the ioctls.
 */

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KVM_CHECK_EXTENSION	0xae03
#define KVM_KVMCLOCK_CTRL	0xaead
#define KVM_CAP_VM_CLOCK_GUEST	0xd6d9
/* Type and number; the size is another one with each version of the structure. */
#define KVM_GET_VM_CLOCK_GUEST	0xaed8
#define KVM_SET_VM_CLOCK_GUEST	0xaed9

/* struct kvm_vm_clock_guest */
#define MODE			8
#define TAI_NS			56
#define MONOTONIC_RAW_NS	64
#define HOST_TSC_KHZ		76
#define PAUSED_NS		136

#define ADVANCE			2

/*
 * A guest that was stopped for long, without the wait: while there is a file
 * /tmp/clock-guest-pause.PID, QEMU finds the host's clocks ahead by as many ns
 * as the file says, as after a suspend of the host, whose TSC does not count
 * meanwhile. So it uses ADVANCE, and decides as it always does. KVM knows the
 * host's real clocks, and gets an anchor that is so much older. If "unwarned"
 * follows in the file, KVM does not warn the guest that it was stopped.
 */
static int64_t pause_ns(int *unwarned)
{
	char word[16] = "";
	long long ns = 0;
	char path[64];
	FILE *file;

	snprintf(path, sizeof(path), "/tmp/clock-guest-pause.%d", getpid());
	file = fopen(path, "r");
	if (!file)
		return 0;
	*unwarned = fscanf(file, "%lld %15s", &ns, word) == 2;
	fclose(file);
	return ns;
}

static long with_long_pause(int fd, unsigned long request, char *argument)
{
	unsigned int number = request & 0xffff;
	int unwarned = 0;
	int64_t ns;
	long ret;

	if (number == KVM_KVMCLOCK_CTRL && pause_ns(&unwarned) && unwarned)
		return 0;
	if (number == KVM_SET_VM_CLOCK_GUEST && *(uint32_t *)(argument + MODE) == ADVANCE)
		*(int64_t *)(argument + TAI_NS) -= pause_ns(&unwarned);
	ret = syscall(SYS_ioctl, fd, request, argument);
	if (number == KVM_GET_VM_CLOCK_GUEST && ret == 0) {
		ns = pause_ns(&unwarned);
		*(int64_t *)(argument + TAI_NS) += ns;
		*(int64_t *)(argument + MONOTONIC_RAW_NS) += ns;
	}
	return ret;
}

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
	if (strcmp(what, "long-pause") == 0)
		return with_long_pause(fd, request, argument);
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
