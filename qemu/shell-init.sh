#!/bin/sh
# The first process of `harness shell --backend qemu`: mounts what a shell wants, gives it the console, powers off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM="${TERM:-vt100}"
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2> /dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t debugfs debugfs /sys/kernel/debug 2> /dev/null
mount -t tracefs tracefs /sys/kernel/tracing 2> /dev/null
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2> /dev/null
ip link set lo up 2> /dev/null
hostname agent
console=/dev/$(sed -n 's/.*harness\.console=\([^ ]*\).*/\1/p' /proc/cmdline)
cd /root || cd /
setsid -c -w bash -l < "$console" > "$console" 2>&1
sync
poweroff -f
