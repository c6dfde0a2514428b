# What docker-compose.yml needs beside hsm-signer: etcd, kube-apiserver, and the pods that ask. They are
# built from their Go modules, which takes minutes; "make compose" puts what the tests have built already
# into integration/images/bin, and where that runs in here it is only copied.
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
# New volumes take over the owner and the mode of the directories that they are mounted over first.
RUN install -d -o 65532 -g 65532 -m 0700 /var/lib/etcd /cluster /access /token /ca
COPY --from=build /src/integration/images/bin/etcd /src/integration/images/bin/kube-apiserver /src/integration/images/bin/compose /usr/local/bin/
USER 65532:65532
