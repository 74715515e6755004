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

/// Each target has a binary for `make fuzz`.
#[test]
fn every_target_has_its_binary() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/Cargo.toml");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    for target in TARGETS {
        assert!(
            manifest.contains(&format!("name = \"{}\"", target.name)),
            "{} is missing in fuzz/Cargo.toml",
            target.name
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
