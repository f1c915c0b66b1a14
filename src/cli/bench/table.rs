//! The rounds of a benchmark and the table that it prints.

use std::io::{self, Write};

use clap::Args;

use crate::cli::error::{CommandError, ignore_broken_pipe};

#[derive(Debug, Args)]
pub(super) struct RoundsArg {
    /// Number of measured rounds; one more round comes first and does not count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

/// The median, NaN if there is no value.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Groups of rows; the first row of each group is its baseline.
#[derive(Default)]
pub(super) struct Table(Vec<Vec<Row>>);

struct Row {
    label: String,
    /// One for each round.
    values: Vec<f64>,
}

impl Table {
    /// One group.
    pub(super) fn new(baseline: &str, others: impl IntoIterator<Item = String>) -> Self {
        let rows = std::iter::once(baseline.to_owned()).chain(others);
        Self(vec![rows.map(|label| Row { label, values: Vec::new() }).collect()])
    }

    /// Adds the groups of `other`.
    pub(super) fn append(&mut self, other: Table) {
        self.0.extend(other.0);
    }

    /// Calls `measure` with the index of each row in each round. The first round warms up and does not count.
    pub(super) fn fill(
        &mut self,
        args: &RoundsArg,
        mut measure: impl FnMut(usize) -> Result<f64, CommandError>,
    ) -> Result<(), CommandError> {
        for round in 0..=args.rounds {
            for (index, row) in self.0.iter_mut().flatten().enumerate() {
                let value = measure(index)?;
                if round > 0 {
                    row.values.push(value);
                }
            }
        }
        Ok(())
    }

    /// Prints the table to standard output.
    pub(super) fn print(&self, title: &str) -> Result<(), CommandError> {
        let mut out = io::stdout().lock();
        ignore_broken_pipe(self.write(&mut out, title))
    }

    fn write(&self, out: &mut impl Write, title: &str) -> io::Result<()> {
        writeln!(out, "{title}\n{:<50} {:>10}   {:>10} - {:<10} {:>6}", "", "median", "lowest", "highest", "ratio")?;
        for group in &self.0 {
            let baseline = group.first().map_or(f64::NAN, |row| median(row.values.clone()));
            for row in group {
                let middle = median(row.values.clone());
                let lowest = row.values.iter().copied().fold(f64::INFINITY, f64::min);
                let highest = row.values.iter().copied().fold(0.0, f64::max);
                let (label, ratio) = (&row.label, middle / baseline);
                writeln!(out, "{label:<50} {middle:>10.2}   {lowest:>10.2} - {highest:<10.2} {ratio:>6.2}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_prints_each_row_beside_the_baseline_of_its_group() {
        let mut table = Table::new("bare", ["set".to_owned()]);
        let mut values = [9.0, 9.0, 4.0, 3.0, 2.0, 1.0, 5.0, 4.0].into_iter();
        assert!(table.fill(&RoundsArg { rounds: 3 }, |_| Ok(values.next().unwrap())).is_ok());
        let mut text = Vec::new();
        table.write(&mut text, "per second").unwrap();
        let text = String::from_utf8(text).unwrap();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let lines: Vec<_> = text.lines().skip(2).map(words).collect();
        assert_eq!(lines[0], ["bare", "4.00", "2.00", "-", "5.00", "1.00"]);
        assert_eq!(lines[1], ["set", "3.00", "1.00", "-", "4.00", "0.75"]);
    }
}
