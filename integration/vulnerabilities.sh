#!/bin/sh
# Scans the product's dependencies for known vulnerabilities. A finding fails. A scan that could not
# run prints NOT CHECKED and succeeds, since it may be the network that is missing; with
# VULNCHECK=required it fails.
#   vulnerabilities.sh "COMMAND THAT RUNS GOVULNCHECK"
set -u
case "${VULNCHECK:-}" in
"" | required) ;;
*) echo "VULNCHECK: \"$VULNCHECK\" is not \"required\"; unset it, or set it to that" >&2; exit 2 ;;
esac
output=$($1 ./... 2>&1)
code=$?
printf '%s\n' "$output"
[ "$code" -ne 0 ] || exit 0
# govulncheck exits with 3 for a finding; go run turns that into 1 and says so.
case "$code $output" in
3\ * | *"exit status 3"*) exit 1 ;;
esac
echo "govulncheck: NOT CHECKED: the scan could not run (see above); VULNCHECK=required makes this an error" >&2
[ "${VULNCHECK:-}" != required ]
