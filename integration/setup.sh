#!/bin/sh
# Installs what building and testing hsm-signer needs and this machine lacks:
# SoftHSM (a PKCS#11 token in software), openssl, jq, a C compiler for cgo, and the
# other tokens that the tests use: opencryptoki, a TPM in software, NSS, p11-kit; systemd's
# tools; a browser, which looks at the status page; and what makes images where none can be
# pulled. "setup.sh basics" is for the demo alone, "setup.sh images" has what makes images
# too, "setup.sh release" what makes a release, "setup.sh release-check" what checks one. Says
# nothing and does nothing when all is there. Where it cannot install, it says what to install and exits 1.
set -eu

go_minimum=1.26
what=${1:-all}

die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# has_go tells whether go is there and new enough. An older one that may fetch a
# toolchain says the version it would build with.
has_go() {
	command -v go >/dev/null 2>&1 || return 1
	version=$(go env GOVERSION) && version=${version#go}
	major=${version%%.*}
	minor=${version#*.} && minor=${minor%%[!0-9]*}
	[ "$major" -gt "${go_minimum%.*}" ] || { [ "$major" -eq "${go_minimum%.*}" ] && [ "$minor" -ge "${go_minimum#*.}" ]; }
}

# has_libc tells whether a C program can be compiled and linked.
has_libc() { printf '#include <stdlib.h>\n' | cc -E - >/dev/null 2>&1; }

# has_tool tells whether a program is there, also one of root's.
has_tool() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }

# has_library tells whether a library is where distributions put it.
has_library() {
	for path in /usr/lib/*/pkcs11/"$1" /usr/lib/*/"$1" /usr/lib/*/nss/"$1" /usr/lib64/pkcs11/"$1" /usr/lib64/"$1" /usr/lib/pkcs11/"$1" /usr/lib/"$1"; do
		[ ! -e "$path" ] || return 0
	done
	return 1
}

# missing prints the packages, by Debian's names, that are not there.
missing() {
	command -v softhsm2-util >/dev/null 2>&1 || echo softhsm2
	command -v openssl >/dev/null 2>&1 || echo openssl
	command -v jq >/dev/null 2>&1 || echo jq
	command -v gcc >/dev/null 2>&1 || echo gcc
	has_libc || echo libc6-dev
	case $what in
	basics) ;;
	images) missing_images ;;
	release) missing_release ;;
	release-check) missing_release && missing_release_check ;;
	*) missing_tokens && missing_images && { has_tool systemd-analyze || echo systemd; } && { has_browser || echo chromium; } ;;
	esac
}

# Where there is no Docker engine no image is made.
missing_images() { ! has_tool docker || has_tool debootstrap || echo debootstrap; }

# A release is for two architectures, of which this machine has one.
missing_release() {
	has_tool git || echo git
	has_tool skopeo || echo skopeo
	has_tool mmdebstrap || echo mmdebstrap
	for architecture in aarch64:arm64 x86-64:amd64; do
		name=${architecture%:*} && name=$(echo "$name" | tr - _)
		has_tool "$name-linux-gnu-gcc" || echo "gcc-${architecture%:*}-linux-gnu libc6-dev-${architecture#*:}-cross"
	done
}

missing_release_check() {
	has_tool qemu-aarch64-static || echo qemu-user-static
	has_tool rpm || echo rpm
}

# has_browser tells whether there is one that the tests find.
has_browser() { has_tool chromium || has_tool google-chrome; }

missing_tokens() {
	has_tool pkcsslotd && has_library libopencryptoki.so || echo opencryptoki
	has_library libtpm2_pkcs11.so || echo libtpm2-pkcs11-1
	has_tool tpm2_ptool || echo libtpm2-pkcs11-tools
	has_tool tpm2_createprimary || echo tpm2-tools
	has_tool swtpm || echo swtpm
	has_tool tpm2-abrmd || echo tpm2-abrmd
	has_library libtss2-tcti-tabrmd.so.0 || echo libtss2-tcti-tabrmd0
	has_tool dbus-daemon && has_tool dbus-send || echo dbus
	has_tool certutil || echo libnss3-tools
	has_library libsoftokn3.so || echo libnss3
	has_tool p11-kit || echo p11-kit
	has_library p11-kit-client.so && has_library p11-kit-proxy.so || echo p11-kit-modules
}

install() {
	echo "setup: installing $*" >&2
	export DEBIAN_FRONTEND=noninteractive
	# The lists may be missing or too old: try with what is there first.
	apt-get install -qq -y --no-install-recommends "$@" >/dev/null 2>&1 && return
	apt-get update -qq >&2 || die "apt-get update failed; is there a network?"
	apt-get install -qq -y --no-install-recommends "$@" >&2 || die "apt-get could not install: $*"
}

has_go || die "Go $go_minimum or newer is needed, and $(command -v go >/dev/null 2>&1 && go env GOVERSION || echo none) is here: install it first"

packages=$(missing | tr '\n' ' ')
[ -n "$packages" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
	die "please install: $packages(names of Debian's packages; elsewhere softhsm, opencryptoki, tpm2-pkcs11, tpm2-tools, tpm2-abrmd, swtpm, dbus, nss-tools, p11-kit, openssl, chromium, and a C compiler with its headers)"
fi
# shellcheck disable=SC2086 # one word a package
install $packages
packages=$(missing | tr '\n' ' ')
[ -z "$packages" ] || die "installed, and yet missing: $packages"
