//! The course of the lag as a small drawing, with the same in words.

use maud::{Markup, html};

use super::super::view::Courses;
use super::text::short;

/// In units of the drawing; one point is one unit wide.
const WIDTH: usize = Courses::HOUR;
const HEIGHT: u32 = 36;
/// The top of the scale is at least this, in ms: what lags less looks as small as it is.
const TOP: u32 = 1_000;

/// The points of an hour, in ms, newest last; `None` is a gap.
pub(super) fn lag(points: &[Option<u32>]) -> Markup {
    let Some(highest) = points.iter().flatten().max().copied() else {
        return html! { span .none { "no data yet" } };
    };
    let top = highest.max(TOP);
    let (lines, areas) = paths(points, top);
    let says = format!("Lag during the last hour: at most {}", short(highest.into()));
    html! {
        figure {
            svg role="img" aria-label=(says) viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" {
                line .axis x1="0" y1={ (HEIGHT) ".5" } x2=(WIDTH) y2={ (HEIGHT) ".5" } {}
                path .area d=(areas) {}
                path .line d=(lines) {}
            }
            figcaption { "max " (short(highest.into())) }
        }
    }
}

/// What is drawn as lines, and as areas below them. Each run of known points is a path of its own.
fn paths(points: &[Option<u32>], top: u32) -> (String, String) {
    use std::fmt::Write as _;
    let (mut lines, mut areas) = (String::new(), String::new());
    let first = WIDTH.saturating_sub(points.len());
    let mut begun: Option<usize> = None;
    let close = |begun: &mut Option<usize>, areas: &mut String| {
        if let Some(start) = begun.take() {
            let _ = write!(areas, "V{HEIGHT}H{start}Z");
        }
    };
    for (i, point) in points.iter().enumerate() {
        let x = first + i;
        let Some(ms) = point else {
            close(&mut begun, &mut areas);
            continue;
        };
        // a line of 0 stays visible at the bottom
        let y = f64::from(HEIGHT - 1) - f64::from(*ms) / f64::from(top) * f64::from(HEIGHT - 2);
        let (pen, x2) = (if begun.is_none() { 'M' } else { 'L' }, x + 1);
        // each point is a step as wide as its time
        let _ = write!(lines, "{pen}{x} {y:.1}H{x2}");
        if begun.is_none() {
            let _ = write!(areas, "M{x} {HEIGHT}V{y:.1}H{x2}");
            begun = Some(x);
        } else {
            let _ = write!(areas, "V{y:.1}H{x2}");
        }
    }
    close(&mut begun, &mut areas);
    (lines, areas)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_part_the_lines_and_the_newest_is_at_the_right() {
        let (lines, areas) = paths(&[Some(0), None, Some(1_000), Some(500)], 1_000);
        assert_eq!(lines, "M236 35.0H237M238 1.0H239L239 18.0H240");
        assert_eq!(areas, "M236 36V35.0H237V36H236ZM238 36V1.0H239V18.0H240V36H238Z");
        assert_eq!(paths(&[], 1), (String::new(), String::new()));
    }

    #[test]
    fn it_is_said_in_words_too() {
        let drawn = lag(&[Some(0), Some(75_000)]).into_string();
        assert!(drawn.contains("at most 1 min 15 s"), "{drawn}");
        assert!(lag(&[None, None]).into_string().contains("no data"));
    }
}
