#!/bin/sh
# Runs docker-compose.yml until the client has ended, stops everything, and exits with the client's code.
# KEEP=1 leaves everything running. In addition to "docker compose up" it provides the base images, and copies
# the servers that the tests have built into the cluster's image. COMPOSE names the compose to use; the default
# is "docker compose", or docker-compose if that is missing.
set -eu
cd "$(dirname "$0")/../.."

if [ -z "${COMPOSE:-}" ]; then
	if docker compose version >/dev/null 2>&1; then COMPOSE="docker compose"; else COMPOSE=docker-compose; fi
fi
# shellcheck disable=SC2086 # COMPOSE may have two words
compose() { $COMPOSE "$@"; }

sh integration/images/stand-ins.sh
bin=integration/images/bin
mkdir -p "$bin"
(cd integration && go build -o images/bin/compose ./cmd/compose)
"$bin/compose" binaries "$bin"
GOPROXY=$(go env GOPROXY) && export GOPROXY

echo "building the images; the first time takes minutes" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
compose build >"$log" 2>&1 || { cat "$log" >&2; exit 1; }

code=0
compose up --no-log-prefix --exit-code-from client client || code=$?
if [ "${KEEP:-}" = 1 ]; then
	echo "KEEP=1: everything keeps running; $COMPOSE logs hsm-signer shows the log, $COMPOSE stop stops it" >&2
else
	compose stop >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
fi
exit "$code"
