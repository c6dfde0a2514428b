# hsm-signer with nothing but what it needs at run time. It does not contain your HSM's PKCS#11 library:
# mount it, add it in a derived image, or name its Debian packages (docs/install.md):
#   docker build --build-arg PACKAGES=softhsm2 -t hsm-signer-softhsm .
# A release pins both by digest (NAME:TAG@sha256:DIGEST); make image refuses others.
ARG BUILD_IMAGE=golang:1.26-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim
FROM ${BUILD_IMAGE} AS build
WORKDIR /src
# The Go module proxy; empty: Go's default.
ARG GOPROXY=
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY docs docs
COPY hsm hsm
COPY issuer issuer
COPY kube kube
COPY policy policy
# Go's FIPS 140-3 module: off, latest, or a frozen one such as v1.0.0, with which the mode is on.
ARG GOFIPS140=off
ARG RELEASE=
ARG COMMIT=
# The same sources give the same bytes: no paths, no VCS stamp. cgo loads the PKCS#11 library. The kernel loads the code
# at a random address (PIE).
RUN CGO_ENABLED=1 go build -trimpath -buildvcs=false -buildmode=pie -o /hsm-signer \
    -ldflags "-s -w -X hsm-signer/cmd/hsm-signer/internal/buildinfo.release=$RELEASE -X hsm-signer/cmd/hsm-signer/internal/buildinfo.commit=$COMMIT" ./cmd/hsm-signer

FROM ${RUNTIME_IMAGE}
ARG PACKAGES=
RUN [ -z "$PACKAGES" ] || { apt-get update && apt-get install -y --no-install-recommends $PACKAGES && rm -rf /var/lib/apt/lists/*; }
# The journal must outlive the container: mount a volume here.
RUN install -d -o 65532 -g 65532 -m 0700 /var/lib/hsm-signer
COPY --from=build /hsm-signer /usr/local/bin/hsm-signer
VOLUME /var/lib/hsm-signer
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/hsm-signer"]
CMD ["run"]
