// SPDX-License-Identifier: GPL-2.0-only

//! Loads without the module's KUnit tests, which take most of the time of a load.

use kvm_clock_guest_selftests::prelude::*;
use std::{fs, path::Path};

const FILTER: &str = "/sys/module/kunit/parameters/filter_glob";
const NONE: &str = "none-of-them";
const ALL: &str = "*";
/// The text of an unset parameter.
const UNSET: &str = "(null)";

/// While this exists, loading a module runs no tests.
pub(crate) struct WithoutTests(Option<String>);

impl WithoutTests {
    /// Has no effect on a kernel without KUnit.
    pub(crate) fn new() -> Result<Self> {
        if !Path::new(FILTER).exists() {
            return Ok(Self(None));
        }
        let former = fs::read_to_string(FILTER).context(FILTER)?;
        fs::write(FILTER, NONE).context(FILTER)?;
        Ok(Self(Some(match former.trim_end() {
            UNSET => ALL.to_owned(),
            former => former.to_owned(),
        })))
    }
}

impl Drop for WithoutTests {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(|former| fs::write(FILTER, former)) {
            eprintln!("cannot restore {FILTER}: {error}");
        }
    }
}
