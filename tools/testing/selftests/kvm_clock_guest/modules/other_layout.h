/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Builds the module for another KVM: one without Xen, whose struct kvm and struct
 * kvm_vcpu are smaller.  See scripts/build-other-layout.
 */
#include <linux/kconfig.h>
#undef CONFIG_KVM_XEN
