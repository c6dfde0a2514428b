#!/bin/sh
# Before a package is removed, and not when it is upgraded: stops the units. dpkg calls this with
# "remove", rpm with 0.
set -e
case $1 in
remove | 0) ;;
*) exit 0 ;;
esac
[ -d /run/systemd/system ] || exit 0
systemctl disable --now hsm-signer.service hsm-signer-credential.timer
systemctl stop hsm-signer-credential.service
