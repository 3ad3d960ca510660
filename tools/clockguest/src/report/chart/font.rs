// SPDX-License-Identifier: GPL-2.0-only

//! The font: the width of texts, and, for PNG, the outlines of glyphs.

use std::sync::OnceLock;
use ttf_parser::Face;

/// DejaVu Sans, embedded in the program. It is one of the widest fonts, so what fits with it also
/// fits with a browser's own font.
pub(crate) fn face() -> &'static Face<'static> {
    static FACE: OnceLock<Face<'static>> = OnceLock::new();
    FACE.get_or_init(|| {
        // PANIC: The embedded file is valid.
        Face::parse(dejavu::sans::regular(), 0).expect("DejaVu Sans is a font")
    })
}

/// Width of `text` (px) at `size` px per em.
pub(crate) fn width(text: &str, size: f64) -> f64 {
    let advance = |c| {
        let glyph = face().glyph_index(c).unwrap_or_default();
        f64::from(face().glyph_hor_advance(glyph).unwrap_or_default())
    };
    text.chars().map(advance).sum::<f64>() * size / f64::from(face().units_per_em())
}
