#!/bin/sh
# Prints one digest of all that what is shipped is built from: the files of the repository, and the programs that build it.
# Go keeps the result of a test until a variable that the test reads has another value; so a build that nothing compiled before
# may help, and the container images, are tested once for each state of the sources.
set -eu
cd "$(dirname "$0")/.."
{
	go version
	docker version --format '{{.Server.Version}}' 2>&1 || true
	docker compose version 2>&1 || true
	git ls-files -co --exclude-standard -z 2>/dev/null | xargs -0 sha256sum 2>/dev/null || find . -path ./.git -prune -o -type f -exec sha256sum {} +
} | sha256sum | cut -d' ' -f1
