# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # what env.sh has, and what the script that sources this reads
# An edge for a script: its configuration, its start, where it listens. Sourced after scripts/lib/env.sh.

# A port that the kernel chose.
free_port() {
  need_packages 'python3|command -v python3|asks the kernel for a port that is free' >&2
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Asks until a condition holds, for at most 60 s.
until_true() { # what command…
  local what=$1 _
  shift
  for _ in $(seq 1 1200); do
    "$@" >/dev/null 2>&1 && return 0
    sleep 0.05
  done
  echo "not within 60 s: $what" >&2
  return 1
}

answers() { # url host
  until_true "$1 answers for $2" curl -fsS -o /dev/null -H "Host: $2" "$1"
}

# $work/edge.toml and $work/apps: a node on ports that the kernel chooses. Arguments are lines after
# [server]; what else it is to have goes to the file after.
edge_config() { # line…
  mkdir -p "$work/apps"
  printf '%s\n' '[admin]' "listen = \"${VANGO_EDGE_ADMIN_LISTEN:-127.0.0.1:0}\"" '[state]' 'dir = "state"' '[apps]' 'dir = "apps"' \
    '[server]' "listen = [\"${VANGO_EDGE_LISTEN:-127.0.0.1:0}\"]" "$@" >"$work/edge.toml"
}

# Starts it. Sets `edge` (pid), `listen`, `admin`, and what the command line reads. A wrapper such as
# `taskset -c 0` may stand before.
start_edge() { # wrapper…
  step 'starting the edge'
  : >"$work/addresses"
  start "$@" "$(bin vango-edge)" run -c "$work/edge.toml" >"$work/addresses"
  edge=${started[-1]}
  local _
  for _ in $(seq 1 1200); do
    [ -s "$work/addresses" ] && break
    kill -0 "$edge" 2>/dev/null || return 1
    sleep 0.05
  done
  listen=$(sed 's/.*"listen":\["\([^"]*\)".*/\1/' "$work/addresses")
  admin=$(sed 's/.*"admin":"\([^"]*\)".*/\1/' "$work/addresses")
  export VANGO_EDGE_ADMIN="http://$admin"
}
