# shellcheck shell=bash
# shellcheck disable=SC2154 # what env.sh and packages.sh have
# Builds the workspace. Sourced by scripts/lib/env.sh.

# The cargo profile of what a script runs, and its folder in the target directory.
: "${PROFILE:=dev}"
profile_dir() {
  if [ "$PROFILE" = dev ]; then echo debug; else echo "$PROFILE"; fi
}
# What `build` made; or, with BIN_DIR, what is in that folder, and nothing is built.
bin() { # name
  printf '%s/%s' "${BIN_DIR:-$CARGO_TARGET_DIR/$(profile_dir)}" "$1"
}

build_environment() {
  prepare_target
  need_rust
  need_packages "$build_packages"
  if may_install; then need_packages "$faster_packages"; fi
  # Once only: a script that another one runs has it already, and with other flags every crate would be
  # compiled again.
  case ${RUSTFLAGS:-} in
  *-fuse-ld=mold*) ;;
  *) export RUSTFLAGS="${RUSTFLAGS:+$RUSTFLAGS }-C link-arg=-fuse-ld=mold" ;;
  esac
  # Read by the crate `cc` and by rocksdb-archive. clang takes the C++ library of the newest GCC's folder,
  # which may have none in it. The crates' C code in what is measured and released is left to the system's
  # compiler: what clang makes of the allocator was not measured beside it. ring asks for debug information
  # whatever the profile says, and Debian 12's valgrind ends at clang's DWARF 5.
  local flags=-fdebug-default-version=4
  if [ -z "${CC:-}${CXX:-}" ] && clang++ $flags -x c++ -fsyntax-only -include string /dev/null 2>/dev/null; then
    export HOST_CXX=clang++
    if [ "$PROFILE" = dev ]; then
      export HOST_CC=clang HOST_CFLAGS=$flags
    else
      unset HOST_CC HOST_CFLAGS
    fi
  fi
  # librocksdb-sys then links what it finds there and compiles nothing. Without ROCKSDB_STATIC it names
  # the library without copying it into its own, so that everything but the last link can be done
  # before the archive is there; there is no shared library, so what is linked is the archive.
  export ROCKSDB_LIB_DIR
  ROCKSDB_LIB_DIR=$(rocksdb_dir)
  unset ROCKSDB_STATIC
}

# Everything that cargo needs; quick when it is there.
prepare_build() {
  [ -z "${BIN_DIR:-}" ] || return 0
  build_environment
  step 'compiling RocksDB' 'Run it again: it goes on from what was compiled.'
  run scripts/lib/rocksdb-archive
}

# The workspace's binaries. On a fresh machine RocksDB compiles beside everything that does not link it:
# neither keeps two cores busy all the time.
build() {
  [ -z "${BIN_DIR:-}" ] || return 0
  build_environment
  step 'compiling' 'Run it again: it goes on from what was compiled.'
  if ! rocksdb_is_there; then
    echo "The first build on this machine compiles RocksDB and every crate; later ones and other clones use"
    echo "them from $VANGO_EDGE_CACHE. It takes about seven minutes on two quiet cores."
    run cargo fetch --quiet --locked
    # The crates first: the last of them keeps one core busy for a minute, and RocksDB has the other.
    start nice -n 5 scripts/lib/rocksdb-archive
    local archive=${started[-1]}
    run cargo build --workspace --profile "$PROFILE" --lib --bin studylab --bin bare-proxy --bin static-1k
    wait "$archive"
    unset 'started[-1]'
  fi
  run cargo build --workspace --profile "$PROFILE" --bins
}
