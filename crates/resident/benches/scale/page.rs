//! `docs/cluster-scale.md` and its picture: what came of it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plotters::prelude::*;

use crate::Figures;
use crate::measure::Spread;
use crate::storm::{SETTLED, Storm};

/// What has to hold with most hosts.
const CHANGE: Duration = Duration::from_millis(100);
const COLD: Duration = Duration::from_secs(10);
const MEMORY: usize = 1024;

const HEAD: &str = include_str!("head.md");

/// The bounds that are not kept: those of a thousand hosts, if there were as many, and of the storm.
pub(crate) fn missed(figures: &[Figures], storm: Option<&Storm>) -> Vec<String> {
    let mut missed = Vec::new();
    let mut check = |is_kept: bool, what: String| {
        if !is_kept {
            missed.push(what);
        }
    };
    for figures in figures.iter().filter(|figures| figures.hosts >= 1000) {
        let Figures { hosts, endpoint, block, cold, .. } = figures;
        check(endpoint.p99 < CHANGE, format!("an endpoint comes to {hosts} hosts with p99 {:.1?}", endpoint.p99));
        check(block.p99 < CHANGE, format!("a block comes to {hosts} hosts with p99 {:.1?}", block.p99));
        check(*cold < COLD, format!("{hosts} hosts take {cold:.1?} to start"));
        let each = figures.per_endpoint();
        check(each <= MEMORY, format!("an endpoint of another host takes {each} B"));
    }
    if let Some(storm) = storm {
        check(storm.stale == 0, format!("{} entries are stale {SETTLED:.0?} after the storm", storm.stale));
    }
    missed
}

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)
}

