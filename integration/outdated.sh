#!/bin/sh
# Prints the direct dependencies of modules that are behind their newest version, and never fails. What no module
# proxy answers for is "not checked". CONTRIBUTING.md says what to do about it.
#   outdated.sh DIRECTORY...
set -u
go=${GO:-go}

# newer prints a line for each dependency of the module in this directory that is behind or not checked. It reads
# lists of versions, and changes neither go.mod nor go.sum.
newer() {
	direct=$("$go" list -mod=readonly -m -f '{{if not (or .Main .Indirect .Replace)}}{{.Path}}{{end}}' all) || return 1
	# shellcheck disable=SC2086 # one word a module
	"$go" list -mod=readonly -m -u -e -f \
		'{{if .Error}}{{.Path}} not checked{{else if .Update}}{{.Path}} {{.Version}} -> {{.Update.Version}}{{end}}' $direct
}

for dir in "$@"; do
	if [ "$("$go" env GOPROXY)" = off ] || ! lines=$(cd "$dir" && newer 2>/dev/null); then
		echo "dependencies of $dir: not checked"
	elif [ -z "$lines" ]; then
		echo "dependencies of $dir: all are at their newest version"
	else
		printf 'dependencies of %s that are behind:\n%s\n' "$dir" "$lines" | sed '2,$s/^/  /'
	fi
done
exit 0
