#!/bin/sh
# Prints a digest of everything that a release is built from: the files of the repository and the tools.
# go test caches the result of a test until a variable that the test reads changes. So the reproducible
# build and the container images, which take long, are tested once for each state of the sources.
set -eu
cd "$(dirname "$0")/.."
{
	go version
	docker version --format '{{.Server.Version}}' 2>&1 || true
	docker compose version 2>&1 || true
	git ls-files -co --exclude-standard -z 2>/dev/null | xargs -0 sha256sum 2>/dev/null || find . -path ./.git -prune -o -type f -exec sha256sum {} +
} | sha256sum | cut -d' ' -f1
