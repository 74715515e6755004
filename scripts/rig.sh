#!/bin/bash
# Runs tests in the rig (`cargo xtask rig`), an emulated machine with KVM and cgroup v2 alone:
# those of the kvm engine's machines first, then cases of the end-to-end suite on that engine.
# One boot of the rig does all. Cargo has built everything before; what is missing is an error.
#
#   scripts/rig.sh SECONDS MACHINES CASES
#
# SECONDS   after which the machine is ended, whatever it does
# MACHINES  tests of the kvm engine, as `program:filter…`, or `program` for all of its
# CASES     filters of end-to-end cases, all without any, or `-` for none
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${BULKHEAD_RIG:-}" ]; then
    bin=target/x86_64-unknown-linux-gnu/release
    for file in target/guest/vmlinux $bin/bulkhead $bin/xtask; do
        [ -e $file ] || { echo "rig: there is no $file; make guest" >&2; exit 1; }
    done
    # Every test program, by its name, in the selections that `make test` has built already:
    # for another one cargo would build much of it again.
    programs() {
        cargo test --release --locked --workspace "$@" --no-run --message-format json |
            jq -r 'select(.profile.test and .executable) | "\(.target.name)=\(.executable)"'
    }
    BULKHEAD_RIG_PROGRAMS=$(programs --quiet --exclude bulkhead-e2e; programs --quiet --test e2e)
    export BULKHEAD_RIG_PROGRAMS
    # One processor: with a thread for each, QEMU 7.2 sometimes runs what Linux has just replaced
    # in its own code (docs/adr/0021), and a guest with two of them died of it.
    exec $bin/xtask rig --cpus 1 --timeout "$1" -- bash scripts/rig.sh "$@"
fi

program() {
    found=$(sed -n "s/^$1=//p" <<<"$BULKHEAD_RIG_PROGRAMS")
    [ -x "$found" ] || { echo "rig: there is no test program $1" >&2; exit 1; }
    echo "$found"
}

[ -c /dev/kvm ] || { echo "rig: there is no /dev/kvm" >&2; exit 1; }
failed=
for words in $2; do
    path=$(program "${words%%:*}")
    filters=${words#"${words%%:*}"}
    # shellcheck disable=SC2086 # a list of words
    BULKHEAD_TEST_VM_ENGINE=kvm "$path" ${filters//:/ } --test-threads 1 || failed="$failed $words"
done
if [ "$3" != - ]; then
    path=$(program e2e)
    # shellcheck disable=SC2086 # a list of words
    (cd tests/e2e && BULKHEAD_E2E_VM_ENGINE=kvm "$path" $3 --test-threads "${4:-2}") || failed="$failed e2e"
fi
[ -z "$failed" ] || { echo "rig: failed:$failed" >&2; exit 1; }
