#!/bin/sh
# Fails if a release would be built from base images without a digest: a tag can be moved to another
# image. A release is vX.Y.Z, also with a suffix of -alpha, -beta or -rc. Other builds may use tags.
#   pinned.sh RELEASE IMAGE...          UNPINNED=allow: build a release from tags anyway
set -eu
release=$1
shift

printf '%s\n' "$release" | grep -Eq '^v[0-9]+\.[0-9]+\.[0-9]+(-(alpha|beta|rc)[.0-9a-z]*)?$' || exit 0

unpinned=
for image in "$@"; do
	printf '%s\n' "$image" | grep -Eq '@sha256:[0-9a-f]{64}$' || unpinned="$unpinned $image"
done
[ -n "$unpinned" ] || exit 0
if [ "${UNPINNED:-}" = allow ]; then
	echo "make image: WARNING: the release $release starts from images without a digest:$unpinned" >&2
	exit 0
fi
cat >&2 <<END
make image: the release $release would start from images without a digest:$unpinned
A tag can be moved to another image. Look up the digest (docker buildx imagetools inspect IMAGE), and set
BUILD_IMAGE and RUNTIME_IMAGE to NAME:TAG@sha256:DIGEST; or allow tags with UNPINNED=allow.
END
exit 1
