// SPDX-License-Identifier: GPL-2.0-only

//! The module without the KUnit tests of its arithmetic, which would be most of the time of a load.

use anyhow::{Context, Result};
use std::{fs, path::Path};

const FILTER: &str = "/sys/module/kunit/parameters/filter_glob";
const NONE: &str = "none-of-them";
const ALL: &str = "*";
/// What an unset parameter reads.
const UNSET: &str = "(null)";

/// As long as it lives, modules are loaded without running tests.
pub(crate) struct WithoutTests(Option<String>);

impl WithoutTests {
    /// Nothing to do where the kernel has no KUnit.
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
