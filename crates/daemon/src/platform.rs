//! Platforms as clients name them: `os[/architecture[/variant]]`, by Go's names and others.

use bulkhead_image::Platform;

use crate::error::{ApiError, ApiResult};

/// The operating systems that Go knows.
const SYSTEMS: [&str; 16] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
];

/// The architectures that Go knows, by their names there and elsewhere.
const ARCHITECTURES: [(&str, &str); 20] = [
    ("386", "386"),
    ("i386", "386"),
    ("amd64", "amd64"),
    ("x86_64", "amd64"),
    ("x86-64", "amd64"),
    ("arm", "arm"),
    ("armhf", "arm"),
    ("armel", "arm"),
    ("arm64", "arm64"),
    ("aarch64", "arm64"),
    ("loong64", "loong64"),
    ("mips", "mips"),
    ("mipsle", "mipsle"),
    ("mips64", "mips64"),
    ("mips64le", "mips64le"),
    ("ppc64", "ppc64"),
    ("ppc64le", "ppc64le"),
    ("riscv64", "riscv64"),
    ("s390x", "s390x"),
    ("wasm", "wasm"),
];

/// Reads a platform. What is known by several names, in any case, gets Go's.
///
/// # Errors
/// 400 for what is none, and for one word that is no system's and no architecture's.
pub fn parse(text: &str) -> ApiResult<Platform> {
    let lower = text.to_ascii_lowercase();
    let parts: Vec<&str> = lower.split('/').collect();
    let valid = |part: &&str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        !part.is_empty() && part.bytes().all(known)
    };
    if parts.len() > 3 || !parts.iter().all(valid) {
        return Err(ApiError::bad_request(format!(
            "\"{text}\" is an invalid OS/architecture[/variant]: invalid argument"
        )));
    }
    let architecture = |name: &str| {
        let found = ARCHITECTURES.iter().find(|(other, _)| *other == name);
        found.map(|(_, ours)| (*ours).to_owned())
    };
    if let [only] = parts[..] {
        // One part alone is an operating system or an architecture.
        let is_system = SYSTEMS.contains(&only);
        let architecture = architecture(only);
        if !is_system && architecture.is_none() {
            return Err(ApiError::bad_request(format!(
                "\"{text}\": unknown operating system or architecture: invalid argument"
            )));
        }
        return Ok(Platform {
            os: if is_system { only } else { "linux" }.to_owned(),
            architecture: architecture.unwrap_or_else(host_architecture),
            variant: None,
        });
    }
    Ok(Platform {
        os: parts[0].to_owned(),
        architecture: architecture(parts[1]).unwrap_or_else(|| parts[1].to_owned()),
        variant: parts.get(2).map(|part| (*part).to_owned()),
    })
}

/// This host's architecture in Go's words.
pub fn host_architecture() -> String {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms() {
        let arm = parse("linux/arm64/v8").unwrap();
        assert_eq!(
            (arm.architecture.as_str(), arm.variant.as_deref()),
            ("arm64", Some("v8"))
        );
        assert_eq!(parse("linux").unwrap().architecture, host_architecture());
        for same in ["linux/amd64", "LINUX/AMD64", "linux/x86_64", "x86-64"] {
            let read = parse(same).unwrap();
            assert_eq!(
                (&*read.os, &*read.architecture),
                ("linux", "amd64"),
                "{same}"
            );
        }
        for bad in ["", "linux/", "a/b/c/d", "linux/ar m", "bogus"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
