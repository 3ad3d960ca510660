// SPDX-License-Identifier: GPL-2.0-only

//! The conversions, each in a function of its own that is not inlined.
//!
//! Callgrind finds them by name: `rust_` or `c_`, and [`Conversion::id`].

use crate::{
    inputs::{Input, Shared},
    pvclock::{
        plan::{plan, Plan, PlanError},
        rate::{Factor, GuestRate},
        request::SetRequest,
    },
};
use std::hint::black_box;

/// KVM's default of `tsc_tolerance_ppm`.
const TOLERANCE_PPM: u32 = 250;

/// The kernel's function for a conversion.
pub struct Kernel {
    /// Its name there.
    pub name: &'static str,
    function: unsafe extern "C" fn(&Shared) -> u64,
}

impl Kernel {
    /// Calls the function.
    pub fn call(&self, input: &Input) -> u64 {
        // SAFETY: All are declared below, and only read their argument.
        unsafe { black_box(self.function)(black_box(&input.shared)) }
    }
}

/// A conversion to measure.
pub struct Conversion {
    /// Its name here.
    pub id: &'static str,
    /// The function of `rust/pvclock`.
    pub name: &'static str,
    /// The kernel's counterpart.
    pub kernel: Option<Kernel>,
    function: fn(&Input) -> u64,
}

impl Conversion {
    /// Calls the function of `rust/pvclock`; an error is `u64::MAX`.
    pub fn call(&self, input: &Input) -> u64 {
        black_box(self.function)(black_box(input))
    }
}

macro_rules! conversions {
    ($($id:ident, $rust:ident, $name:literal, $kernel:expr, |$input:ident| $body:expr;)*) => {
        /// All conversions.
        pub const CONVERSIONS: &[Conversion] = &[$(Conversion {
            id: stringify!($id),
            name: $name,
            kernel: $kernel,
            function: $rust,
        }),*];

        $(
            #[no_mangle]
            #[inline(never)]
            fn $rust($input: &Input) -> u64 {
                $body
            }
        )*
    };
}

extern "C" {
    fn c_kvmclock_ns(shared: &Shared) -> u64;
    fn c_guest_tsc_identity(shared: &Shared) -> u64;
    fn c_guest_tsc_scaled(shared: &Shared) -> u64;
    fn c_factor_of_hz(shared: &Shared) -> u64;
    fn c_ticks(shared: &Shared) -> u64;
}

const fn kernel(
    name: &'static str,
    function: unsafe extern "C" fn(&Shared) -> u64,
) -> Option<Kernel> {
    Some(Kernel { name, function })
}

conversions! {
    kvmclock_ns, rust_kvmclock_ns, "ClockGuest::kvmclock_ns",
        kernel("__pvclock_read_cycles", c_kvmclock_ns),
        |input| input.shared.record.kvmclock_ns(input.shared.guest_tsc);
    guest_tsc_identity, rust_guest_tsc_identity, "TscTransform::guest_tsc, ratio 1",
        kernel("kvm_scale_tsc", c_guest_tsc_identity),
        |input| input.identity.guest_tsc(input.shared.host_tsc).0;
    guest_tsc_scaled, rust_guest_tsc_scaled, "TscTransform::guest_tsc, scaled",
        kernel("kvm_scale_tsc", c_guest_tsc_scaled),
        |input| input.scaled.guest_tsc(input.shared.host_tsc).0;
    factor_of_hz, rust_factor_of_hz, "Factor::of_hz",
        kernel("kvm_get_time_scale", c_factor_of_hz),
        |input| Factor::of_hz(input.shared.hz)
            // CAST: the shift's bits, as C has them.
            .map_or(u64::MAX, |factor| u64::from(factor.shift as u8) << 32 | u64::from(factor.mul));
    factor_is_close_to, rust_factor_is_close_to, "Factor::is_close_to", None,
        |input| u64::from(input.shared.record.factor().is_close_to(input.shared.hz, TOLERANCE_PPM));
    // C's has no third factor, so no scaling, and faults if the quotient exceeds 64 bits.
    ticks, rust_ticks, "GuestRate::ticks, ratio 1",
        kernel("mul_u64_u64_div_u64", c_ticks),
        |input| input.rate.ticks(input.shared.ns).unwrap_or(u64::MAX);
    ticks_scaled, rust_ticks_scaled, "GuestRate::ticks, scaled", None,
        |input| input.rate_scaled.ticks(input.shared.ns).unwrap_or(u64::MAX);
    plan_exact, rust_plan_exact, "plan, exact", None,
        |input| planned(input, &input.exact, input.rate);
    plan_advance, rust_plan_advance, "plan, advance", None,
        |input| planned(input, &input.advance, input.rate);
    plan_advance_scaled, rust_plan_advance_scaled, "plan, advance, scaled", None,
        |input| planned(input, &input.advance_scaled, input.rate_scaled);
    plan_advance_resloped, rust_plan_advance_resloped, "plan, advance, another slope", None,
        |input| planned(input, &input.advance_resloped, input.rate_scaled);
}

#[inline(always)]
fn planned(input: &Input, request: &SetRequest, here: GuestRate) -> u64 {
    // The whole plan must be computed, not only the field that is returned.
    let made: Result<Plan, PlanError> = black_box(plan(
        request,
        input.shared.offset,
        &input.now,
        here,
        TOLERANCE_PPM,
    ));
    made.map_or(u64::MAX, |plan| plan.offset_shift)
}
