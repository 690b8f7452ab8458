# The image convene: one static binary and its licence, for amd64 and arm64.
#
#     docker buildx build --platform linux/amd64,linux/arm64 -t REGISTRY/convene:0.1.0 --push .
#
# tests/packaging.rs lints this file, since nothing in CI can build an image.

# Alpine, because its target is musl: the binary is static without a flag, and musl-dev and gcc (for ring) are in the image.
# No --platform here: each platform's stage then runs on that platform (arm64 on amd64 under emulation, which is slow), and
# nothing has to be cross-compiled.
FROM rust:1.95-alpine AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY src src
# --locked: the versions that were tested, or no image.
RUN cargo build --release --locked --bin convene

# Nothing but the program: no shell, no libc, no CA roots (they come with the token, by CONSUL_CACERT).
FROM scratch
LABEL org.opencontainers.image.title="convene" \
      org.opencontainers.image.description="Brings a Consul cluster together on Kubernetes and takes it apart well" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
# Apache-2.0 section 4 (a): whoever gets the program gets the licence.
COPY LICENSE /LICENSE
COPY --from=build /build/target/release/convene /convene
# By number, since there is no /etc/passwd here and runAsNonRoot cannot judge a name. 100:1000 is user and group consul of
# Consul's own image: what convene writes on the volume must belong to the one who runs the agent.
USER 100:1000
# The exec form: there is no shell. convene is PID 1 and gets the signals itself.
ENTRYPOINT ["/convene"]
