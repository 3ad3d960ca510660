// SPDX-License-Identifier: GPL-2.0-only

//! Serde for ABI structures: their bytes, so that a saved one comes back bit for bit.
//!
//! # Example
//!
//! ```
//! use kvm_clock::{abi::ClockGuest, bits};
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Saved(#[serde(with = "bits")] ClockGuest);
//!
//! let record = ClockGuest { tsc_timestamp: u64::MAX, tsc_shift: -1, ..ClockGuest::default() };
//! let file = serde_json::to_string(&Saved(record)).unwrap();
//! let Saved(restored) = serde_json::from_str(&file).unwrap();
//! assert_eq!(restored, record);
//! ```

use serde::{de::Error, Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Serialises the bytes of `value`.
///
/// # Errors
///
/// Those of the serialiser.
pub fn serialize<T, S>(value: &T, serializer: S) -> Result<S::Ok, S::Error>
where
    T: IntoBytes + Immutable,
    S: Serializer,
{
    value.as_bytes().serialize(serializer)
}

/// Makes a `T` of its bytes.
///
/// # Errors
///
/// If there are not exactly as many bytes as `T` has.
pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromBytes,
    D: Deserializer<'de>,
{
    let bytes = Vec::<u8>::deserialize(deserializer)?;
    T::read_from_bytes(&bytes).map_err(|_| {
        D::Error::invalid_length(bytes.len(), &format!("{} bytes", size_of::<T>()).as_str())
    })
}
