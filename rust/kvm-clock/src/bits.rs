// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Serde for ABI structures: serialises their bytes, so that they are restored bit for bit.
//!
//! The structures grow at their end, so the bytes may be more than those of the structure: what a
//! later version of this crate has added is ignored.
//!
//! # Example
//!
//! ```
//! use kvm_clock::{abi::ClockGuest, bits, counter::GuestTsc};
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Saved(#[serde(with = "bits")] ClockGuest);
//!
//! let tsc_timestamp = GuestTsc(u64::MAX);
//! let record = ClockGuest { tsc_timestamp, tsc_shift: -1, ..ClockGuest::default() };
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

/// Deserialises a `T` from its bytes.
///
/// # Errors
///
/// If there are fewer bytes than `T` has.
pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromBytes,
    D: Deserializer<'de>,
{
    from_bytes(&Vec::<u8>::deserialize(deserializer)?)
}

fn from_bytes<T: FromBytes, E: Error>(bytes: &[u8]) -> Result<T, E> {
    let expected = format!("at least {} bytes", size_of::<T>());
    T::read_from_prefix(bytes)
        .map(|(value, _)| value)
        .map_err(|_| E::invalid_length(bytes.len(), &expected.as_str()))
}

/// The same for a vector of structures.
pub(crate) mod vec {
    use super::*;

    pub(crate) fn serialize<T, S>(values: &[T], serializer: S) -> Result<S::Ok, S::Error>
    where
        T: IntoBytes + Immutable,
        S: Serializer,
    {
        serializer.collect_seq(values.iter().map(IntoBytes::as_bytes))
    }

    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
    where
        T: FromBytes,
        D: Deserializer<'de>,
    {
        let values = Vec::<Vec<u8>>::deserialize(deserializer)?;
        values.iter().map(|bytes| from_bytes(bytes)).collect()
    }
}
