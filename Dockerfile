# hsm-signer with nothing but what it needs at run time. The PKCS#11 library of
# your HSM is not in here: mount it, or add it in an image derived from this one.
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG RELEASE=
# cgo loads the PKCS#11 library; -trimpath and no VCS stamp make the build repeatable.
RUN CGO_ENABLED=1 go build -trimpath -buildvcs=false -ldflags "-X main.release=$RELEASE" -o /hsm-signer ./cmd/hsm-signer

FROM debian:bookworm-slim
COPY --from=build /hsm-signer /usr/local/bin/hsm-signer
# The journal must outlive the container: mount a volume here.
RUN install -d -o 65532 -g 65532 -m 0700 /var/lib/hsm-signer
VOLUME /var/lib/hsm-signer
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/hsm-signer"]
CMD ["run"]
