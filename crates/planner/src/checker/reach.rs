//! Which steps are done for certain when another starts.

use super::{Violation, found};
use drover_model::plan::Step;

/// By step, a bit for each earlier one that `after` puts before it, however indirectly.
pub(super) struct Reach {
    rows: Vec<Vec<u64>>,
}

impl Reach {
    pub fn new(steps: &[Step], violations: &mut Vec<Violation>) -> Self {
        let mut rows: Vec<Vec<u64>> = Vec::with_capacity(steps.len());
        for (step, Step { after, .. }) in steps.iter().enumerate() {
            let mut row = vec![0; step.div_ceil(64)];
            for &earlier in after {
                if earlier >= step {
                    found(violations, step, format!("it waits for step {earlier}, which does not come before it"));
                    continue;
                }
                row[earlier / 64] |= 1 << (earlier % 64);
                for (word, also) in row.iter_mut().zip(&rows[earlier]) {
                    *word |= also;
                }
            }
            rows.push(row);
        }
        Self { rows }
    }

    /// Whether `step` is done for certain when `by` starts. `None` is no step, and never done.
    pub fn done(&self, step: Option<usize>, by: usize) -> bool {
        step.is_some_and(|step| self.rows[by].get(step / 64).is_some_and(|word| word >> (step % 64) & 1 == 1))
    }
}
