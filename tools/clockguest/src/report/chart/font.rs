// SPDX-License-Identifier: GPL-2.0-only

//! The font: how wide a text is, and, for PNG, its outlines.

use std::sync::OnceLock;
use ttf_parser::Face;

/// DejaVu Sans, which comes with the program, so that a PNG needs no font of the machine; and is among
/// the widest, so that what fits with it fits with a browser's own.
pub(crate) fn face() -> &'static Face<'static> {
    static FACE: OnceLock<Face<'static>> = OnceLock::new();
    FACE.get_or_init(|| {
        // PANIC: The crate's file does not change; every test that draws would tell.
        Face::parse(dejavu::sans::regular(), 0).expect("DejaVu Sans is a font")
    })
}

/// Width of `text` in px, at `size` px to the em.
pub(crate) fn width(text: &str, size: f64) -> f64 {
    let advance = |c| {
        let glyph = face().glyph_index(c).unwrap_or_default();
        f64::from(face().glyph_hor_advance(glyph).unwrap_or_default())
    };
    text.chars().map(advance).sum::<f64>() * size / f64::from(face().units_per_em())
}
