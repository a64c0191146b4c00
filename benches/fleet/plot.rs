//! The plots: one SVG a case.

use std::path::Path;
use std::{fs, io};

use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// What happened over time, for each of those that were measured.
pub struct Plot {
    pub title: String,
    pub x: &'static str,
    pub y: &'static str,
    /// Drawn in this order, each over those before it.
    pub lines: Vec<Line>,
    /// A line to stay below (or to reach): its name and its height.
    pub bound: Option<(String, f64)>,
}

pub struct Line {
    pub name: &'static str,
    /// In the order of time.
    pub points: Vec<(f64, f64)>,
}

const WIDTH: i32 = 800;
const HEIGHT: i32 = 400;
/// The backend knows whole pixels only, and makes stairs of a line that grows slowly: the picture is drawn so many
/// times as large as it is shown.
const FINE: i32 = 4;
/// A line has at most four points in each of so many columns, which are two pixels wide: more cannot be told apart.
const COLUMNS: f64 = 300.0;
/// So many grid lines there are at most, and the axis.
const STEPS: u8 = 5;
/// A bound so many times as high as the lines is only named: drawn, it would press them flat.
const FAR: f64 = 4.0;

const INK: RGBColor = RGBColor(51, 51, 51);
const GREY: RGBColor = RGBColor(100, 100, 100);
const GRID: RGBColor = RGBColor(226, 226, 226);

impl Plot {
    pub fn write(&self, file: &Path) {
        let mut svg = String::new();
        let size = |fine: i32| ((WIDTH * fine).unsigned_abs(), (HEIGHT * fine).unsigned_abs());
        self.draw(&SVGBackend::with_string(&mut svg, size(FINE)).into_drawing_area()).expect("draw a plot");
        let [drawn, shown] =
            [FINE, 1].map(size).map(|(width, height)| format!(r#"width="{width}" height="{height}""#));
        fs::write(file, svg.replacen(&drawn, &shown, 1)).expect("write a plot");
    }

    fn draw(&self, area: &DrawingArea<SVGBackend, Shift>) -> Result<(), DrawingAreaErrorKind<io::Error>> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let end = or_one(points().map(|point| point.0).fold(0.0, f64::max));
        let highest = points().map(|point| point.1).fold(0.0, f64::max);
        let bound = self.bound.as_ref().map(|(name, height)| (name, *height));
        let near = bound.map(|it| it.1).filter(|height| highest <= 0.0 || *height <= FAR * highest);
        let top = round_above(or_one(near.map_or(highest, |near| near.max(highest))));

        let mut labels: Vec<Label> = self.lines.iter().map(Line::label).collect();
        labels.extend(bound.map(|(name, height)| {
            let text = match number(height) {
                _ if near.is_some() => name.clone(),
                value if name.contains(&value) => format!("↑ {name}"),
                value => format!("↑ {name}: {value}"),
            };
            Label { text, style: None, height: height.min(top) }
        }));
        labels.sort_by(|one, other| other.height.total_cmp(&one.height));
        let left = width(&number(top)).max(width("0.00")) + 10 * FINE;
        let right = labels.iter().map(|label| width(&label.text)).max().unwrap_or(0) + 50 * FINE;

        area.fill(&WHITE)?;
        area.draw(&Text::new(self.title.as_str(), (16 * FINE, 14 * FINE), text(16, INK, VPos::Top)))?;
        area.draw(&Text::new(self.y, (16 * FINE, 42 * FINE), text(12, GREY, VPos::Top)))?;
        let mut chart = ChartBuilder::on(area)
            .margin_left(16 * FINE)
            .margin_top(70 * FINE)
            .margin_right(right)
            .margin_bottom(10 * FINE)
            .set_label_area_size(LabelAreaPosition::Left, left)
            .set_label_area_size(LabelAreaPosition::Bottom, 44 * FINE)
            .build_cartesian_2d(0.0..end, 0.0..top)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(11)
            .y_labels(usize::from(STEPS) + 1)
            .max_light_lines(0)
            .bold_line_style(GRID.stroke_width(4))
            .axis_style(GREY.stroke_width(4))
            .set_all_tick_mark_size(4 * FINE)
            .label_style(text(12, GREY, VPos::Center))
            .axis_desc_style(text(12, GREY, VPos::Center))
            .x_label_formatter(&|time| number(*time))
            .y_label_formatter(&|height| number(*height))
            .x_desc(self.x)
            .draw()?;
        if let Some(near) = near {
            area.draw(&dashes([(0.0, near), (end, near)].map(|point| chart.backend_coord(&point))))?;
        }
        for line in &self.lines {
            if let Some(last) = line.points.last() {
                let style = line.style();
                chart.draw_series([PathElement::new(thinned(&line.points, end), style)])?;
                // Dots on the same place are rings.
                chart.draw_series([Circle::new(*last, style.stroke_width + 5, style.filled())])?;
            }
        }
        let place = |height: f64| chart.backend_coord(&(end, height)).1;
        let places = spread(labels.iter().map(|label| place(label.height)).collect(), place(0.0));
        for (label, y) in labels.into_iter().zip(places) {
            let [from, to, x] = [12, 32, 39].map(|x| WIDTH * FINE - right + x * FINE);
            match label.style {
                Some(style) => area.draw(&PathElement::new([(from, y), (to, y)], style))?,
                None => area.draw(&dashes([(from, y), (to, y)]))?,
            }
            area.draw(&Text::new(label.text, (x, y), text(13, INK, VPos::Center)))?;
        }
        area.present()
    }
}

impl Line {
    /// The same for a name in every plot. The colours differ in lightness too, and of two lines in the same place the
    /// upper one is thinner.
    fn style(&self) -> ShapeStyle {
        match self.name {
            "powa-collector" => RGBColor(0, 90, 180).stroke_width(11),
            "Python collector" => RGBColor(230, 120, 0).stroke_width(7),
            _ => RGBColor(130, 130, 130).stroke_width(4),
        }
    }

