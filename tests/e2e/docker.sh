#!/bin/sh
# The device's identity from a real Docker daemon: one of our own, on its own socket, gone at the
# end. Needs root and docker.io; the binaries must be built.
set -eu

bin=${BIN_DIR:-target/debug}
scratch=$(mktemp -d)
dockerd=
mock=

clean_up() {
    for pid in $mock $dockerd; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    # What the daemon mounted goes with it; what is left are files.
    rm -rf "$scratch"
}
trap clean_up EXIT

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

wait_for() {
    what=$1
    shift
    tries=0
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || fail "$what did not come up"
        sleep 0.1
    done
}

DOCKER_HOST=unix://$scratch/docker.sock
export DOCKER_HOST
dockerd --data-root "$scratch/data" --exec-root "$scratch/exec" --pidfile "$scratch/pid" \
    --host "$DOCKER_HOST" >"$scratch/dockerd.log" 2>&1 &
dockerd=$!
wait_for dockerd docker info
expected=$(docker info --format '{{.ID}}')

told=$("$bin/acusight-agent" --root "$scratch/root" identity --json | jq -r .device_id)
[ "$told" = "$expected" ] || fail "identity says $told, Docker says $expected"
echo "ok: identity is the Docker daemon's id"

mkfifo "$scratch/ready"
"$bin/acusight-mock" serve --listen 127.0.0.1:0 >"$scratch/ready" &
mock=$!
read -r ready <"$scratch/ready"
ACUSIGHT_API_URL=$(echo "$ready" | jq -r .api_url)
ACUSIGHT_ADMIN_TOKEN="mock-admin-token"
export ACUSIGHT_API_URL ACUSIGHT_ADMIN_TOKEN
"$bin/acusight-agent" token create e2e --single-use --json | jq -r .token |
    "$bin/acusight-agent" --root "$scratch/root" provision --token-file - --no-edge --no-service --allow-volatile-state
registered=$(curl -sS "${ACUSIGHT_API_URL%/api}/_mock/devices" | jq -r '.data[].device_id')
[ "$registered" = "$expected" ] || fail "the cloud knows $registered, Docker says $expected"
echo "ok: the device is registered under the Docker daemon's id"

kill "$dockerd"
wait "$dockerd" || true
dockerd=
told=$("$bin/acusight-agent" --root "$scratch/root" identity --json | jq -r .device_id)
[ "$told" = "$expected" ] || fail "without Docker the device says it is $told"
echo "ok: the identity outlives Docker"
