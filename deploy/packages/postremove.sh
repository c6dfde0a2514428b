#!/bin/sh
# After a package is removed or purged. The configuration in /etc/hsm-signer and the journal in
# /var/lib/hsm-signer stay: the journal is the record of every certificate.
set -e
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
