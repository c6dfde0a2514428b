# The image for docker-compose.yml with etcd, kube-apiserver and the pods that request certificates. They are
# built from their Go modules, which takes minutes. "make compose" puts the binaries of the tests into
# integration/images/bin; if these run in the image they are copied instead.
FROM golang:1.26-bookworm AS build
ARG GOPROXY=
WORKDIR /src
COPY go.mod go.sum ./
COPY integration integration
WORKDIR /src/integration
RUN images/bin/kube-apiserver --version && images/bin/etcd --version || { \
    mkdir -p images/bin && go build -o images/bin/compose ./cmd/compose && images/bin/compose binaries images/bin; }

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends openssl && rm -rf /var/lib/apt/lists/*
# A new volume takes the owner and the mode of the directory on which it is first mounted.
RUN install -d -o 65532 -g 65532 -m 0700 /var/lib/etcd /cluster /access /token /ca
COPY --from=build /src/integration/images/bin/etcd /src/integration/images/bin/kube-apiserver /src/integration/images/bin/compose /usr/local/bin/
USER 65532:65532
