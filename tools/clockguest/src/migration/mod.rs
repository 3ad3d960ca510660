// SPDX-License-Identifier: GPL-2.0-only

//! Carries a running guest to another host, over one connection, and tells what that did to its
//! clocks.
//!
//! ```text
//! source                                   destination
//!   <- Hello      session, boot id, what this host can do
//!   -> Offer      vCPUs, TSC rate
//!   <- Prepared   a VM for it is there            or Refused
//!   -> Ping, <- Pong, 16 times: how the hosts' clocks differ
//!      stop, KVM_GET_VM_CLOCK_GUEST
//!   -> Ping, <- Pong, 16 times
//!   -> State, Memory
//!      load, KVM_SET_VM_CLOCK_GUEST
//!   <- Restored   all is in place                 or Refused
//!   -> Go         from here on the guest is the destination's
//!   <- Running
//!   <- Reading    what the guest read there; or an Offer, if the guest is to come back
//! ```
//!
//! Until Go the guest is the source's: whatever goes wrong before, it goes on there, with its own
//! clocks put back bit for bit. The clocks are set before Go because that is where a host can refuse
//! them; mode advance is as right then as later, as it does not depend on when it is done. Once Go is
//! sent the source never resumes, so that no guest runs twice.

mod clock_trace;
mod connection;
mod destination;
mod exchange;
pub mod heard;
mod message;
mod migrate;
mod parts;
mod restore;
mod serve;
mod source;
mod summary;
mod truth;

pub use migrate::{migrate, ClockSource, Config as MigrateConfig, ModeChoice};
pub use serve::{serve, Config as ServeConfig};
pub use summary::{Move, Summary};
pub use truth::Truth;
