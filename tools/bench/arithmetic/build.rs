// SPDX-License-Identifier: GPL-2.0-only

//! Compiles the kernel's C: unchanged headers, and functions of KVM that are in no header.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// Headers that are included unchanged; `c/stubs` has the headers that these include.
const HEADERS: &[(&str, &str)] = &[
    ("arch/x86/include/asm/pvclock.h", "asm/pvclock.h"),
    ("arch/x86/include/asm/pvclock-abi.h", "asm/pvclock-abi.h"),
    ("arch/x86/include/asm/div64.h", "asm/div64.h"),
    ("include/linux/math64.h", "linux/math64.h"),
];

/// Excerpts: a file, how the first line begins, and the last line.
const EXCERPTS: &[(&str, &str, &str)] = &[
    ("arch/x86/kvm/x86.h", "#define do_shl32_div32(", "\t })"),
    ("arch/x86/kvm/x86.c", "static uint32_t div_frac(", "}"),
    ("arch/x86/kvm/x86.c", "static void kvm_get_time_scale(", "}"),
    ("arch/x86/kvm/x86.c", "static inline u64 __scale_tsc(", "}"),
    ("arch/x86/kvm/x86.c", "u64 kvm_scale_tsc(", "}"),
];

/// The kernel's flags that matter for these functions: see its `Makefile` and `arch/x86/Makefile`.
const FLAGS: &[&str] = &[
    "-std=gnu11",
    "-mgeneral-regs-only",
    "-mno-red-zone",
    "-fno-strict-aliasing",
    "-fno-strict-overflow",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
];

fn read(path: &Path) -> String {
    println!("cargo:rerun-if-changed={}", path.display());
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines from the one that begins with `first` to the one that is `last`.
fn excerpt(text: &str, first: &str, last: &str) -> Option<String> {
    let start = text.find(&format!("\n{first}"))? + 1;
    let rest = &text[start..];
    let end = rest.find(&format!("\n{last}\n"))? + last.len() + 2;
    Some(rest[..end].to_owned())
}

fn main() {
    println!("cargo:rerun-if-env-changed=KERNEL_SOURCE");
    println!("cargo:rerun-if-changed=c");
    // rust/pvclock is a part of this crate as it is of the module.
    println!("cargo:rustc-check-cfg=cfg(CONFIG_RUST)");
    println!("cargo:rustc-cfg=CONFIG_RUST");

    let source = env::var_os("KERNEL_SOURCE")
        .map(PathBuf::from)
        .expect("KERNEL_SOURCE must be the kernel's source: use tools/bench/arithmetic/run");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for (from, to) in HEADERS {
        let to = out.join(to);
        fs::create_dir_all(to.parent().expect("it has a folder")).unwrap();
        fs::write(to, read(&source.join(from))).unwrap();
    }
    let excerpts = EXCERPTS.iter().map(|(file, first, last)| {
        excerpt(&read(&source.join(file)), first, last)
            .unwrap_or_else(|| panic!("{file} has no '{first}' any more"))
    });
    fs::write(out.join("kvm.h"), excerpts.collect::<String>()).unwrap();

    let mut build = cc::Build::new();
    build
        .file("c/conversions.c")
        .include("c/stubs")
        .include(&out)
        .opt_level(2)
        .force_frame_pointer(false)
        .debug(false);
    for flag in FLAGS {
        build.flag(flag);
    }
    build.compile("conversions");
}
