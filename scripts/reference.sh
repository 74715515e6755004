#!/bin/bash
# Runs the end-to-end cases against a real dockerd (Debian's docker.io) instead of
# bulkhead: process isolation and the docker client only, since dockerd has no other.
# The suite starts dockerd on directories of its own and stops it at the end.
#
#   scripts/reference.sh [NAME…]   only tests whose name contains one of these, such as
#                                  run::exit_code::process::docker
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "reference: must run as root" >&2; exit 1; }
if ! command -v dockerd >/dev/null; then
    scripts/setup.sh reference
fi
names=("$@")
[ $# -gt 0 ] || names=(process::docker)
BULKHEAD_E2E_REFERENCE=dockerd cargo test --release --locked --package bulkhead-e2e --test e2e -- \
    --test-threads "${TEST_THREADS:-4}" "${names[@]}"
