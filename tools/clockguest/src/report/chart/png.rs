// SPDX-License-Identifier: GPL-2.0-only

//! Draws a scene as PNG: in light colours, twice as large as its SVG.

use super::{
    font,
    scene::{Anchor, At, Ink, Mark, Scene, STYLES},
};
use tiny_skia::{
    Color, FillRule, Paint, Path, PathBuilder, Pixmap, Rect, Stroke, StrokeDash, Transform,
};
use ttf_parser::OutlineBuilder;

const SCALE: f64 = 2.0;

/// The light colours of chart.css.
const SERIES: [u32; STYLES] = [0x0b5cad, 0xa34700, 0x6b2fa0, 0x00705a, 0xa3154b, 0x505050];

fn colour(ink: Ink) -> u32 {
    match ink {
        Ink::Text => 0x1b1f24,
        Ink::Muted => 0x57606a,
        Ink::Grid => 0xd8dee4,
        Ink::Band => 0xeef1f4,
        Ink::Series(number) => SERIES[number % STYLES],
    }
}

fn paint(rgb: u32) -> Paint<'static> {
    let [_, red, green, blue] = rgb.to_be_bytes();
    let mut paint = Paint::default();
    paint.set_color_rgba8(red, green, blue, 255);
    paint
}

/// The file's bytes; `None` if the scene is empty, or larger than memory.
pub(crate) fn file(scene: &Scene) -> Option<Vec<u8>> {
    // CAST: A chart is small.
    let (width, height) = ((scene.width * SCALE) as u32, (scene.height * SCALE) as u32);
    let mut canvas = Canvas(Pixmap::new(width, height)?);
    canvas.0.fill(Color::WHITE);
    for mark in &scene.marks {
        canvas.draw(mark);
    }
    canvas.0.encode_png().ok()
}

struct Canvas(Pixmap);

impl Canvas {
    fn draw(&mut self, mark: &Mark) {
        match mark {
            Mark::Area {
                at,
                width,
                height,
                ink,
            } => {
                let sides = [at.0, at.1, *width, *height].map(px);
                if let Some(area) = Rect::from_xywh(sides[0], sides[1], sides[2], sides[3]) {
                    let path = PathBuilder::from_rect(area);
                    self.fill(&path, colour(*ink));
                }
            }
            Mark::Line {
                points,
                ink,
                width,
                dashes,
            } => {
                let dashes = dashes.iter().copied().map(px).collect();
                self.stroke(path(points, false), colour(*ink), *width, dashes);
            }
            Mark::Marker {
                outline,
                ink,
                hollow,
                ..
            } => {
                let path = path(outline, true);
                if let Some(path) = &path {
                    self.fill(path, if *hollow { 0xffffff } else { colour(*ink) });
                }
                self.stroke(path, colour(*ink), 1.2, Vec::new());
            }
            Mark::Text {
                at,
                text,
                size,
                anchor,
                ink,
            } => self.write(*at, text, *size, *anchor, *ink),
        }
    }

    fn fill(&mut self, path: &Path, rgb: u32) {
        let (rule, all) = (FillRule::Winding, Transform::identity());
        self.0.fill_path(path, &paint(rgb), rule, all, None);
    }

    fn stroke(&mut self, path: Option<Path>, rgb: u32, width: f64, dashes: Vec<f32>) {
        let stroke = Stroke {
            width: px(width),
            // `None` without dashes.
            dash: StrokeDash::new(dashes, 0.0),
            ..Stroke::default()
        };
        if let Some(path) = path {
            let all = Transform::identity();
            self.0.stroke_path(&path, &paint(rgb), &stroke, all, None);
        }
    }

    fn write(&mut self, at: At, text: &str, size: f64, anchor: Anchor, ink: Ink) {
        let before = match anchor {
            Anchor::Start => 0.0,
            Anchor::Middle => font::width(text, size) / 2.0,
            Anchor::End => font::width(text, size),
        };
        let face = font::face();
        let mut pen = Pen {
            path: PathBuilder::new(),
            x: px(at.0 - before),
            y: px(at.1),
            scale: px(size) / f32::from(face.units_per_em()),
        };
        for c in text.chars() {
            let glyph = face.glyph_index(c).unwrap_or_default();
            face.outline_glyph(glyph, &mut pen);
            pen.x += f32::from(face.glyph_hor_advance(glyph).unwrap_or_default()) * pen.scale;
        }
        if let Some(path) = pen.path.finish() {
            self.fill(&path, colour(ink));
        }
    }
}

/// A length in pixels of the file.
fn px(length: f64) -> f32 {
    // CAST: A chart needs no more precision.
    (length * SCALE) as f32
}

fn path(points: &[At], closed: bool) -> Option<Path> {
    let mut path = PathBuilder::new();
    for (index, &(x, y)) in points.iter().enumerate() {
        if index == 0 {
            path.move_to(px(x), px(y));
        } else {
            path.line_to(px(x), px(y));
        }
    }
    if closed {
        path.close();
    }
    path.finish()
}

/// Places a glyph's outline, whose y axis points up.
struct Pen {
    path: PathBuilder,
    x: f32,
    y: f32,
    scale: f32,
}

impl Pen {
    fn at(&self, x: f32, y: f32) -> (f32, f32) {
        (self.x + x * self.scale, self.y - y * self.scale)
    }
}

impl OutlineBuilder for Pen {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.at(x1, y1), self.at(x, y));
        self.path.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.at(x1, y1), self.at(x2, y2), self.at(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}
