// SPDX-License-Identifier: GPL-2.0-only

//! The arithmetic and the validation rules of `rust/pvclock` a second time, for its tests.
//!
//! - [`arithmetic`] computes with integers that have no width, so that no step can overflow,
//! - [`rules`] lists all the rules that a request breaks, in no order,
//! - [`plan`] has the effect of a valid SET, and all reasons for it to fail.
//!
//! They are written from the ABI's documentation. They share types with `rust/pvclock`, and no
//! code.

pub mod arithmetic;
pub mod plan;
pub mod rules;
