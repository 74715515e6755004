//! What a build is told: Dockerfiles, the words in them, what a context leaves out.

use std::path::Path;

use bulkhead_build::dockerfile::Dockerfile;
use bulkhead_build::ignore::IgnoreFile;
use bulkhead_build::words::{self, Variables};

use crate::Target;

pub(crate) const DOCKERFILE: Target = Target {
    name: "dockerfile",
    run: |bytes| {
        if let Ok(file) = Dockerfile::parse(bytes) {
            // Names of stages lead backwards.
            for before in 0..file.stages.len() {
                assert!(file.stage("0", before).is_none_or(|found| found < before));
            }
        }
    },
    seeds: || {
        vec![
            b"# escape=`\nARG V=1\nFROM --platform=$X busybox:${V:-2} AS one\nRUN <<A cat <<-B\nx\nA\n\ty\n\tB\nCOPY --from=one --chown=1:2 [\"a b\", \"/c\"]\nONBUILD RUN x\nHEALTHCHECK --interval=1s CMD y\n".to_vec(),
            b"FROM a\nRUN --mount=type=cache,target=/c a \\\n  # comment\n  && b\nENV A=b C='d e' \"F=g\"\nLABEL x y z\nEXPOSE 1-3/udp\nVOLUME [\"/v\"]\nSHELL [\"a\"]\nSTOPSIGNAL 9\n".to_vec(),
        ]
    },
    tries: 10_000,
};

struct Some2;

impl Variables for Some2 {
    fn get(&self, name: &str) -> Option<String> {
        match name {
            "A" => Some("a b".to_owned()),
            "B" => Some(String::new()),
            _ => None,
        }
    }
}

pub(crate) const WORDS: Target = Target {
    name: "words",
    run: |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return;
        };
        for escape in ['\\', '`'] {
            words::split(text, escape);
            // Text or a reason; both are fine.
            let _ = words::expand(text, escape, &Some2);
            let _ = words::expand_to_words(text, escape, &Some2);
            let _ = words::expand_heredoc(text, escape, &Some2);
        }
    },
    seeds: || {
        vec![
            b"${A:-${B:+x}} 'q $A' \"d $A \\\" e\" \\$A $B$C".to_vec(),
            b"${A#a*} ${A%%b} ${A//a/b} ${D:?why} ${E-f}".to_vec(),
        ]
    },
    tries: 100_000,
};

pub(crate) const IGNORE: Target = Target {
    name: "dockerignore",
    run: |bytes| {
        // Patterns, then paths they are asked about.
        let mut parts = bytes.splitn(2, |byte| *byte == 0);
        let patterns = parts.next().unwrap_or_default();
        let paths = String::from_utf8_lossy(parts.next().unwrap_or_default());
        let Ok(file) = IgnoreFile::parse(patterns) else {
            return;
        };
        for path in paths.lines().take(8) {
            let path = Path::new(path);
            let excluded = file.excludes(path);
            assert!(!(file.is_empty() && excluded));
            file.may_keep_below(path);
        }
    },
    seeds: || {
        vec![
            b"# c\n*.md\n!README.md\n**/node_modules\na/[b-d]?/**\n!a/bx/keep\n/x\n\0a/bx/keep\nREADME.md\nq/node_modules/z".to_vec(),
        ]
    },
    tries: 1500,
};
