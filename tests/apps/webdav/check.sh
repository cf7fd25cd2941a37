#!/usr/bin/env bash
# Folders, files, a move and a lock, with rclone and curl.
# shellcheck source=tests/apps/lib.sh
. "$LIB/lib.sh"
rc() { rclone --webdav-url "$URL" --webdav-vendor other ${CA:+--ca-cert "$CA"} --retries 1 --low-level-retries 1 --config /dev/null "$@"; }
dir="d-$SCHEME-$STATE"
head -c 5000000 /dev/urandom >file.bin
check 'PROPFIND asleep' rc lsf :webdav:
sleep_app
check 'MKCOL asleep' rc mkdir ":webdav:$dir"
check 'copy there' rc copyto file.bin ":webdav:$dir/file.bin"
sleep_app
check 'MOVE asleep' rc moveto ":webdav:$dir/file.bin" ":webdav:$dir/moved äö.bin"
check 'copy back' rc copyto ":webdav:$dir/moved äö.bin" back.bin
check 'the same bytes' cmp file.bin back.bin
lock='<?xml version="1.0"?><d:lockinfo xmlns:d="DAV:"><d:lockscope><d:exclusive/></d:lockscope><d:locktype><d:write/></d:locktype><d:owner>me</d:owner></d:lockinfo>'
check 'LOCK' grep -q locktoken <(http -X LOCK -H 'Content-Type: application/xml' -d "$lock" "$URL/$dir/moved%20%C3%A4%C3%B6.bin")
