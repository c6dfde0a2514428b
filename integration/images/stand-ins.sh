#!/bin/sh
# Builds replacements for the base images of the Dockerfiles if they are missing and no registry can be
# reached: Debian from its mirror, and on top of it this machine's Go and CA certificates. Does nothing
# if the images exist or can be pulled.
#   stand-ins.sh [debian:bookworm-slim] [golang:1.26-bookworm]   without an argument: both
set -eu

die() { printf 'stand-ins: %s\n' "$*" >&2; exit 1; }
say() { printf 'stand-ins: %s\n' "$*" >&2; }

there() { docker image inspect "$1" >/dev/null 2>&1 || docker pull --quiet "$1" >/dev/null 2>&1; }

make_debian() {
	command -v debootstrap >/dev/null 2>&1 || die "$1 is absent, no registry can be reached, and debootstrap is missing to make a stand-in: install it (make setup)"
	[ "$(id -u)" -eq 0 ] || die "$1 is absent and no registry can be reached; a stand-in can be made by root alone"
	say "$1 cannot be pulled: making a stand-in from Debian's packages"
	root=$(mktemp -d)
	trap 'rm -rf "$root"' EXIT
	debootstrap --variant=minbase bookworm "$root/debian" >"$root/log" 2>&1 || { tail -n 20 "$root/log" >&2; die "debootstrap failed"; }
	rm -rf "$root"/debian/var/cache/apt/archives/*.deb "$root"/debian/var/lib/apt/lists/*
	tar -C "$root/debian" -c . | docker import - "$1" >/dev/null
}

make_golang() {
	there debian:bookworm-slim || make_debian debian:bookworm-slim
	say "$1 cannot be pulled: making a stand-in from this machine's $(go env GOVERSION)"
	certificates=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
	container=$(docker create debian:bookworm-slim sh -c 'apt-get -qq update && apt-get -qq install -y --no-install-recommends gcc libc6-dev ca-certificates && apt-get clean && cat /machine.crt >>/etc/ssl/certs/ca-certificates.crt')
	trap 'docker rm -f "$container" >/dev/null 2>&1' EXIT
	tar -C "$(go env GOROOT)" --transform 's,^\.,usr/local/go,' -c . | docker cp - "$container:/"
	docker cp -L "$certificates" "$container:/machine.crt"
	docker start -a "$container" >/dev/null || die "gcc could not be installed into the stand-in of $1"
	docker commit -c 'ENV PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin GOPATH=/go GOTOOLCHAIN=local' "$container" "$1" >/dev/null
}

command -v docker >/dev/null 2>&1 || die "docker is missing"
[ $# -gt 0 ] || set -- debian:bookworm-slim golang:1.26-bookworm
for image in "$@"; do
	there "$image" && continue
	case $image in
	*@sha256:*) die "$image cannot be pulled, and no stand-in has its digest" ;;
	debian:*) make_debian "$image" ;;
	golang:*) make_golang "$image" ;;
	*) die "no stand-in is known for $image" ;;
	esac
done
