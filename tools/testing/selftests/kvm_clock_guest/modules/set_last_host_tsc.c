// SPDX-License-Identifier: GPL-2.0-only
/*
 * Has KVM believe that the host's TSC had a certain value when a vCPU was last on a
 * CPU: one ahead of the CPUs that come, as of a CPU whose TSC is ahead of theirs, or
 * one of long ago.  Loading it is all; it does not stay.  For src/last_host_tsc.rs.
 */
#include <linux/file.h>
#include <linux/kvm_host.h>
#include <linux/module.h>

static int vcpu_fd = -1;
module_param(vcpu_fd, int, 0);
MODULE_PARM_DESC(vcpu_fd, "vCPU file descriptor of the process that loads this");

static unsigned long long ticks;
module_param(ticks, ullong, 0);
MODULE_PARM_DESC(ticks, "The value");

static int __init set_last_host_tsc_init(void)
{
	struct kvm_vcpu *vcpu;

	CLASS(fd, f)(vcpu_fd);
	if (fd_empty(f))
		return -EBADF;
	if (strncmp(fd_file(f)->f_path.dentry->d_name.name, "kvm-vcpu:", 9))
		return -EINVAL;

	vcpu = fd_file(f)->private_data;
	vcpu->arch.last_host_tsc = ticks;
	return -ECANCELED;
}
module_init(set_last_host_tsc_init);

MODULE_DESCRIPTION("Sets a vCPU's last host TSC, for a selftest of kvm_clock_guest");
MODULE_LICENSE("GPL");
