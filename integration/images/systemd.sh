#!/bin/sh
# The first process of the machine in systemd.Dockerfile. It provides what systemd needs and a container lacks:
# mounts that propagate to the services (such as their credentials), and writable control groups.
set -eu
mount --make-rshared /
for groups in /sys/fs/cgroup /sys/fs/cgroup/*/; do
	! mountpoint -q "$groups" || mount -o remount,bind,rw "$groups"
done
exec /lib/systemd/systemd
