// SPDX-License-Identifier: GPL-2.0-only

//! Moves a running guest to another host over one connection, and measures the clock errors.
//!
//! ```text
//! source                                   destination
//!   <- Hello      session, boot ID, capabilities of the host
//!   -> Offer      vCPUs, TSC rate
//!   <- Prepared   the VM exists                   or Refused
//!   -> Ping, <- Pong, 16 times: the difference of the hosts' clocks
//!      stop, KVM_GET_VM_CLOCK_GUEST
//!   -> Ping, <- Pong, 16 times
//!   -> State, Memory
//!      load, KVM_SET_VM_CLOCK_GUEST
//!   <- Restored   the guest is complete           or Refused
//!   -> Go         the guest belongs to the destination from now on
//!   <- Running
//!   <- Reading    the guest's readings there; or an Offer, if the guest comes back
//! ```
//!
//! Until Go, the guest belongs to the source: after any failure it resumes there, with its own
//! clocks restored bit for bit. The clocks are set before Go because a host may refuse them; mode
//! advance gives the same result at any time. Once Go is sent, the source never resumes the guest,
//! so that it cannot run twice.

mod attribution;
mod channel;
mod clock_trace;
mod command;
mod connection;
mod destination;
mod exchange;
mod ground_truth;
mod message;
mod migrate;
pub mod replay;
mod restore;
mod serve;
mod source;
mod summary;

pub use connection::Destination;
pub use ground_truth::GroundTruth;
pub use migrate::{migrate, ClockSource, Config as MigrateConfig, ModeChoice};
pub use serve::{serve, Config as ServeConfig, Transport};
pub use summary::{Move, Summary};
