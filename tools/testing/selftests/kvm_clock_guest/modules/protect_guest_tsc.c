// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tells KVM that a vCPU's TSC is protected from the host, or is not: what SEV-SNP
 * with a secure TSC and TDX do at the vCPU's creation, on hardware that has them.
 * Loading it is all; it does not stay.  For src/bin/kselftest-errno/protected.rs.
 */
#include <linux/file.h>
#include <linux/kvm_host.h>
#include <linux/module.h>

static int vcpu_fd = -1;
module_param(vcpu_fd, int, 0);
MODULE_PARM_DESC(vcpu_fd, "vCPU file descriptor of the process that loads this");

static bool protected = true;
module_param(protected, bool, 0);
MODULE_PARM_DESC(protected, "What to tell");

static int __init protect_guest_tsc_init(void)
{
	struct kvm_vcpu *vcpu;

	CLASS(fd, f)(vcpu_fd);
	if (fd_empty(f))
		return -EBADF;
	if (strncmp(fd_file(f)->f_path.dentry->d_name.name, "kvm-vcpu:", 9))
		return -EINVAL;

	vcpu = fd_file(f)->private_data;
	vcpu->arch.guest_tsc_protected = protected;
	return -ECANCELED;
}
module_init(protect_guest_tsc_init);

MODULE_DESCRIPTION("Protects a vCPU's TSC, for a selftest of kvm_clock_guest");
MODULE_LICENSE("GPL");
