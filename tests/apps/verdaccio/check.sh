#!/usr/bin/env bash
# A user is made, a package of 3 MB is published and installed again, with npm.
# shellcheck source=tests/apps/lib.sh
. "$LIB/lib.sh"
tag="$$-$(date +%s)"
token=$(http -X PUT -H 'Content-Type: application/json' -d "{\"name\":\"u$tag\",\"password\":\"correct-horse\"}" \
  "$URL/-/user/org.couchdb.user:u$tag" | sed -n 's/.*"token": *"\([^"]*\)".*/\1/p')
check 'a user is made' [ -n "$token" ]
mkdir -p package && cd package
printf '{"name":"pkg-%s","version":"1.0.0"}' "$tag" >package.json
head -c 3000000 /dev/urandom >data.bin
printf '//%s/:_authToken=%s\nregistry=%s/\n' "${URL#*://}" "$token" "$URL" >.npmrc
if [ -n "$CA" ]; then echo "cafile=$CA" >>.npmrc; fi
sleep_app
check 'npm publish' npm publish --silent --userconfig .npmrc
mkdir -p ../use && cp .npmrc ../use/ && cd ../use
sleep_app
check 'npm install' npm install --silent --no-audit --no-fund --userconfig .npmrc --cache ./cache "pkg-$tag"
check 'the same bytes' cmp "node_modules/pkg-$tag/data.bin" ../package/data.bin
