# shellcheck shell=bash
# What every script needs: packages, a cache outside the clone, RocksDB. Sourced from the project's
# root.

: "${VANGO_EDGE_CACHE:=${XDG_CACHE_HOME:-$HOME/.cache}/vango-edge}"
export VANGO_EDGE_CACHE
# Outside the clone and always the same, so that a fresh clone compiles only its own crates.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$VANGO_EDGE_CACHE/target}"

# shellcheck source=scripts/lib/packages.sh
. scripts/lib/packages.sh
# shellcheck source=scripts/lib/rocksdb.sh
. scripts/lib/rocksdb.sh

# Everything a build needs; idempotent and quick when it is there.
prepare_build() {
  need_rust
  need_packages "$build_packages"
  rocksdb_archive
  if command -v mold >/dev/null; then
    export RUSTFLAGS="${RUSTFLAGS:-} -C link-arg=-fuse-ld=mold"
  fi
}