    fn label(&self) -> Label {
        let none = if self.points.is_empty() { " (none)" } else { "" };
        let height = self.points.last().map_or(0.0, |last| last.1);
        Label { text: format!("{}{none}", self.name), style: Some(self.style()), height }
    }
}

/// What stands to the right of the lines, as high as its line ends.
struct Label {
    text: String,
    /// The bound has none: it is dashed.
    style: Option<ShapeStyle>,
    height: f64,
}

/// Makes room between the labels, which are in order: each one is moved down, and up again from below the lowest.
fn spread(mut places: Vec<i32>, mut lowest: i32) -> Vec<i32> {
    let apart = 18 * FINE;
    for at in 1..places.len() {
        places[at] = places[at].max(places[at - 1] + apart);
    }
    for place in places.iter_mut().rev() {
        *place = lowest.min(*place);
        lowest = *place - apart;
    }
    places
}

/// Of each column the points that come first and last, and those that are lowest and highest.
fn thinned(points: &[(f64, f64)], end: f64) -> Vec<(f64, f64)> {
    let column = |point: &(f64, f64)| (point.0 / end * COLUMNS).floor();
    let columns = points.chunk_by(|one, other| column(one).total_cmp(&column(other)).is_eq());
    let mut kept: Vec<_> = columns
        .flat_map(|column| {
            let by_height = |one: &usize, other: &usize| column[*one].1.total_cmp(&column[*other].1);
            let lowest = (0..column.len()).min_by(by_height).unwrap_or(0);
            let highest = (0..column.len()).max_by(by_height).unwrap_or(0);
            let mut four = [0, lowest, highest, column.len() - 1];
            four.sort_unstable();
            four.map(|at| column[at])
        })
        .collect();
    kept.dedup();
    kept
}

/// The topmost grid line: the first one that nothing exceeds. The grid lines in between come of themselves.
fn round_above(highest: f64) -> f64 {
    let least = highest / f64::from(STEPS);
    let power = 10_f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|times| times * power);
    let step = steps.into_iter().find(|step| *step >= least).unwrap_or(10.0 * power);
    (highest / step - 1e-9).ceil() * step
}

/// An axis has a length, even if there is nothing on it.
fn or_one(value: f64) -> f64 {
    if value > 0.0 { value } else { 1.0 }
}

fn number(value: f64) -> String {
    format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What a text takes, rather too much than too little: there is no font to ask.
fn width(text: &str) -> i32 {
    text.chars().map(|_| 15 * FINE / 2).sum()
}

fn dashes(ends: [(i32, i32); 2]) -> DashedPathElement<std::array::IntoIter<(i32, i32), 2>, i32> {
    DashedPathElement::new(ends, 6 * FINE, 4 * FINE, INK.stroke_width(4))
}

fn text(size: i32, colour: RGBColor, vertical: VPos) -> TextStyle<'static> {
    // The backend divides the size by this.
    let size = f64::from(size * FINE) * 1.24;
    ("sans-serif", size).into_font().color(&colour).pos(Pos::new(HPos::Left, vertical))
}
