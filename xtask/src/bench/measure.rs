//! Contests: sides that take turns, their medians, their ratio to the first.

use std::time::Instant;

type Work<'a> = Box<dyn FnMut() -> anyhow::Result<()> + 'a>;
type Reading<'a> = Box<dyn FnMut() -> anyhow::Result<f64> + 'a>;

/// Sides that do the same in turns.
pub(super) struct Contest<'a> {
    title: String,
    unit: &'static str,
    sides: Vec<(String, Reading<'a>)>,
    prepare: Option<Work<'a>>,
}

impl<'a> Contest<'a> {
    /// A contest in time.
    pub(super) fn new(title: &str) -> Self {
        Self::of(title, "ms")
    }

    /// A contest in what the sides' own programs read off, in this unit.
    pub(super) fn of(title: &str, unit: &'static str) -> Self {
        Self {
            title: title.to_owned(),
            unit,
            sides: Vec::new(),
            prepare: None,
        }
    }

    /// One more side, timed; the first is what the others are compared with.
    pub(super) fn side(&mut self, name: &str, mut work: impl FnMut() -> anyhow::Result<()> + 'a) {
        self.reading(name, move || {
            let start = Instant::now();
            work()?;
            Ok(start.elapsed().as_secs_f64() * 1e3)
        });
    }

    /// One more side that says itself what it reached.
    pub(super) fn reading(
        &mut self,
        name: &str,
        reading: impl FnMut() -> anyhow::Result<f64> + 'a,
    ) {
        self.sides.push((name.to_owned(), Box::new(reading)));
    }

    /// Runs before each turn of each side, and is not measured.
    pub(super) fn prepare(&mut self, work: impl FnMut() -> anyhow::Result<()> + 'a) {
        self.prepare = Some(Box::new(work));
    }

    /// Takes the turns, after one that does not count, and prints the medians.
    pub(super) fn run(mut self, rounds: u32) -> anyhow::Result<()> {
        let mut values = vec![Vec::new(); self.sides.len()];
        for round in 0..=rounds {
            for ((_, reading), values) in self.sides.iter_mut().zip(&mut values) {
                if let Some(prepare) = &mut self.prepare {
                    prepare()?;
                }
                let value = reading()?;
                if round > 0 {
                    values.push(value);
                }
            }
        }
        let figures: Vec<Figure> = self
            .sides
            .iter()
            .zip(values)
            .map(|((name, _), values)| Figure::median(name, values, self.unit))
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
    /// One value.
    pub(super) fn new(name: &str, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            value,
            unit,
            spread: String::new(),
        }
    }

    /// Memory.
    pub(super) fn kib(name: &str, kib: u32) -> Self {
        Self::new(name, f64::from(kib) / 1024.0, "MiB")
    }

    fn median(name: &str, mut values: Vec<f64>, unit: &'static str) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |value: Option<&f64>| value.copied().unwrap_or_default();
        Self {
            name: name.to_owned(),
            value: at(values.get(values.len() / 2)),
            unit,
            spread: format!("{:.0}…{:.0}", at(values.first()), at(values.last())),
        }
    }
}

/// Prints figures with their ratio to the first.
pub(super) fn table(title: &str, figures: &[Figure]) {
    println!("\n{title}");
    let first = figures.first().map_or(1.0, |figure| figure.value);
    for figure in figures {
        println!(
            "  {:<40} {:>9.1} {:<6} {:>6.2}x  {}",
            figure.name,
            figure.value,
            figure.unit,
            figure.value / first,
            figure.spread
        );
    }
}
