# shellcheck shell=bash
# Where the RocksDB archive of this machine is; scripts/lib/rocksdb-archive makes it. Sourced by
# scripts/lib/env.sh.
#
# RocksDB is C++: left to cargo it would be compiled once for each profile, and again whenever features
# unify differently. Every profile links this one archive instead (ROCKSDB_LIB_DIR, read by
# librocksdb-sys). The folder's name carries what the archive depends on: the crate, its features, how
# it is made, the target.

rocksdb_features='lz4'
# Raise it when scripts/lib/rocksdb-archive compiles differently.
rocksdb_recipe=3

# The version that Cargo.lock pins.
rocksdb_version() {
  sed -n '/^name = "librocksdb-sys"$/{n;s/^version = "\(.*\)"$/\1/p}' Cargo.lock
}

rocksdb_dir() {
  printf '%s/rocksdb-%s-%s-%s-%s' "$VANGO_EDGE_CACHE" "$(rocksdb_version)" "$rocksdb_features" \
    "$rocksdb_recipe" "$(rustc -vV | sed -n 's/^host: //p')"
}

rocksdb_is_there() {
  [ -f "$(rocksdb_dir)/librocksdb.a" ]
}
