//! Contests: sides that take turns, their medians, their ratio to the first.

use std::time::{Duration, Instant};

type Work<'a> = Box<dyn FnMut() -> anyhow::Result<()> + 'a>;

/// Sides that do the same in turns.
pub(super) struct Contest<'a> {
    title: String,
    sides: Vec<(String, Work<'a>)>,
    prepare: Option<Work<'a>>,
}

impl<'a> Contest<'a> {
    pub(super) fn new(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            sides: Vec::new(),
            prepare: None,
        }
    }

    /// One more side; the first is what the others are compared with.
    pub(super) fn side(&mut self, name: &str, work: impl FnMut() -> anyhow::Result<()> + 'a) {
        self.sides.push((name.to_owned(), Box::new(work)));
    }

    /// Runs before each turn of each side, and is not measured.
    pub(super) fn prepare(&mut self, work: impl FnMut() -> anyhow::Result<()> + 'a) {
        self.prepare = Some(Box::new(work));
    }

    /// Takes the turns, after one that does not count, and prints the medians.
    pub(super) fn run(mut self, rounds: u32) -> anyhow::Result<()> {
        let mut times = vec![Vec::new(); self.sides.len()];
        for round in 0..=rounds {
            for ((_, work), times) in self.sides.iter_mut().zip(&mut times) {
                if let Some(prepare) = &mut self.prepare {
                    prepare()?;
                }
                let start = Instant::now();
                work()?;
                if round > 0 {
                    times.push(start.elapsed());
                }
            }
        }
        let figures: Vec<Figure> = self
            .sides
            .iter()
            .zip(times)
            .map(|((name, _), times)| Figure::times(name, times))
            .collect();
        table(&format!("{}, median of {rounds}", self.title), &figures);
        Ok(())
    }
}

/// A line of a table.
pub(super) struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    spread: String,
}

impl Figure {
    /// Resident memory.
    pub(super) fn kib(name: &str, kib: u32) -> Self {
        Self {
            name: name.to_owned(),
            value: f64::from(kib) / 1024.0,
            unit: "MiB",
            spread: String::new(),
        }
    }

    fn times(name: &str, mut times: Vec<Duration>) -> Self {
        times.sort();
        let milliseconds =
            |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
        Self {
            name: name.to_owned(),
            value: milliseconds(times.get(times.len() / 2)),
            unit: "ms",
            spread: format!(
                "{:.0}…{:.0}",
                milliseconds(times.first()),
                milliseconds(times.last())
            ),
        }
    }
}

/// Prints figures with their ratio to the first.
pub(super) fn table(title: &str, figures: &[Figure]) {
    println!("\n{title}");
    let first = figures.first().map_or(1.0, |figure| figure.value);
    for figure in figures {
        println!(
            "  {:<40} {:>9.1} {:<3} {:>6.2}x  {}",
            figure.name,
            figure.value,
            figure.unit,
            figure.value / first,
            figure.spread
        );
    }
}
