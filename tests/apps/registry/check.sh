#!/usr/bin/env bash
# An image with a layer of 30 MB is pushed and pulled, with skopeo.
# shellcheck source=tests/apps/lib.sh
. "$LIB/lib.sh"
python3 - image <<'PY'
import gzip, hashlib, io, json, os, sys, tarfile

root = sys.argv[1]
os.makedirs(f"{root}/blobs/sha256")


def blob(data):
    digest = hashlib.sha256(data).hexdigest()
    with open(f"{root}/blobs/sha256/{digest}", "wb") as f:
        f.write(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode="w") as tar:
    data = os.urandom(30_000_000)
    info = tarfile.TarInfo("data.bin")
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
diff = hashlib.sha256(layer.getvalue()).hexdigest()
layer = blob(gzip.compress(layer.getvalue(), 1))
config = blob(json.dumps({
    "architecture": "amd64", "os": "linux", "config": {},
    "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff}"]},
}).encode())
manifest = blob(json.dumps({
    "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **config},
    "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **layer}],
}).encode())
with open(f"{root}/oci-layout", "w") as f:
    json.dump({"imageLayoutVersion": "1.0.0"}, f)
with open(f"{root}/index.json", "w") as f:
    json.dump({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", **manifest,
        "annotations": {"org.opencontainers.image.ref.name": "latest"}}]}, f)
PY
policy='{"default":[{"type":"insecureAcceptAnything"}]}'
echo "$policy" >policy.json
mkdir certs
if [ -n "$CA" ]; then cp "$CA" certs/ca.crt; fi
tls=$([ -n "$CA" ] && echo true || echo false)
name="${URL#*://}/images/test-$$"
check 'push' skopeo --policy policy.json copy -q --dest-tls-verify="$tls" --dest-cert-dir certs oci:image:latest "docker://$name:latest"
sleep_app
check 'pull' skopeo --policy policy.json copy -q --src-tls-verify="$tls" --src-cert-dir certs "docker://$name:latest" oci:pulled:latest
for file in image/blobs/sha256/*; do
  check 'the same bytes' cmp "$file" "pulled/blobs/sha256/$(basename "$file")"
done
