//! One drain of a backlog.

use serde::Serialize;

/// One drain.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) rows: usize,
    pub(crate) seconds: f64,
    /// From the process's start to the clock's, where that is apart.
    pub(crate) start_seconds: Option<f64>,
    pub(crate) cpu_us_per_event: Option<f64>,
    pub(crate) peak_resident_bytes: Option<u64>,
}

impl Sample {
    /// Of something whose processor time and memory are not looked at.
    pub(crate) fn of(rows: usize, seconds: f64) -> Self {
        Sample {
            rows,
            seconds,
            start_seconds: None,
            cpu_us_per_event: None,
            peak_resident_bytes: None,
        }
    }

    pub(crate) fn rate(&self) -> f64 {
        self.rows as f64 / self.seconds
    }
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { f64::midpoint(*values.get(middle - 1)?, upper) })
}
