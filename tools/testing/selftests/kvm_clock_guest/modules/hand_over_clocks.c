// SPDX-License-Identifier: GPL-2.0-only
/*
 * Saves the clocks of one VM and makes them those of another, as code in the kernel
 * does that preserves VMs over a live update.  KVM exports neither function, as such
 * code is part of it: kprobes find them.  For src/bin/kselftest-handover.rs.
 */
#include <linux/kprobes.h>

#include <asm/kvm_clock_guest.h>

#include "vcpu_fd.h"

static int to_vcpu_fd = -1;
module_param(to_vcpu_fd, int, 0);
MODULE_PARM_DESC(to_vcpu_fd, "vCPU of the other VM");

static int flip = -1;
module_param(flip, int, 0);
MODULE_PARM_DESC(flip, "bit to flip in between");

static int cut;
module_param(cut, int, 0);
MODULE_PARM_DESC(cut, "bytes to leave off at the end");

static typeof(kvm_clock_guest_save) *save;
static typeof(kvm_clock_guest_restore) *restore;

static void *find(const char *name)
{
	struct kprobe probe = { .symbol_name = name };
	void *found;

	if (register_kprobe(&probe))
		return NULL;
	found = probe.addr;
	unregister_kprobe(&probe);
	return found;
}

static int hand_over(struct kvm *from, struct kvm *to)
{
	int size = save(from, NULL, 0), r;
	u8 *bytes;

	if (size < 0)
		return size;
	bytes = kzalloc(size, GFP_KERNEL);
	if (!bytes)
		return -ENOMEM;

	/* A byte less than needed leaves all bytes as they are. */
	r = save(from, bytes, size - 1);
	if (r != size || memchr_inv(bytes, 0, size))
		r = -EPROTO;
	else
		r = save(from, bytes, size);
	if (r == size) {
		if (flip >= 0 && flip / 8 < size)
			bytes[flip / 8] ^= BIT(flip % 8);
		r = restore(to, bytes, size - cut);
	}
	kfree(bytes);
	return r;
}

static int __init hand_over_clocks_init(void)
{
	struct kvm_vcpu *from = vcpu_of_fd(), *to;
	int r;

	vcpu_fd = to_vcpu_fd;
	to = vcpu_of_fd();
	if (IS_ERR(from) || IS_ERR(to))
		return -EBADF;
	save = find("kvm_clock_guest_save");
	restore = find("kvm_clock_guest_restore");
	if (!save || !restore)
		return -ENOENT;
	r = hand_over(from->kvm, to->kvm);
	return r < 0 ? r : -ECANCELED;
}
module_init(hand_over_clocks_init);

MODULE_DESCRIPTION("Hands the clocks of a VM over to another, for a selftest of kvm_clock_guest");
MODULE_LICENSE("GPL");
