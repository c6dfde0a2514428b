#!/bin/sh
# Prints the name of an image for BUILD_IMAGE: golang:1.26-bookworm with the product's modules downloaded and
# compiled, so that building the product's image compiles only the product. The image is built again when
# go.mod or go.sum change.
set -eu
cd "$(dirname "$0")/../.."
name=hsm-signer-warm:$(cat go.mod go.sum integration/images/warm.Dockerfile | sha256sum | cut -c1-12)
docker image inspect "$name" >/dev/null 2>&1 ||
	docker build --build-arg "GOPROXY=$(go env GOPROXY)" -f integration/images/warm.Dockerfile -t "$name" . >&2
echo "$name"
