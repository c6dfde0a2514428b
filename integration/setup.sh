#!/bin/sh
# Installs what building and testing hsm-signer needs and this machine lacks:
# SoftHSM (a PKCS#11 token in software), openssl, and a C compiler for cgo. Says
# nothing and does nothing when all is there. Where it cannot install, it says
# what to install and exits 1.
set -eu

go_minimum=1.26

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

# missing prints the packages, by Debian's names, that are not there.
missing() {
	command -v softhsm2-util >/dev/null 2>&1 || echo softhsm2
	command -v openssl >/dev/null 2>&1 || echo openssl
	command -v gcc >/dev/null 2>&1 || echo gcc
	has_libc || echo libc6-dev
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
	die "please install: $packages(names of Debian's packages; elsewhere softhsm, openssl, and a C compiler with its headers)"
fi
# shellcheck disable=SC2086 # one word a package
install $packages
packages=$(missing | tr '\n' ' ')
[ -z "$packages" ] || die "installed, and yet missing: $packages"
