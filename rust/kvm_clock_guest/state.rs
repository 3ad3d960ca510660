// SPDX-License-Identifier: GPL-2.0-only

//! The present clocks of a VM, as far as GET and SET have them in common.

use crate::{
    kvm::{
        self,
        ClocksGuard,
        Vcpu,
        VmGuard, //
    },
    pvclock::{
        plan::Instant,
        rate::GuestRate,
        tsc::Relation, //
    },
};
use kernel::prelude::*;

/// The reference vCPU, the instant, and the rate that all vCPUs of the VM share.
pub(crate) struct State<'a> {
    /// The vCPU that the record is for: the first one.
    pub(crate) reference: &'a Vcpu,
    /// Its TSC as a function of the host's.
    pub(crate) relation: Relation,
    /// TSC rate of the guest.
    pub(crate) rate: GuestRate,
    /// The anchor.
    pub(crate) now: Instant,
}

impl<'a> State<'a> {
    /// Looks at the VM's clocks at one instant.
    ///
    /// # Errors
    ///
    /// - `ENODATA` if the host does not keep time by a stable TSC, if there is no vCPU, or if the
    ///   vCPUs' TSCs do not run at one hardware rate, so that one record could not serve them all,
    /// - `EBUSY` if the host's TSC rate is not known at the moment,
    /// - `EOPNOTSUPP` if the guest's TSC is protected from the host.
    pub(crate) fn new(vm: &'a VmGuard<'_>, clocks: &ClocksGuard<'_>) -> Result<Self> {
        let reference = vm.vcpus().next().ok_or(ENODATA)?;
        let relation = clocks.relation(reference);
        for vcpu in vm.vcpus() {
            if clocks.is_tsc_protected(vcpu) {
                return Err(EOPNOTSUPP);
            }
            if clocks.is_tsc_catching_up(vcpu) || clocks.relation(vcpu).scale != relation.scale {
                return Err(ENODATA);
            }
        }
        let now = kvm::now().ok_or(ENODATA)?;
        let rate = GuestRate {
            host_khz: kvm::host_tsc_khz().ok_or(EBUSY)?,
            scale: relation.scale,
        };
        Ok(Self {
            reference,
            relation,
            rate,
            now,
        })
    }
}
