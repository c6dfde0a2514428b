# See warm.sh.
FROM golang:1.26-bookworm
ARG GOPROXY=
WORKDIR /warm
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY docs docs
COPY hsm hsm
COPY issuer issuer
COPY kube kube
COPY policy policy
RUN CGO_ENABLED=1 go build -trimpath -buildvcs=false -buildmode=pie -o /dev/null ./cmd/hsm-signer
