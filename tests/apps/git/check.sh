#!/usr/bin/env bash
# A clone, a push of 8 MB (git sends it in chunks), and a second clone.
# shellcheck source=tests/apps/lib.sh
. "$LIB/lib.sh"
export HOME="$PWD" GIT_CONFIG_NOSYSTEM=1
git config --global user.email test@example.test
git config --global user.name test
git config --global init.defaultBranch main
[ -z "$CA" ] || export GIT_SSL_CAINFO="$CA"
[ "$VERSION" = 2 ] || git config --global http.version HTTP/1.1
check 'clone' git clone -q "$URL/git/project.git" one
head -c 8000000 /dev/urandom >"one/data-$SCHEME-$STATE.bin"
git -C one add .
git -C one commit -qm "data of $SCHEME $STATE"
sleep_app
check 'push' git -C one push -q origin HEAD:main
sleep_app
check 'clone again' git clone -q -b main "$URL/git/project.git" two
check 'the same bytes' cmp "one/data-$SCHEME-$STATE.bin" "two/data-$SCHEME-$STATE.bin"
