# shellcheck shell=bash
# RocksDB, compiled once a machine. Sourced by scripts/lib/env.sh.
#
# RocksDB is C++ and takes ten minutes or more on two cores; cargo would compile
# it once for each profile and again whenever feature unification changes. So it
# is compiled here once, into a cache outside the clone, and every profile links
# that archive (ROCKSDB_LIB_DIR + ROCKSDB_STATIC, read by librocksdb-sys). The
# folder's name carries what the archive depends on: crate, features, target.

rocksdb_crate='0.19.0+11.8.1'   # must equal librocksdb-sys in Cargo.lock; checked below
rocksdb_features='lz4'

rocksdb_dir() {
  printf '%s/rocksdb-%s-%s-%s' "$VANGO_EDGE_CACHE" "$rocksdb_crate" "$rocksdb_features" \
    "$(rustc -vV | sed -n 's/^host: //p')"
}

# Counts finished objects while cargo is silent, so that the wait can be seen.
rocksdb_progress() { # pid build-dir
  local total=370 done_ start=$SECONDS
  while kill -0 "$1" 2>/dev/null; do
    done_=$(find "$2" -path '*librocksdb-sys*' -name '*.o' 2>/dev/null | wc -l)
    printf '  RocksDB: %s of about %s files, %s s\n' "$done_" "$total" "$((SECONDS - start))"
    for _ in $(seq 1 15); do kill -0 "$1" 2>/dev/null || break; sleep 1; done
  done
}

rocksdb_archive() {
  local dir work lib pid
  if [ -f Cargo.lock ] && ! grep -A1 '^name = "librocksdb-sys"' Cargo.lock | grep -qF "\"$rocksdb_crate\""; then
    echo "scripts/lib/rocksdb.sh: Cargo.lock has another librocksdb-sys than $rocksdb_crate; set rocksdb_crate to it" >&2
    return 1
  fi
  dir=$(rocksdb_dir)
  if [ ! -f "$dir/librocksdb.a" ]; then
    mkdir -p "$VANGO_EDGE_CACHE"
    # One builder at a time: a second script waits for the first one's archive.
    exec 8>"$dir.lock"
    flock 8
    if [ ! -f "$dir/librocksdb.a" ]; then
      echo "Compiling RocksDB once for this machine (10 to 20 minutes on 2 cores), into $dir"
      work="$dir.build"
      mkdir -p "$work/src" && : >"$work/src/lib.rs"
      cat >"$work/Cargo.toml" <<TOML
[package]
name = "rocksdb-archive"
version = "0.0.0"
edition = "2024"
[dependencies]
librocksdb-sys = { version = "=$rocksdb_crate", default-features = false, features = ["$rocksdb_features", "bindgen-runtime"] }
[workspace]
TOML
      (cd "$work" && env -u ROCKSDB_LIB_DIR -u ROCKSDB_STATIC CARGO_TARGET_DIR="$work/target" \
        cargo build --release 8>&-) &
      pid=$!
      rocksdb_progress "$pid" "$work/target"
      wait "$pid" || { echo "RocksDB did not compile; its output is above" >&2; return 1; }
      lib=$(find "$work/target" -name librocksdb.a | head -n 1)
      mkdir -p "$dir"
      cp "$lib" "$dir/librocksdb.a.part" && mv "$dir/librocksdb.a.part" "$dir/librocksdb.a"
      rm -rf "$work"
    fi
    exec 8>&-
  fi
  export ROCKSDB_LIB_DIR="$dir" ROCKSDB_STATIC=1
}
