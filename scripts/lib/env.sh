# shellcheck shell=bash
# What every script stands on: what it started ends with it, a failure says at which step, and what is
# built is kept in a cache outside the clone. Sourced from the project's root after `set -euo pipefail`.

: "${VANGO_EDGE_CACHE:=${XDG_CACHE_HOME:-$HOME/.cache}/vango-edge}"
export VANGO_EDGE_CACHE
# shellcheck source=scripts/lib/target.sh
. scripts/lib/target.sh
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$(target_dir)}"

# Sessions that this script leads; each is ended with all of its processes. Those of the second list are
# killed: a bare Pingora waits for five minutes after SIGTERM.
started=()
at_once=()
# A folder that goes with the script; `work_folder` makes it.
work=''
doing='starting'
remedy=''

# step WHAT [REMEDY]: what the script does from here on, and what helps if that fails.
step() {
  doing=$1
  remedy=${2:-}
}

# Runs a command in a session of its own, so that Ctrl-C reaches this script only and what it started
# is ended in order.
start() { # command…
  setsid "$@" &
  started+=("$!")
}

start_at_once() { # command…
  start "$@"
  at_once+=("${started[-1]}")
}

# As `start`, and waits for it. `wait` is left at once when a signal comes; a command in the foreground
# would keep bash from its trap.
run() { # command…
  start "$@"
  local pid=${started[-1]} status=0
  wait "$pid" || status=$?
  unset 'started[-1]'
  return "$status"
}

# Ends a session that was started, and waits for it.
end() { # pid
  kill -TERM -- "-$1" 2>/dev/null || kill -TERM "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}

finish() {
  local status=$? pid
  trap '' HUP INT TERM
  for pid in "${at_once[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
  for pid in "${started[@]}"; do end "$pid"; done
  if [ -n "$work" ]; then
    rm -rf "$work"
  fi
  case $status in
  0 | 129 | 130 | 143) ;;
  *)
    printf '\n%s failed while %s (status %s); its reason is above.\n' "$0" "$doing" "$status" >&2
    if [ -n "$remedy" ]; then printf '%s\n' "$remedy" >&2; fi
    ;;
  esac
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# A folder in $work that goes with the script.
work_folder() {
  work=$(mktemp -d "${TMPDIR:-/tmp}/vango-edge.XXXXXX")
}

# shellcheck source=scripts/lib/packages.sh
. scripts/lib/packages.sh
# shellcheck source=scripts/lib/rocksdb.sh
. scripts/lib/rocksdb.sh
# shellcheck source=scripts/lib/build.sh
. scripts/lib/build.sh
