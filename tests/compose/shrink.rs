//! Shrinking: of the steps that lead to a failure, few that still do. Plain delta debugging.
//!
//! Not `proptest-state-machine`, as the model over fakes uses it: there a try takes microseconds and
//! thousands of them are right; here each takes seconds on a store of its own, so what matters is to
//! cut large pieces first, to stop at a time, and to say what was found by then.

/// Returns a shortest sequence found that still fails, as long as `may_try` says that there is time.
/// The last step is where it fails: it stays.
pub(crate) fn shrink<T: Clone>(
    steps: &[T],
    mut may_try: impl FnMut() -> bool,
    mut fails: impl FnMut(&[T]) -> bool,
) -> Vec<T> {
    let mut steps = steps.to_vec();
    let mut piece = steps.len().div_ceil(2);
    while piece > 0 {
        let mut at = 0;
        let before = steps.len();
        while at + 1 < steps.len() {
            if !may_try() {
                return steps;
            }
            let until = (at + piece).min(steps.len() - 1);
            let fewer = [&steps[..at], &steps[until..]].concat();
            if fails(&fewer) { steps = fewer } else { at = until }
        }
        if piece == 1 && steps.len() == before {
            break;
        }
        piece = if piece == 1 { 1 } else { piece.div_ceil(2) };
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_is_left_in_its_order() {
        let steps: Vec<u32> = (0..40).collect();
        let mut tries = 0;
        let left = shrink(
            &steps,
            || true,
            |tried| {
                tries += 1;
                [3, 17, 18, 39].iter().all(|needed| tried.contains(needed))
            },
        );
        assert_eq!(left, [3, 17, 18, 39]);
        assert!(tries < 60, "{tries} tries");
    }

    #[test]
    fn the_last_step_stays_and_the_time_is_kept() {
        assert_eq!(shrink(&[1, 2, 3], || true, |_| true), [3]);
        let mut left = 1;
        let may_try = || {
            left -= 1;
            left >= 0
        };
        assert_eq!(shrink(&[1, 2, 3, 4], may_try, |_| true), [3, 4]);
    }
}
