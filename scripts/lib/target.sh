# shellcheck shell=bash
# Where cargo builds for this clone. Sourced by scripts/lib/env.sh.
#
# Each clone has a folder of its own: cargo tells the sources of two clones apart by their files' times
# alone, so in one folder for all a clone with older files would run the other one's code. A new clone
# copies what another one has compiled.

target_dir() {
  printf '%s/target-%s' "$VANGO_EDGE_CACHE" "$(pwd -P | sha256sum | cut -c1-12)"
}

# Makes the folder, unless CARGO_TARGET_DIR chose another.
prepare_target() {
  [ "$CARGO_TARGET_DIR" = "$(target_dir)" ] || return 0
  mkdir -p "$VANGO_EDGE_CACHE"
  if [ ! -d "$CARGO_TARGET_DIR" ]; then
    step 'copying what another clone has compiled' 'Run it again: it begins anew.'
    (
      flock 9
      [ -d "$CARGO_TARGET_DIR" ] || new_target
    ) 9>"$VANGO_EDGE_CACHE/target.lock"
  fi
  # Its time says when it was used.
  pwd -P >"$CARGO_TARGET_DIR/clone"
}

new_target() {
  local dir from='' gone='' part="$VANGO_EDGE_CACHE/part"
  for dir in "$VANGO_EDGE_CACHE"/target-*/; do
    dir=${dir%/}
    # One without the file is not of this script.
    [ -f "$dir/clone" ] || continue
    if [ -f "$(cat "$dir/clone")/Cargo.toml" ]; then
      # The one that was used last.
      if [ -z "$from" ] || [ "$dir/clone" -nt "$from/clone" ]; then from=$dir; fi
    elif is_idle "$dir"; then
      if [ -z "$gone" ] || [ "$dir/clone" -nt "$gone/clone" ]; then gone=$dir; fi
    fi
  done
  rm -rf "$part"
  if [ -n "$from" ]; then
    mkdir "$part"
    echo "What $(cat "$from/clone") has compiled is copied for this clone, once nothing compiles there."
    copy_target "$from" "$part"
    # In a clone that this user may not write there are no times to set: everything is compiled.
    times_of "$(cat "$from/clone")" || { rm -rf "$part" && mkdir "$part"; }
  elif [ -n "$gone" ]; then
    mv "$gone" "$part"
    times_of '' || { rm -rf "$part" && mkdir "$part"; }
  else
    mkdir "$part"
  fi
  # A clone that waits for the lock looks at this file once the folder is there.
  pwd -P >"$part/clone"
  for dir in "$VANGO_EDGE_CACHE"/target-*/; do
    dir=${dir%/}
    [ ! -f "$dir/clone" ] || [ -f "$(cat "$dir/clone")/Cargo.toml" ] || ! is_idle "$dir" || rm -rf "$dir"
  done
  mv "$part" "$CARGO_TARGET_DIR"
}

# No cargo is at work in it: a clone may be gone for this machine only, where a container shares the cache.
is_idle() { # target folder
  local lock
  for lock in "$1"/*/.cargo-lock; do
    [ ! -f "$lock" ] || flock -n "$lock" true || return 1
  done
}

# Without programs: those of tests have their clone's path in them.
copy_target() { # from to
  local lock profile
  for lock in "$1"/*/.cargo-lock; do
    [ -f "$lock" ] || continue
    profile=$(basename "$(dirname "$lock")")
    (cd "$1" && find "$profile" -maxdepth 2 -type f ! -name '*.*') >"$2/programs"
    # cargo has the lock while it compiles; what it is writing would be copied in part.
    flock "$lock" tar -C "$1" --exclude="$profile/incremental" --exclude-from="$2/programs" -cf - "$profile" |
      tar -C "$2" -xf -
    rm "$2/programs"
  done
}

# cargo compiles anew what has a file that is newer than what it compiled: a file that is the other clone's
# gets that one's time, and every other one is new.
times_of() { # clone
  local file
  find . \( -name .git -o -name node_modules -o -path ./target -o -path "./${VANGO_EDGE_CACHE#"$(pwd -P)/"}" \) -prune \
    -o -type f -print0 | while IFS= read -r -d '' file; do
    if [ -n "$1" ] && cmp -s "$file" "$1/$file"; then
      touch -r "$1/$file" "$file" || exit 1
    else
      touch "$file" || exit 1
    fi
  done
}
