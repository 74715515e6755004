#!/bin/bash
# Runs the promise script: one engine, two isolations, with unmodified docker commands.
# Its daemon has its own socket and data root; all of it is gone at the end.
#
#   scripts/demo.sh DIR    DIR has bulkhead, containerd-shim-bulkhead-v2 and vmwp
set -euo pipefail

bin=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")/.." && pwd)
state=$(mktemp -d /tmp/bulkhead-demo.XXXXXX)
export DOCKER_HOST=unix://$state/demo.sock
export BULKHEAD_GUEST_DIR=${BULKHEAD_GUEST_DIR:-$here/target/guest}
export PATH=$bin:$PATH
daemon=

bold() { printf '\n\033[1m%s\033[0m\n' "$*"; }
# Prints a command as a person would type it, then runs it.
show() { printf '\033[36m$ %s\033[0m\n' "$*"; "$@"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

cleanup() {
    status=$?
    trap - EXIT
    if [ -n "$daemon" ] && kill -0 "$daemon" 2>/dev/null; then
        docker ps -aq | xargs -r docker rm -f >/dev/null 2>&1 || true
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
    [ $status = 0 ] || { echo "--- the daemon's log"; tail -20 "$state/daemon.log"; } >&2
    rm -rf "$state"
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

bold "A daemon on its own socket"
echo "$ bulkhead daemon -H $DOCKER_HOST --data-root … --exec-root … &"
bulkhead daemon -H "$DOCKER_HOST" --data-root "$state/data" --exec-root "$state/exec" \
    --pidfile "$state/pid" >"$state/daemon.log" 2>&1 &
daemon=$!
for _ in $(seq 100); do
    docker version >/dev/null 2>&1 && break
    kill -0 "$daemon" || fail "the daemon did not start"
    sleep 0.1
done
show docker version --format 'client {{.Client.Version}}, engine {{.Server.Version}}, API {{.Server.APIVersion}}'

bold "A busybox image from this machine's /bin/busybox"
tree=$state/tree
mkdir -p "$tree"/{bin,etc,root,tmp,proc,sys,dev,run}
cp /bin/busybox "$tree/bin/busybox"
for applet in $(/bin/busybox --list); do
    [ "$applet" = busybox ] || ln -sf busybox "$tree/bin/$applet"
done
echo 'root:x:0:0:root:/root:/bin/sh' > "$tree/etc/passwd"
echo 'root:x:0:' > "$tree/etc/group"
tar -C "$tree" -cf "$state/busybox.tar" .
show docker import -c 'CMD ["sh"]' "$state/busybox.tar" busybox:latest
show docker images

bold "The same command, on another kernel"
echo "host:                   $(uname -r)  boot $(cat /proc/sys/kernel/random/boot_id)"
for isolation in process hyperv; do
    printf '\033[36m$ docker run --rm --isolation=%s busybox sh -c '\''uname -r; cat /proc/sys/kernel/random/boot_id'\''\033[0m\n' $isolation
    docker run --rm --isolation=$isolation busybox sh -c 'uname -r; cat /proc/sys/kernel/random/boot_id'
done

bold "An interactive shell in a VM"
echo '$ docker run -it --isolation=hyperv busybox sh     (a terminal, with "tty; exit 7" typed into it)'
if command -v script >/dev/null; then
    printf 'tty; exit 7\n' | script -qec "docker run -it --rm --isolation=hyperv busybox sh" /dev/null || echo "exit code $?"
fi

bold "What the host sees: process isolation"
pings=$(pgrep -x ping | sort || true)
a=$(docker run -d busybox ping localhost); echo "$ docker run -d busybox ping localhost -> ${a:0:12}"
show docker top "$a"
n=$(docker top "$a" -o pid | tail -1 | tr -d ' ')
show ps -o pid,comm -p "$n"

bold "What the host sees: hyperv isolation"
b=$(docker run -d --isolation=hyperv busybox ping localhost); echo "$ docker run -d --isolation=hyperv busybox ping localhost -> ${b:0:12}"
show docker top "$b"
show docker logs --tail 2 "$b"
echo "$ pgrep ping      (only the process container's)"; pgrep -x ping
# Others may be at work on this machine: what counts is what was not there before.
[ "$(comm -13 <(printf '%s\n' "$pings") <(pgrep -x ping | sort))" = "$n" ] ||
    fail "the host sees a ping that it should not see"
echo "$ pgrep -a vmwp      (the worker: one per VM)"; pgrep -af "vmwp --id $b"
worker=$(pgrep -f "vmwp --id $b")
[ "$(wc -l <<<"$worker")" = 1 ] || fail "there should be exactly one worker"
echo "$ ps --forest        (its supervisor, the worker, and what runs the machine's CPUs)"
supervisor=$(ps -o ppid= -p "$worker" | tr -d ' ')
ps -o pid,user,comm --forest -p "$supervisor" --ppid "$supervisor" --ppid "$worker"

bold "Both in one list"
show docker ps --format 'table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.Status}}'
show bulkhead inspect -f '{{.Id}} {{.HostConfig.Isolation}}' "$a" "$b"

bold "And nothing is left"
show docker rm -f "$a" "$b"
# Whatever is left would have its container's ID or the daemon's directory in its name.
left=$(
    comm -13 <(printf '%s\n' "$pings") <(pgrep -x ping | sort)
    pgrep -af "$a|$b"
    grep "$state" /proc/self/mounts | grep -v "$state/exec/netns "
    find /sys/fs/cgroup -depth -name "*${a:0:12}*" -o -name "*${b:0:12}*"
    find "$state/exec/s" "$state/exec/netns" "$state/exec/tasks" -mindepth 1
) 2>/dev/null || true
[ -z "$left" ] || fail "left: $left"
echo "no ping, no vmwp, no mount, no network namespace, no cgroup, no socket"
bold "Done."
