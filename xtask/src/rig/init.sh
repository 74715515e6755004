#!/bin/busybox sh
# PID 1 of the rig, twice: first in the initramfs, until the host's files are the root, then
# on them, where it runs the command and says how that ended.
#
# xtask leaves in its share: `command`, a shell script, `modules`, the path of the kernel's
# modules, and `sparse.tar`, files of the host's with holes, which 9p would fill. It gets back: `status`, and the kernel's messages in `dmesg`.

fail() {
    echo "rig: $*" > /dev/console
    busybox poweroff -f
}

files() {
    busybox mkdir -p /proc /sys /dev /host /data /new
    busybox mount -t proc proc /proc
    busybox mount -t sysfs sys /sys
    busybox mount -t devtmpfs dev /dev
    while read -r module; do
        busybox insmod "/modules/$module" || echo "rig: no module $module" > /dev/console
    done < /modules/order

    # Nothing of the host's changes under a run but by accident: the guest may remember it.
    p9=trans=virtio,version=9p2000.L,msize=512000
    busybox mount -t 9p -o "ro,cache=loose,$p9" host /host || fail "the host's files"
    busybox mount -t tmpfs -o size=80% data /data
    busybox mkdir /data/upper /data/work
    busybox mount -t overlay -o lowerdir=/host,upperdir=/data/upper,workdir=/data/work \
        root /new || fail "no overlay"

    busybox mount -t proc proc /new/proc
    busybox mount -t sysfs sys /new/sys
    busybox mount -t devtmpfs dev /new/dev
    busybox mount -t tmpfs -o mode=755 run /new/run
    busybox mkdir /new/run/rig /new/run/lock
    busybox mount -t 9p -o "rw,cache=none,$p9" rig /new/run/rig || fail "the share"
    busybox cp /init /new/run/init
    exec busybox switch_root /new /bin/sh /run/init root
}

root() {
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    mkdir -p /dev/pts /dev/shm /dev/mqueue /dev/net
    mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
    mount -t tmpfs -o mode=1777 shm /dev/shm
    mount -t mqueue mqueue /dev/mqueue
    ln -sf /proc/self/fd /dev/fd
    ln -sf /proc/self/fd/0 /dev/stdin
    ln -sf /proc/self/fd/1 /dev/stdout
    ln -sf /proc/self/fd/2 /dev/stderr
    mount -t tmpfs -o mode=1777,size=80% tmp /tmp
    mount -t tmpfs -o mode=1777,size=80% tmp /var/tmp
    mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
    mount -t debugfs debugfs /sys/kernel/debug
    mkdir -p /lib/modules
    mount --bind "$(cat /run/rig/modules)" /lib/modules
    for module in kvm_amd tun loop; do
        modprobe "$module" || echo "rig: no $module" > /dev/console
    done
    # As systemd does: what runs here is not in the root group, which has no limits.
    for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
        echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control
    done
    if [ -e /run/rig/sparse.tar ]; then
        tar -C / -xf /run/rig/sparse.tar
    fi
    hostname rig
    ip link set lo up
    # The sign of life that the chore looks for.
    while sleep 5; do cat /proc/uptime > /run/rig/beat; done &
    echo "rig: up after $(cut -d' ' -f1 /proc/uptime) s" > /dev/console

    setsid -w sh /run/rig/command < /dev/null > /dev/vport0p1 2>&1
    echo $? > /run/rig/status
    dmesg > /run/rig/dmesg
    sync
    echo o > /proc/sysrq-trigger
    sleep 60
    busybox poweroff -f
}

case "$1" in
root) root ;;
*) files ;;
esac
