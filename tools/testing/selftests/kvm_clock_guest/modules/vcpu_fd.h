/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The parameter vcpu_fd of a module that changes one vCPU when it is loaded.  Its
 * init function returns -ECANCELED after the change, so that it does not stay.
 */
#include <linux/err.h>
#include <linux/file.h>
#include <linux/kvm_host.h>
#include <linux/module.h>

static int vcpu_fd = -1;
module_param(vcpu_fd, int, 0);
MODULE_PARM_DESC(vcpu_fd, "vCPU file descriptor of the process that loads the module");

/* The process that loads the module keeps the file open. */
static struct kvm_vcpu *vcpu_of_fd(void)
{
	CLASS(fd, f)(vcpu_fd);
	if (fd_empty(f))
		return ERR_PTR(-EBADF);
	if (strncmp(fd_file(f)->f_path.dentry->d_name.name, "kvm-vcpu:", 9))
		return ERR_PTR(-EINVAL);
	return fd_file(f)->private_data;
}
