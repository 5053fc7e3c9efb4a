#!/usr/bin/env bash
# Build containers/Containerfile and train in the image, as root on Debian, also where no registry of images can be
# reached: the base is then made from Debian's packages and has Debian's Python.
#
#     tests/containers/build.sh install    the tools
#     tests/containers/build.sh [BASE]     build on BASE (by default on one made here), train on two ranks, plot
#
# Everything lies in a folder that is removed at the end. Host's certificates and pip's settings are seen by the build,
# for the sake of sites with a proxy.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [[ ${1-} == install ]]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends buildah debootstrap >/dev/null
    exit
fi

place=$(mktemp -d)
builder=(buildah --root "$place/storage" --runroot "$place/run")
trap '"${builder[@]}" rm --all >/dev/null 2>&1 || true; rm -rf "$place"' EXIT
seen=()
for path in /etc/ssl/certs /etc/pip.conf; do
    if [[ -e $path ]]; then seen+=(--volume "$path:$path:ro"); fi
done

base=${1-}
if [[ -z $base ]]; then
    base=localhost/debian-python
    debootstrap --variant=minbase --include=python3,python3-pip,python-is-python3 bookworm "$place/root" >"$place/log" ||
        { tail "$place/log"; exit 1; }
    container=$("${builder[@]}" from scratch)
    "${builder[@]}" add --quiet "$container" "$place/root" / >/dev/null
    rm -rf "$place/root"
    "${builder[@]}" config --env PIP_BREAK_SYSTEM_PACKAGES=1 --env PIP_CERT=/etc/ssl/certs/ca-certificates.crt "$container"
    "${builder[@]}" commit --quiet --rm "$container" "$base" >/dev/null
fi

"${builder[@]}" build --isolation chroot --network host "${seen[@]}" --build-arg "BASE=$base" --quiet \
    --tag iwes_mpi --file containers/Containerfile .
container=$("${builder[@]}" from localhost/iwes_mpi)
inside() { "${builder[@]}" run --isolation chroot "$container" -- "$@"; }
inside mpirun -n 2 python -m iwes_mpi.train --env-id CartPole-v1 --stop-at-return 400 --max-env-steps 300000 \
    --display lines --run-dir first
inside python -m iwes_mpi.plot first -o first.png
inside test -s first.png
echo "containers/Containerfile: built, trained on two ranks and plotted"
