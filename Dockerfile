# The edge, as a small image. Two stages: the first builds with everything that RocksDB and bindgen
# need, the second has the binary and the C library it links, and runs as a user without rights.
#
#   docker build -t vango-edge .
#   docker run --rm -p 8080:8080 -v edge-state:/var/lib/vango-edge \
#     -v "$PWD/conf/apps:/etc/vango-edge/apps:ro" vango-edge
#
# Its configuration is conf/edge.toml, but for the address: a port that Docker publishes arrives at the
# container's own interface. Another one goes to /etc/vango-edge/edge.toml, and has to listen on 0.0.0.0.
#
# The admin API listens on loopback only, inside the container as well:
#   docker exec CONTAINER vango-edge ops

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# The same script as everywhere: it installs what the build needs and compiles RocksDB once. The `dist`
# profile: thin LTO, one codegen unit, stripped.
RUN PROFILE=dist VANGO_EDGE_CACHE=/build CARGO_TARGET_DIR=/build/target scripts/build \
 && install -D /build/target/dist/vango-edge /out/usr/local/bin/vango-edge \
 && install -d /out/etc/vango-edge/apps \
 && sed 's/^listen = \["127.0.0.1:8080"\]$/listen = ["0.0.0.0:8080"]/' conf/edge.toml >/out/etc/vango-edge/edge.toml \
 && install -d -o 65532 -g 65532 -m 0700 /out/var/lib/vango-edge

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libstdc++6 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/ /
USER 65532:65532
VOLUME /var/lib/vango-edge
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
  CMD ["vango-edge", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["vango-edge"]
CMD ["run", "-c", "/etc/vango-edge/edge.toml"]
