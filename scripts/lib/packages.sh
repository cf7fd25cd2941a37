# shellcheck shell=bash
# Debian packages the build needs. Sourced from the project's root.

# package : what shows that it is there : why
# shellcheck disable=SC2034 # scripts/lib/env.sh uses it
build_packages='
cmake|command -v cmake|zlib-ng, which flate2 builds
g++|command -v g++|RocksDB
libclang1-14|ls /usr/lib/*/libclang-14.so* /usr/lib/llvm-*/lib/libclang*.so*|bindgen, for RocksDB
libclang-common-14-dev|ls /usr/lib/llvm-*/lib/clang/*/include/stdbool.h|bindgen, for RocksDB (stdbool.h)
mold|command -v mold|links in a third of the time
curl|command -v curl|talks to the edge
'

# Installs what is missing, or says what to install by hand and fails.
need_packages() { # table
  local name probe why missing='' reasons=''
  while IFS='|' read -r name probe why; do
    [ -n "$name" ] || continue
    if ! sh -c "$probe" >/dev/null 2>&1; then
      missing="$missing $name"
      reasons="$reasons
  $name: $why"
    fi
  done <<<"$1"
  [ -z "$missing" ] && return 0
  echo "Missing Debian packages:$reasons"
  if ! command -v apt-get >/dev/null; then
    echo "This machine has no apt-get. Install the equivalents of:$missing" >&2
    return 1
  fi
  local sudo=''
  if [ "$(id -u)" -ne 0 ]; then
    if sudo -n true 2>/dev/null; then
      sudo='sudo -n'
    else
      echo "No right to install them. Run this, then try again:" >&2
      echo "  sudo apt-get install$missing" >&2
      return 1
    fi
  fi
  echo "Installing:$missing"
  $sudo apt-get update -qq || true
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $missing
}

need_rust() {
  command -v cargo >/dev/null && return 0
  echo "No Rust toolchain: install one from https://rustup.rs (1.88 or newer), then try again." >&2
  return 1
}
