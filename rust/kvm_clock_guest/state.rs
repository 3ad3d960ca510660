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
        abi,
        plan::Instant,
        rate::GuestRate,
        tsc::{
            Relation,
            Scale, //
        },
    },
};
use kernel::prelude::*;

/// The reference vCPU, the instant, and the rate that all vCPUs of the VM share.
pub(crate) struct State<'a> {
    /// The vCPU that the record is for.
    pub(crate) reference: &'a Vcpu,
    /// Its TSC as a function of the host's.
    pub(crate) relation: Relation,
    /// TSC rate of the guest.
    pub(crate) rate: GuestRate,
    /// The anchor.
    pub(crate) now: Instant,
}

impl<'a> State<'a> {
    /// Looks at the VM's clocks at one instant, and shows all vCPUs to `each` on the way.
    ///
    /// # Errors
    ///
    /// - `ENODATA` if the vCPUs' TSCs do not run at one hardware rate, so that one record could not
    ///   serve them all; or if the host does not keep time by a stable TSC, and `fallback` is not
    ///   set,
    /// - `EBUSY` if the host's TSC rate is not known at the moment,
    /// - `EOPNOTSUPP` if the guest's TSC is protected from the host,
    /// - that of `each`.
    pub(crate) fn new(
        vm: &'a VmGuard<'_>,
        clocks: &ClocksGuard<'_>,
        reference: &'a Vcpu,
        fallback: bool,
        mut each: impl FnMut(&Vcpu) -> Result,
    ) -> Result<Self> {
        let relation = clocks.relation(reference);
        let ratio = clocks.ratio(reference);
        vm.try_for_each_vcpu(|vcpu| {
            if clocks.is_tsc_protected(vcpu) {
                return Err(EOPNOTSUPP);
            }
            if clocks.is_tsc_imitated(vcpu) || !clocks.is_scaled_by(vcpu, relation.scale, ratio) {
                return Err(ENODATA);
            }
            each(vcpu)
        })?;
        let now = kvm::now().ok_or(ENODATA)?;
        if !now.is_host_tsc_stable() && !fallback {
            return Err(ENODATA);
        }
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

/// `STATUS_*` at `now`, of a VM whose TSCs are scaled by `scale`: a record kept for another one is
/// handed to no vCPU.
pub(crate) fn status(clocks: &ClocksGuard<'_>, now: &Instant, scale: Scale) -> u32 {
    let kept = clocks
        .kept()
        .filter(|kept| kept.relation.scale == scale)
        .map_or(0, |_| abi::STATUS_PINNED);
    let fit = if now.is_host_tsc_stable() {
        abi::STATUS_HOST_TSC_STABLE
    } else {
        0
    };
    kept | fit
}
