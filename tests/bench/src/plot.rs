// SPDX-License-Identifier: GPL-2.0
//! Plots: a row by size, a line for each peer, both axes logarithmic.

use std::path::Path;

use plotters::prelude::*;

use crate::bounds::gib;
use crate::figures::Figures;
use crate::rows::{Row, Unit};

const SIZE: (u32, u32) = (900, 540);
const FONT: &str = "sans-serif";

/// Draws a row into a file.
pub fn draw(figures: &Figures, row: &Row, path: &Path) -> crate::Result<()> {
    chart(figures, row, path).map_err(|error| format!("{}: {error}", path.display()))
}

fn chart(
    figures: &Figures,
    row: &Row,
    path: &Path,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let lines: Vec<(&str, Vec<(f64, f64)>)> = figures
        .peers(row.name)
        .into_iter()
        .map(|peer| (peer, points(figures, row, peer)))
        .collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let (right, top) = all().fold((1.0_f64, 1.0_f64), |(x, y), point| {
        (x.max(point.0), y.max(point.1))
    });
    let (left, bottom) = all().fold((right, top), |(x, y), point| {
        (x.min(point.0), y.min(point.1))
    });
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(row.title, (FONT, 22))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(110)
        .build_cartesian_2d(
            (left..right * 1.1).log_scale(),
            (bottom / 2.0..top * 4.0).log_scale(),
        )?;
    let (across, up) = match (row.guests, row.unit) {
        (true, _) => ("guests", "instructions"),
        (false, Unit::Count) => ("GiB", "instructions"),
        (false, Unit::Bytes) => ("GiB", "bytes"),
    };
    chart
        .configure_mesh()
        .x_desc(across)
        .y_desc(up)
        .x_label_formatter(&|x| format!("{x}"))
        .y_label_formatter(&|y| crate::bounds::grouped(*y as u64))
        .draw()?;
    for (index, (peer, points)) in lines.iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        chart
            .draw_series(
                LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(3),
            )?
            .label(*peer)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font((FONT, 13))
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}

/// What there is of a peer. A logarithm has no place for nothing, so that is drawn as 1.
fn points(figures: &Figures, row: &Row, peer: &str) -> Vec<(f64, f64)> {
    let point = |size| {
        let across = if row.guests { size as f64 } else { gib(size) };
        Some((across, figures.get(row.name, peer, size)?.max(1) as f64))
    };
    figures
        .sizes(row.name)
        .into_iter()
        .filter_map(point)
        .collect()
}
