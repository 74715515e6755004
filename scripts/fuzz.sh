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
targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(cargo fuzz list)
# Without the variable below, for which many dependencies would be built anew.
cargo run --quiet --release --locked --package bulkhead-fuzz-targets --example seeds -- fuzz/corpus
# The sanitizers' flags are unstable ones; the toolchain is the ordinary one.
export RUSTC_BOOTSTRAP=1
failed=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for target in "${targets[@]}"; do
    echo "==> $target, $seconds s"
    cargo fuzz run "$target" -- -max_total_time="$seconds" -rss_limit_mb=1024 -timeout=20 \
        -max_len=65536 -print_final_stats=1 >"$log" 2>&1 || failed+=("$target")
    # A target that does not build prints none of these: its last lines then.
    grep -E 'stat::number_of|panicked|SUMMARY|DONE .*cov:' "$log" || tail -n 20 "$log"
done
[ ${#failed[@]} = 0 ] || { echo "fuzz: broken: ${failed[*]}; see fuzz/artifacts" >&2; exit 1; }
