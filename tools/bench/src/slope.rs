// SPDX-License-Identifier: GPL-2.0-only

//! The cost of another vCPU.

/// The slope of the least-squares line through `points` (vCPUs, instructions); `None` with fewer
/// than two different numbers of vCPUs.
pub(crate) fn slope(points: &[(u32, u64)]) -> Option<f64> {
    // CAST: Counts are far below 2^53.
    let points: Vec<_> = points
        .iter()
        .map(|&(x, y)| (f64::from(x), y as f64))
        .collect();
    // CAST: The number of points is small.
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x_mean, y_mean) = (mean(|point| point.0), mean(|point| point.1));
    let products = |of: fn(f64, f64) -> f64| {
        points
            .iter()
            .map(|&(x, y)| of(x - x_mean, y - y_mean))
            .sum::<f64>()
    };
    let spread = products(|x, _| x * x);
    (spread > 0.0).then(|| products(|x, y| x * y) / spread)
}
