// SPDX-License-Identifier: GPL-2.0-only

//! The format accepts what later versions add, and another kernel's outputs.

use crate::{
    state::{restore, save},
    Host, VCPUS,
};
use kvm_clock::{Policy, SavedClocks};
use kvm_clock_guest_selftests::prelude::*;
use serde_json::{json, Value};

pub(crate) fn cases() -> Vec<Case<Host>> {
    let case = |name: &str, change: fn(&mut Value)| {
        Case::new(name, move |host: &Host| ensure_restored(host, change))
    };
    vec![
        case("unknown fields of a later version", |saved| {
            saved["later"] = json!({"field": [1, 2, 3]});
        }),
        case("a header that has grown", |saved| {
            append(&mut saved["header"])
        }),
        case("vCPUs that have grown", |saved| {
            let vcpus = saved["vcpus"].as_array_mut().expect("an array");
            vcpus.iter_mut().for_each(append);
        }),
        case("status bits of a later kernel", |saved| {
            set_byte(saved, 15, 0x80);
        }),
        case("outputs and inputs of the ioctl", |saved| {
            // flags, mode, nr_vcpus, vcpus, rate_diff_hz.
            for at in [4, 8, 16, 24, 128] {
                set_byte(saved, at, 0x55);
            }
        }),
    ]
}

fn append(bytes: &mut Value) {
    let bytes = bytes.as_array_mut().expect("an array");
    bytes.extend((1..=8).map(Value::from));
}

fn set_byte(saved: &mut Value, at: usize, byte: u8) {
    saved["header"][at] = json!(byte);
}

fn ensure_restored(host: &Host, change: fn(&mut Value)) -> Result<()> {
    let kvm = host.kvm()?;
    let vm = pinned(&kvm, VCPUS)?;
    let before = Clocks::of(&vm)?;
    let mut saved = serde_json::to_value(save(&vm)?)?;
    change(&mut saved);
    let saved: SavedClocks = serde_json::from_value(saved)?;
    let vm = successor(&kvm, vm)?;
    let outcome = restore(&vm, &saved, &Policy::default())?;
    ensure_eq!(outcome.lost, vec![], "lost");
    run_a_little(&vm)?;
    before.ensure_unchanged(&vm)
}
