//! Lists of numbers as the kernel writes them: CPUs and memory nodes (`cpuset(7)`, "List format").

/// Most CPUs or nodes that a list may name; the kernel's `NR_CPUS` is 8192 at most.
const MAX_LIST: u32 = 8192;

/// The numbers of a list (`0-2,7`), ascending; `None` when it is none.
pub fn parse_cpu_list(text: &str) -> Option<Vec<u32>> {
    let mut out = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (first.parse().ok()?, last.parse().ok()?),
            None => {
                let only: u32 = part.parse().ok()?;
                (only, only)
            }
        };
        if first > last || last >= MAX_LIST {
            return None;
        }
        out.extend(first..=last);
    }
    out.sort_unstable();
    out.dedup();
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_as_the_kernel_writes_them() {
        assert_eq!(parse_cpu_list("0-2,7\n"), Some(vec![0, 1, 2, 7]));
        assert_eq!(parse_cpu_list(""), Some(Vec::new()));
        for bad in ["2-0", "a", "0-", "-1", "0-4000000000", "1-99999"] {
            assert_eq!(parse_cpu_list(bad), None, "{bad}");
        }
    }
}
