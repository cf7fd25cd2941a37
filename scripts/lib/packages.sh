# shellcheck shell=bash
# Packages from the system. Names are those that Debian 12, Debian 13 and Ubuntu 24.04 share; none has a
# version in it. Sourced by scripts/lib/env.sh.

# package|what shows that it is there|why
# shellcheck disable=SC2034 # scripts/lib/build.sh uses it
build_packages='
g++|command -v c++|RocksDB
make|command -v make|jemalloc
libclang-dev|ls /usr/lib/llvm-*/lib/clang/*/include/stdbool.h /usr/lib/llvm-*/lib/libclang.so* /usr/lib/llvm-*/lib/libclang-*.so*|bindgen, for RocksDB
mold|command -v mold|links in a third of the time
curl|command -v curl|talks to the edge
'
# What a build can do without.
# shellcheck disable=SC2034 # scripts/lib/build.sh uses it
faster_packages='
clang|command -v clang++|compiles RocksDB in three quarters of the time that g++ takes
'

may_install() {
  command -v apt-get >/dev/null && { [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null; }
}

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
  step "installing$missing"
  echo "Missing packages:$reasons"
  if ! command -v apt-get >/dev/null; then
    echo "This machine has no apt-get: install what corresponds to Debian's$missing, then try again." >&2
    return 1
  fi
  if ! may_install; then
    echo "No right to install them. Run this, then try again:" >&2
    echo "  sudo apt-get install$missing" >&2
    return 1
  fi
  local sudo=''
  [ "$(id -u)" -eq 0 ] || sudo='sudo -n'
  echo "Installing:$missing"
  # A mirror that is away need not matter: the lists may be new enough.
  run $sudo apt-get update -qq || true
  local log
  log=$(mktemp)
  # shellcheck disable=SC2086 # lists of words
  run $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >"$log" 2>&1 || {
    cat "$log" >&2
    rm -f "$log"
    echo "apt-get could not install$missing; its words are above." >&2
    case $missing in
    *chromium*)
      # https://snapcraft.io/blog/chromium-in-ubuntu-deb-to-snap-transition
      echo "Ubuntu has Chromium as a snap only, which cannot read the folders of the tests: put a Chromium or" >&2
      echo "Chrome of another source into PATH as 'chromium', then try again." >&2
      ;;
    esac
    return 1
  }
  rm -f "$log"
}

# The oldest Rust that compiles this: `rust-version` in Cargo.toml.
need_rust() {
  local least have
  least=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
  if ! command -v cargo >/dev/null; then
    echo "No Rust toolchain: install one from https://rustup.rs ($least or newer), then try again." >&2
    return 1
  fi
  have=$(rustc -V | cut -d' ' -f2)
  if [ "$(printf '%s\n' "$least" "$have" | sort -V | head -n 1)" != "$least" ]; then
    echo "Rust $have is too old: this needs $least or newer (rustup update), then try again." >&2
    return 1
  fi
}

# Python packages in an environment of their own in the cache; another list is another folder. Sets
# `venv`.
need_python() { # name package…
  need_packages '
python3-venv|python3 -c "import venv, ensurepip"|Python packages in a folder of their own
'
  local name=$1
  shift
  venv="$VANGO_EDGE_CACHE/$name-$(printf '%s ' "$@" | cksum | cut -d' ' -f1)"
  [ -f "$venv/.installed" ] && return 0
  step "installing Python packages: $*" 'Is PyPI, or the index that pip is configured for, reachable?'
  rm -rf "$venv"
  run python3 -m venv "$venv"
  run "$venv/bin/pip" install --quiet --disable-pip-version-check "$@"
  touch "$venv/.installed"
}