/// Writes both; what was `missed` as well, and how busy the machine was.
pub(crate) fn write(figures: &[Figures], storm: &Storm, missed: &[String], load: &str) {
    draw(figures);
    let mut text = HEAD.to_owned();
    text.push_str(
        "\n| hosts | endpoints | a host knows of others | start of all hosts | processor time of that: hosts, etcd | memory of a host | without endpoints | \
         for each endpoint known | etcd on disk (in use) |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for figures in figures {
        let Figures {
            hosts, endpoints, held, cold, cold_usage: (ours, etcds), memory, bare, etcd: (disk, used), ..
        } = figures;
        let _ = writeln!(
            text,
            "| {hosts} | {endpoints} | {} | {} | {}, {} | {} KiB | {} KiB | {} B | {} MiB ({} MiB) |",
            held / hosts,
            seconds(*cold),
            seconds(*ours),
            seconds(*etcds),
            memory / hosts / 1024,
            bare / hosts / 1024,
            figures.per_endpoint(),
            disk >> 20,
            used >> 20,
        );
    }
    text.push_str(
        "\nA change, from the word of the container's daemon until it is in the rows of all other hosts:\n\n\
         | hosts | an endpoint comes: median | p99 | at most | a block is claimed: median | p99 | at most | processor time \
         of one: hosts, etcd |\n|---|---|---|---|---|---|---|---|\n",
    );
    for Figures { hosts, endpoint, block, change, .. } in figures {
        let cells = |Spread { median, p99, most }: &Spread| [median, p99, most].map(|time| millis(*time)).join(" | ");
        let (ours, etcds) = (millis(change.0), millis(change.1));
        let _ = writeln!(text, "| {hosts} | {} | {} | {ours}, {etcds} |", cells(endpoint), cells(block));
    }
    let Storm { hosts, endpoints, again, writing, behind, stale } = storm;
    let _ = write!(
        text,
        "\n## A storm\n\n{hosts} hosts on one network with {endpoints} endpoints, {again} of which are made anew at once, each with \
         the address of another one that goes (the storm of moby#52661). All of it was written after {}; all hosts had it {} after \
         the last write. Wrong entries {} s after that, on all hosts together: {stale}.\n",
        seconds(*writing),
        millis(*behind),
        SETTLED.as_secs(),
    );
    let _ = writeln!(
        text,
        "\n## Bounds\n\nWith a thousand hosts: a change is everywhere within {} (p99), all hosts start within {}, {MEMORY} B for each \
         endpoint known; nothing stale after the storm. Load of the machine before the first host started and after the storm: {load}.",
        millis(CHANGE),
        seconds(COLD),
    );
    if let Some(Figures { cold_usage, change, .. }) = figures.last() {
        let least = |(ours, etcds): &(Duration, Duration)| (*ours + *etcds) / 2;
        let _ = writeln!(
            text,
            "Two processors with nothing else to do need {} for the processor time of the start, and {} for that of a change.",
            seconds(least(cold_usage)),
            millis(least(change)),
        );
    }
    match missed {
        [] => text.push_str("All bounds are kept.\n"),
        _ => text.push_str(&format!("\n- Not kept: {}.\n", missed.join(".\n- Not kept: "))),
    }
    fs::write(docs("cluster-scale.md"), text).unwrap();
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// One curve of a chart: what it is called, and what it is for so many hosts.
type Curve = (&'static str, fn(&Figures) -> f64);

fn draw(figures: &[Figures]) {
    let path = docs("cluster-scale.svg");
    let area = SVGBackend::new(&path, (960, 640)).into_drawing_area();
    area.fill(&WHITE).unwrap();
    let charts: [(&str, &[Curve]); 4] = [
        (
            "A change is everywhere (ms)",
            &[
                ("endpoint, p99", |one| one.endpoint.p99.as_secs_f64() * 1e3),
                ("endpoint, median", |one| one.endpoint.median.as_secs_f64() * 1e3),
                ("block, p99", |one| one.block.p99.as_secs_f64() * 1e3),
            ],
        ),
        (
            "Start of all hosts (s)",
            &[
                ("until the last one", |one| one.cold.as_secs_f64()),
                ("processor: hosts", |one| one.cold_usage.0.as_secs_f64()),
                ("processor: etcd", |one| one.cold_usage.1.as_secs_f64()),
            ],
        ),
        (
            "Memory of a host (KiB)",
            &[
                ("all of it", |one| (one.memory / one.hosts) as f64 / 1024.0),
                ("without endpoints", |one| (one.bare / one.hosts) as f64 / 1024.0),
            ],
        ),
        (
            "etcd (MiB)",
            &[
                ("on disk", |one| one.etcd.0 as f64 / f64::from(1 << 20)),
                ("in use", |one| one.etcd.1 as f64 / f64::from(1 << 20)),
            ],
        ),
    ];
    for (part, (title, curves)) in area.split_evenly((2, 2)).iter().zip(charts) {
        let most = figures.iter().flat_map(|one| curves.iter().map(move |(_, of)| of(one))).fold(0.0, f64::max);
        let hosts = figures.iter().map(|one| one.hosts).max().unwrap_or(1) as f64;
        let mut chart = ChartBuilder::on(part)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(32)
            .y_label_area_size(48)
            .build_cartesian_2d(0.0..hosts * 1.05, 0.0..most * 1.15)
            .unwrap();
        chart.configure_mesh().x_desc("hosts").x_label_formatter(&|x| format!("{x:.0}")).draw().unwrap();
        for (number, (name, of)) in curves.iter().enumerate() {
            let colour = [RGBColor(31, 95, 168), RGBColor(200, 80, 30), RGBColor(60, 140, 70)][number % 3];
            let points = figures.iter().map(|one| (one.hosts as f64, of(one)));
            chart
                .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))
                .unwrap()
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
            chart.draw_series(points.map(|at| Circle::new(at, 3, colour.filled()))).unwrap();
        }
        let legend = &mut chart.configure_series_labels();
        legend.position(SeriesLabelPosition::UpperLeft).background_style(WHITE.mix(0.8)).draw().unwrap();
    }
    area.present().unwrap();
}
