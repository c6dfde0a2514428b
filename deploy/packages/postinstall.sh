#!/bin/sh
# After the files of a package are installed: makes the group and the directories, and restarts
# hsm-signer if it runs. dpkg calls this with "configure" and the earlier version, rpm with the
# number of installed versions.
set -e
case $1 in
configure | [1-9]*) ;;
*) exit 0 ;;
esac
! command -v systemd-sysusers >/dev/null || systemd-sysusers hsm-signer.conf
# In a root without /proc, such as that of an image's build, this fails; the next boot does it.
! command -v systemd-tmpfiles >/dev/null || systemd-tmpfiles --create hsm-signer.conf || true
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
systemctl try-restart hsm-signer.service
