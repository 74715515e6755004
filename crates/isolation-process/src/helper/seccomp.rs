//! Loading a seccomp profile into the calling process.

use libcontainer::seccomp::SeccompError;
use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompArgBuilder, LinuxSeccompOperator};

/// A profile that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error("rewrite masked comparisons")]
    Rewrite(#[source] OciSpecError),
    #[error("load the seccomp profile")]
    Load(#[source] SeccompError),
}

/// Confines the calling process and all that it becomes.
pub fn load(profile: &LinuxSeccomp) -> Result<(), FilterError> {
    let profile = swap_masks(profile.clone()).map_err(FilterError::Rewrite)?;
    libcontainer::seccomp::initialize_seccomp(&profile)
        .map(|_listener| ())
        .map_err(FilterError::Load)
}

/// Masked comparisons as libcontainer reads them. OCI's `SCMP_CMP_MASKED_EQ` means
/// `argument & value == valueTwo`; libcontainer 0.7 takes `valueTwo` for the mask and `value`
/// for what is compared with. Docker's rule for `clone` would then read `argument & 0 == …`,
/// which libseccomp makes true for every argument, and let every namespace be made.
fn swap_masks(mut profile: LinuxSeccomp) -> Result<LinuxSeccomp, OciSpecError> {
    let mut rules = profile.syscalls().clone().unwrap_or_default();
    for rule in &mut rules {
        let Some(mut arguments) = rule.args().clone() else {
            continue;
        };
        for argument in &mut arguments {
            if argument.op() == LinuxSeccompOperator::ScmpCmpMaskedEq {
                *argument = LinuxSeccompArgBuilder::default()
                    .index(argument.index())
                    .op(argument.op())
                    .value(argument.value_two().unwrap_or(0))
                    .value_two(argument.value())
                    .build()?;
            }
        }
        rule.set_args(Some(arguments));
    }
    profile.set_syscalls(Some(rules));
    Ok(profile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_comparisons_are_written_as_libcontainer_reads_them() {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
              {"names":["clone"],"action":"SCMP_ACT_ALLOW","args":
                [{"index":0,"value":7,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]},
              {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":
                [{"index":0,"value":40,"op":"SCMP_CMP_NE"}]},
              {"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#;
        let profile = swap_masks(serde_json::from_str(text).unwrap()).unwrap();
        let rules = profile.syscalls().clone().unwrap();
        let clone = rules[0].args().as_ref().unwrap()[0];
        assert_eq!((clone.value(), clone.value_two()), (0, Some(7)));
        let socket = rules[1].args().as_ref().unwrap()[0];
        assert_eq!((socket.value(), socket.value_two()), (40, None));
        assert!(rules[2].args().is_none());
    }
}
