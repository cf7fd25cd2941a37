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
  if [ ! -d "$CARGO_TARGET_DIR" ]; then (
    flock 9
    [ -d "$CARGO_TARGET_DIR" ] || new_target
  ) 9>"$VANGO_EDGE_CACHE/target.lock"; fi
  pwd -P >"$CARGO_TARGET_DIR/clone"
}

new_target() {
  local dir clone='' from='' gone=() part="$VANGO_EDGE_CACHE/part"
  for dir in "$VANGO_EDGE_CACHE"/target*/; do
    dir=${dir%/}
    [ -d "$dir" ] || continue
    [ -f "$(cat "$dir/clone" 2>/dev/null)/Cargo.toml" ] || gone+=("$dir")
    # The one that was used last.
    if [ -z "$from" ] || [ "$dir/clone" -nt "$from/clone" ]; then from=$dir; fi
  done
  rm -rf "$part"
  mkdir "$part"
  if [ -n "$from" ]; then
    clone=$(cat "$from/clone" 2>/dev/null) || true
    case " ${gone[*]} " in
    *" $from "*) rmdir "$part" && mv "$from" "$part" ;;
    *)
      echo "What $clone has compiled is copied for this clone."
      step "copying $from" 'Run it again: it begins anew.'
      copy_target "$from" "$part"
      ;;
    esac
    times_of "$clone"
  fi
  rm -rf "${gone[@]}"
  mv "$part" "$CARGO_TARGET_DIR"
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
  find . \( -name .git -o -path ./target \) -prune -o -type f -print0 | while IFS= read -r -d '' file; do
    if cmp -s "$file" "$1/$file"; then touch -r "$1/$file" "$file"; else touch "$file"; fi
  done
}
