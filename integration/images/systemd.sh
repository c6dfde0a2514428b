#!/bin/sh
# The first process of systemd.Dockerfile's machine. It gives systemd what it finds on a machine of its own and a
# container lacks: mounts that reach the services (the credentials are such), and control groups to write to.
set -eu
mount --make-rshared /
for groups in /sys/fs/cgroup /sys/fs/cgroup/*/; do
	! mountpoint -q "$groups" || mount -o remount,bind,rw "$groups"
done
exec /lib/systemd/systemd
