#!/bin/sh
# Runs docker-compose.yml until the client has ended, with its exit code, and stops everything; KEEP=1 leaves it
# running. Beside "docker compose up" it sees to the images that these are built from, and lets the cluster's image have
# the servers that the tests have built already. COMPOSE is the compose to use; else it is "docker compose", and
# docker-compose where there is none.
set -eu
cd "$(dirname "$0")/../.."

if [ -z "${COMPOSE:-}" ]; then
	if docker compose version >/dev/null 2>&1; then COMPOSE="docker compose"; else COMPOSE=docker-compose; fi
fi
# shellcheck disable=SC2086 # it may be two words
compose() { $COMPOSE "$@"; }

sh integration/images/stand-ins.sh
bin=integration/images/bin
mkdir -p "$bin"
(cd integration && go build -o images/bin/compose ./cmd/compose)
"$bin/compose" binaries "$bin"
GOPROXY=$(go env GOPROXY) && export GOPROXY

echo "building the images, which takes minutes when it is the first time" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
compose build >"$log" 2>&1 || { cat "$log" >&2; exit 1; }

code=0
compose up --no-log-prefix --exit-code-from client client || code=$?
if [ "${KEEP:-}" = 1 ]; then
	echo "KEEP=1: everything goes on; $COMPOSE logs hsm-signer shows its log, $COMPOSE stop ends it" >&2
else
	compose stop >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
fi
exit "$code"
