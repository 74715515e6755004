#!/bin/bash
# Coverage-guided fuzzing of every target in fuzz/, one after the other. What is found stays
# in fuzz/artifacts, and what was learnt in fuzz/corpus, for the next run.
#
#   scripts/fuzz.sh [SECONDS [TARGET…]]   so long for each target; 60 by default
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
if ! command -v cargo-fuzz >/dev/null; then
    echo "==> installing cargo-fuzz"
    cargo install --locked cargo-fuzz
fi
# The sanitizers' flags are unstable ones; the toolchain is the ordinary one.
export RUSTC_BOOTSTRAP=1
targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(cargo fuzz list)
cargo run --quiet --release --locked --package bulkhead-fuzz-targets --example seeds -- fuzz/corpus
failed=()
for target in "${targets[@]}"; do
    echo "==> $target, $seconds s"
    cargo fuzz run "$target" -- -max_total_time="$seconds" -rss_limit_mb=1024 -timeout=20 \
        -max_len=65536 -print_final_stats=1 2>&1 | grep -E 'stat::number_of|panicked|SUMMARY|cov:.*DONE' ||
        true
    [ "${PIPESTATUS[0]}" = 0 ] || failed+=("$target")
done
[ ${#failed[@]} = 0 ] || { echo "fuzz: broken: ${failed[*]}; see fuzz/artifacts" >&2; exit 1; }
