#!/usr/bin/env bash
# A form with a session, also when the app slept in between; and an upload of 10 MB.
# shellcheck source=tests/apps/lib.sh
. "$LIB/lib.sh"
jar() { http -b jar -c jar -L "$@"; }
jar -d word=one "$URL/" >/dev/null
sleep_app
jar -d word=two "$URL/" >/dev/null
check 'a session' [ "$(jar "$URL/")" = one,two ]
head -c 10000000 /dev/urandom >file.bin
sleep_app
check 'an upload' [ "$(http -F file=@file.bin "$URL/")" = "$(sha256sum <file.bin | cut -d' ' -f1)" ]
