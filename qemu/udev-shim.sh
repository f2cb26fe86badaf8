#!/bin/sh
# In place of udevd and udevadm in a guest: virtme-ng's init only needs its virtio ports by name.
mkdir -p /dev/virtio-ports
for port in /sys/class/virtio-ports/*; do
	{ read -r name < "$port/name" && ln -sf "../${port##*/}" "/dev/virtio-ports/$name"; } 2> /dev/null
done
exit 0
