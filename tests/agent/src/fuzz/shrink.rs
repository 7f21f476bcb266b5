// SPDX-License-Identifier: GPL-2.0
//! Shortens a failing list: leaves out what is not needed for it to fail.

/// Delta debugging over `list`, which fails at its last element.
///
/// `fails` tries a shorter list and gives the position at which it fails, `None` if it does not (or if there is no
/// time left). What comes back fails, and unless time ran out no single element of it can be left out.
pub fn shrink<T: Copy>(list: Vec<T>, mut fails: impl FnMut(&[T]) -> Option<usize>) -> Vec<T> {
    let mut list = list;
    let mut chunk = list.len().div_ceil(2);
    while chunk > 0 {
        let mut progress = false;
        // From the end: what fails needs its last steps most, and the early ones are many.
        let mut end = list.len();
        while end > 0 {
            let start = end.saturating_sub(chunk);
            let mut shorter = list[..start].to_vec();
            shorter.extend_from_slice(&list[end..]);
            if let Some(at) = fails(&shorter) {
                shorter.truncate(at + 1);
                list = shorter;
                progress = true;
            }
            end = start.min(list.len());
        }
        if chunk > 1 || !progress {
            chunk /= 2;
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_remains_in_its_order() {
        let needed = [3, 57, 58, 99];
        let mut runs = 0;
        let shrunk = shrink((0..100).collect(), |list| {
            runs += 1;
            let position = |n| list.iter().position(|m| m == n);
            let all: Option<Vec<_>> = needed.iter().map(position).collect();
            all.and_then(|all| all.last().copied())
        });
        assert_eq!(shrunk, needed);
        assert!(runs < 150, "{runs} runs");
    }

    #[test]
    fn a_list_that_fails_by_itself_becomes_its_failing_element() {
        let fails = |list: &[u32]| list.iter().position(|n| *n == 40);
        assert_eq!(shrink((0..41).collect(), fails), [40]);
        assert_eq!(shrink(vec![1, 2], |_| None), [1, 2]);
    }
}
