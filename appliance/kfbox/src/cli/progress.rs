//! Live progress: bars on a terminal, plain lines elsewhere.

use crate::control::{Progress, Status};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use kfbox_base::readiness::State;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::IsTerminal,
    time::Duration,
};

/// One line a component: spinning, then ticked with how long it took.
pub struct Components {
    lines: MultiProgress,
    bars: BTreeMap<String, ProgressBar>,
    done: BTreeSet<String>,
    live: bool,
}

impl Components {
    pub fn new() -> Self {
        Self {
            lines: MultiProgress::new(),
            bars: BTreeMap::new(),
            done: BTreeSet::new(),
            live: std::io::stderr().is_terminal(),
        }
    }

    pub fn show(&mut self, status: &Status) {
        for c in &status.components {
            if self.done.contains(&c.name) {
                continue;
            }
            if self.live && !self.bars.contains_key(&c.name) {
                let bar = self.lines.add(ProgressBar::new_spinner());
                bar.set_style(spinner());
                bar.enable_steady_tick(Duration::from_millis(80));
                self.bars.insert(c.name.clone(), bar);
            }
            let line = match c.state {
                State::Starting => {
                    if let Some(bar) = self.bars.get(&c.name) {
                        bar.set_message(format!("{:<22} {}", c.name, c.message));
                    }
                    continue;
                }
                State::Ready => {
                    format!("✔ {:<22} {:>6.2} s", c.name, c.took_ms.unwrap_or_default() as f64 / 1000.0)
                }
                State::Failed => format!("✘ {:<22} {}", c.name, c.message),
            };
            match self.bars.get(&c.name) {
                Some(bar) => {
                    bar.set_style(plain());
                    bar.finish_with_message(line);
                }
                None => eprintln!("  {line}"),
            }
            self.done.insert(c.name.clone());
        }
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("  {spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn plain() -> ProgressStyle {
    ProgressStyle::with_template("  {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// One bar a layer.
pub struct Layers {
    lines: MultiProgress,
    bars: BTreeMap<String, ProgressBar>,
}

impl Layers {
    pub fn new() -> Self {
        Self { lines: MultiProgress::new(), bars: BTreeMap::new() }
    }

    pub fn show(&mut self, event: &Progress) {
        if let Progress::Layer { id, done, total } = event {
            let bar = self.bars.entry(id.clone()).or_insert_with(|| {
                let style = ProgressStyle::with_template("  {prefix:<14} {bar:32} {bytes:>10} / {total_bytes:<10}")
                    .unwrap_or_else(|_| ProgressStyle::default_bar());
                let bar = self.lines.add(ProgressBar::new(*total));
                bar.set_style(style);
                bar.set_prefix(id.trim_start_matches("sha256:").chars().take(12).collect::<String>());
                bar
            });
            bar.set_length(*total);
            bar.set_position(*done);
            if done >= total && *total > 0 {
                bar.finish();
            }
        }
    }
}
