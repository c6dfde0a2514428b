#!/bin/sh
# The ceremony for a trial with SoftHSM: a PIN, a token and a CA, each made once and never overwritten. Needs
# SOFTHSM2_CONF, PKCS11_TOKEN_LABEL, PKCS11_PIN_FILE and CA_CERT_FILE in addition to what "ca create" needs.
# If several run together, one works and the others wait.
set -eu
umask 077
exec 9>"$PKCS11_PIN_FILE.lock"
flock 9
if [ -e "$CA_CERT_FILE" ]; then
	echo "ceremony: there is a CA already, $CA_CERT_FILE; nothing is overwritten"
	exit 0
fi
[ -e "$PKCS11_PIN_FILE" ] || head -c 18 /dev/urandom | base64 >"$PKCS11_PIN_FILE"
mkdir -p "$(sed -n 's/^directories.tokendir *= *//p' "$SOFTHSM2_CONF")"
if ! softhsm2-util --show-slots | grep -q "Label: *$PKCS11_TOKEN_LABEL *\$"; then
	# The security officer's PIN is not kept: it could only set a new user PIN.
	softhsm2-util --init-token --free --label "$PKCS11_TOKEN_LABEL" \
		--pin "$(cat "$PKCS11_PIN_FILE")" --so-pin "$(head -c 18 /dev/urandom | base64)"
fi
exec hsm-signer ca create --out "$CA_CERT_FILE"
