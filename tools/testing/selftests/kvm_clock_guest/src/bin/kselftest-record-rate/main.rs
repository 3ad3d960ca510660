// SPDX-License-Identifier: GPL-2.0-only

//! SET judges the record itself: one whose implied rate is more than 250 ppm from the rate of the
//! TSC that it is for is ERANGE in every mode, and one with a factor that KVM never makes is
//! EINVAL. So the error of a clock that goes from host to host stays bounded.

mod factor;
mod hops;
mod rates;
mod record;

use kvm_clock_guest_selftests::{
    ktap::{self, note},
    require,
};
use std::process::ExitCode;

fn main() -> ExitCode {
    let scales = require::vendor_kvm().is_ok_and(|kvm| require::scales(&kvm));
    let mut cases = rates::cases();
    cases.extend(factor::cases());
    cases.extend(hops::cases(scales));
    let requirements = || {
        let kvm = require::clock_guest()?;
        if !scales {
            note("this host does not scale a guest's TSC: hosts of other rates are left out");
        }
        Ok(kvm)
    };
    ktap::main(requirements, cases)
}
