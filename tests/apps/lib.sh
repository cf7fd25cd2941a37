# shellcheck shell=bash
# What the checks in bash share. $URL is the app's address, $CA the authority's file or empty, $STATE asleep or
# hot, $SCHEME http or https, $VERSION 1.1 or 2.
set -euo pipefail

http() {
  curl -sS --fail-with-body --max-time 60 "--http$VERSION" ${CA:+--cacert "$CA"} "$@"
}

check() { # what command…
  local what=$1
  shift
  "$@" || { echo "FAILED: $what" >&2; exit 1; }
  echo "ok: $what"
}

# Only where the app is to be asleep: once it is, the next request finds it so.
sleep_app() {
  [ "$STATE" != asleep ] || "$SLEEP"
}
