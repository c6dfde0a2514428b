# A machine whose first process is systemd, with a software token and the files that docs/systemd.md asks for.
# HSM_SIGNER is the image with the binary.
ARG HSM_SIGNER
FROM ${HSM_SIGNER} AS hsm-signer

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends systemd softhsm2 && rm -rf /var/lib/apt/lists/*
# The host of the container does this.
RUN systemctl mask systemd-sysctl.service systemd-modules-load.service systemd-logind.service getty.target timers.target
COPY integration/images/systemd.sh /
COPY --from=hsm-signer /usr/local/bin/hsm-signer /src/bin/hsm-signer
WORKDIR /src
ENV container=docker
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/systemd.sh"]
