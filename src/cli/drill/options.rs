//! The command line of `patou drill`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::fault::FaultKind;
use super::generator::KindSelection;
use crate::cli::duration_arg::duration;

/// The default of `--pace`.
const DEFAULT_PACE: f64 = 5.0;

#[derive(Debug, Args)]
pub(crate) struct DrillOptions {
    /// Seed of the list of faults; the same seed gives the same list [default: random]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// How many faults to inject
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub faults: u32,
    /// Faults per second, on average
    #[arg(long, value_name = "X", default_value_t = DEFAULT_PACE, value_parser = pace)]
    pub pace: f64,
    /// Inject only these kinds of faults
    #[arg(long, value_name = "KIND", value_delimiter = ',', hide_possible_values = true)]
    pub only: Vec<FaultKind>,
    /// Inject no faults of these kinds
    #[arg(long, value_name = "KIND", value_delimiter = ',', hide_possible_values = true)]
    pub except: Vec<FaultKind>,
    /// Inject no more faults after this time, and send requests until then
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Confirm that the drill may damage the set of --config
    #[arg(long)]
    pub yes: bool,
    /// Path of the requests to handlers unknown to the drill
    #[arg(long, value_name = "PATH", default_value = "/", value_parser = path)]
    pub path: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Keep the log of the private set
    #[arg(long)]
    pub keep_log: bool,
}

impl DrillOptions {
    /// The command that repeats this drill.
    pub(crate) fn repeat_command(&self, is_private: bool, seed: u64) -> String {
        let yes = if is_private { "" } else { " --yes" };
        let pace = if self.pace == DEFAULT_PACE { String::new() } else { format!(" --pace {}", self.pace) };
        let kinds = |option: &str, kinds: &[FaultKind]| {
            let names: Vec<_> = kinds.iter().filter_map(ValueEnum::to_possible_value).collect();
            let names: Vec<_> = names.iter().map(|value| value.get_name()).collect();
            if names.is_empty() { String::new() } else { format!(" {option} {}", names.join(",")) }
        };
        let kinds = kinds("--only", &self.only) + &kinds("--except", &self.except);
        format!("patou drill{yes} --seed {seed} --faults {}{pace}{kinds}", self.faults)
    }

    /// The kinds of faults to inject.
    pub(super) fn selection(&self) -> KindSelection {
        KindSelection { only: self.only.clone(), except: self.except.clone() }
    }
}

fn pace(text: &str) -> Result<f64, String> {
    let pace = text.parse().ok().filter(|pace| (0.001..=1000.0).contains(pace));
    pace.ok_or_else(|| format!("{text} is not a number of faults per second from 0.001 to 1000"))
}

fn path(text: &str) -> Result<String, String> {
    if text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("a path starts with a slash and contains no spaces".into())
    }
}
