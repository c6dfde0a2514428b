# Machines whose first process is systemd. "bare" is Debian with SoftHSM; "built" has the files that docs/systemd.md
# asks for too: HSM_SIGNER is the image with the binary.
ARG HSM_SIGNER=scratch
FROM debian:bookworm-slim AS bare
RUN apt-get update && apt-get install -y --no-install-recommends systemd softhsm2 && rm -rf /var/lib/apt/lists/*
# The host of the container does this.
RUN systemctl mask systemd-sysctl.service systemd-modules-load.service systemd-logind.service getty.target timers.target
COPY integration/images/systemd.sh /
WORKDIR /src
ENV container=docker
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/systemd.sh"]

FROM ${HSM_SIGNER} AS hsm-signer

FROM bare AS built
COPY --from=hsm-signer /usr/local/bin/hsm-signer /src/bin/hsm-signer
