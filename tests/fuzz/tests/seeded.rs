//! The bounded run: every target with its seeds and with mutations of them that are the same
//! on each run. What coverage finds beyond that, `make fuzz` does.

#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

use bulkhead_fuzz_targets::{TARGETS, Target};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Numbers at which length checks go wrong.
const EDGES: [u64; 8] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX - 1,
    u64::MAX,
];

fn mutate(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut StdRng) {
    for _ in 0..random.random_range(1..=4) {
        let length = bytes.len();
        let at = random.random_range(0..=length);
        match random.random_range(0..7) {
            0 if at < length => bytes[at] ^= 1 << random.random_range(0..8),
            1 if at < length => bytes[at] = random.random(),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.random()),
            4 => {
                let edge = EDGES.choose(random).unwrap().to_be_bytes();
                let edge = &edge[8 - [1, 2, 4, 8].choose(random).unwrap()..];
                for (place, byte) in bytes.iter_mut().skip(at).zip(edge) {
                    *place = *byte;
                }
            }
            5 => {
                let to = (at + random.random_range(0..64)).min(length);
                let piece = bytes[at..to].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let other = seeds.choose(random).unwrap();
                let from = random.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
}

fn bounded(target: &Target) {
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{} has no seed", target.name);
    for seed in &seeds {
        (target.run)(seed);
    }
    (target.run)(&[]);
    let mut random = StdRng::seed_from_u64(0x6275_6c6b);
    for number in 0..target.tries {
        let mut bytes = seeds.choose(&mut random).unwrap().clone();
        mutate(&mut bytes, &seeds, &mut random);
        let caught =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (target.run)(&bytes)));
        assert!(
            caught.is_ok(),
            "{}: input {number} broke it: {:?}",
            target.name,
            String::from_utf8_lossy(&bytes)
        );
    }
}

#[test]
fn names_are_told_apart() {
    let mut names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), TARGETS.len());
}

/// Where `make fuzz` builds from, which nothing else compiles.
const FUZZ: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz");

/// A binary for `make fuzz`: a call of a function of this crate, and nothing that could break
/// while nobody builds it.
fn binary(target: &str) -> String {
    // What is written there takes these.
    let _: fn(&str, &[u8]) = bulkhead_fuzz_targets::run;
    let call = format!("bulkhead_fuzz_targets::run(\"{target}\", bytes)");
    format!("#![no_main]\n\nlibfuzzer_sys::fuzz_target!(|bytes: &[u8]| {call});\n")
}

/// What `fuzz/Cargo.toml` says of it.
fn section(target: &str) -> String {
    let path = format!("fuzz_targets/{target}.rs");
    format!(
        "[[bin]]\nname = \"{target}\"\npath = \"{path}\"\n\
         test = false\ndoc = false\nbench = false\n"
    )
}

/// Each target has a binary for `make fuzz`, and no binary is there for nothing.
#[test]
fn every_target_has_its_binary() {
    let manifest = std::fs::read_to_string(format!("{FUZZ}/Cargo.toml")).unwrap();
    for target in TARGETS {
        assert!(
            manifest.contains(&section(target.name)),
            "fuzz/Cargo.toml should have\n{}",
            section(target.name)
        );
        let path = format!("{FUZZ}/fuzz_targets/{}.rs", target.name);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, binary(target.name), "{path}");
    }
    assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
    let files = std::fs::read_dir(format!("{FUZZ}/fuzz_targets")).unwrap();
    assert_eq!(files.count(), TARGETS.len());
}

/// Its lock is another one than the workspace's, and knows what the targets depend on.
#[test]
fn the_binaries_lock_is_not_old() {
    let manifest = include_str!("../Cargo.toml");
    let (_, dependencies) = manifest.split_once("[dependencies]\n").unwrap();
    let (dependencies, _) = dependencies.split_once("\n[").unwrap();
    let lock = std::fs::read_to_string(format!("{FUZZ}/Cargo.lock")).unwrap();
    let package = "name = \"bulkhead-fuzz-targets\"\n";
    let (_, locked) = lock.split_once(package).unwrap();
    let (locked, _) = locked.split_once("]\n").unwrap();
    for line in dependencies.lines().filter(|line| !line.is_empty()) {
        let name = line.split(['.', ' ']).next().unwrap();
        // A version follows where there are several.
        let known =
            locked.contains(&format!("\"{name}\"")) || locked.contains(&format!("\"{name} "));
        assert!(
            known,
            "cargo metadata --manifest-path fuzz/Cargo.toml: {name}"
        );
    }
}

macro_rules! bounded {
    ($($test:ident: $range:expr;)*) => {$(
        #[test]
        fn $test() {
            for target in &TARGETS[$range] {
                bounded(target);
            }
        }
    )*};
}

// Two tests, so that two CPUs have something to do.
bounded! {
    the_first_half: ..TARGETS.len() / 2;
    the_second_half: TARGETS.len() / 2..;
}
